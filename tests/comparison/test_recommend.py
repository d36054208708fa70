"""``bll.recommend``: what it takes targets for, its rules, their evidence, its estimates, and that what it declares is fitted."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import bll_pyro as bll
from bll_pyro.comparison import Recommendation
from bll_pyro.comparison.costs import GIB, FitSize, available_bytes, cost
from bll_pyro.comparison.recommendation import MANY_ROWS, MOST_CORRELATED

L = bll.likelihoods
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def machine_with_room(monkeypatch):
    """What a loaded machine has free decides nothing here."""
    monkeypatch.setattr("bll_pyro.comparison.recommendation.available_bytes", lambda: 20 * GIB)


def table(name, title):
    tables = json.loads((RESULTS / f"{name}.json").read_text())["tables"]
    return next(one["rows"] for one in tables if one["title"].startswith(title))


def targets_of(kind, num_rows, random=RANDOM):
    """Targets of a kind, each class with rows enough."""
    numbers = np.arange(num_rows)
    return {
        "real": random.normal(size=num_rows),
        "two real": random.normal(size=(num_rows, 2)),
        "text": np.array(["a", "b", "c"])[numbers % 3],
        "two words": np.array(["no", "yes"])[numbers % 2],
        "booleans": numbers % 2 == 0,
        "class numbers": numbers % 4,
        "other numbers": 10 * (numbers % 3) - 10,
        "two numbers": 1 + numbers % 2,
        "counts": random.poisson(5.0, num_rows),
        "large counts": random.poisson(5e5, num_rows),
        "multilabel": (random.random((num_rows, 3)) < 0.5).astype(int),
        "whole": random.integers(-500, 500, num_rows),
    }[kind]


KINDS = {
    "real": "Gaussian",
    "two real": "Gaussian",
    "text": "Categorical",
    "two words": "Bernoulli",
    "booleans": "Bernoulli",
    "class numbers": "Categorical",
    "other numbers": "Categorical",
    "two numbers": "Bernoulli",
    "counts": "NegativeBinomial",
    "large counts": "NegativeBinomial",
    "multilabel": "Bernoulli",
    "whole": "Gaussian",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_likelihood_suits_the_targets(kind):
    inputs = RANDOM.normal(size=(300, 2))
    found = bll.recommend((inputs, targets_of(kind, 300)))
    assert type(found.layer.likelihood).__name__ == KINDS[kind]
    assert found.size.num_outputs == {"text": 3, "class numbers": 4, "other numbers": 3, "two real": 2}.get(
        kind, 3 if kind == "multilabel" else 1
    )
    assert isinstance(found.inference, bll.Exact) == (KINDS[kind] == "Gaussian")
    assert found.reasons["targets"]


def test_a_likelihood_and_an_exposure_that_are_given():
    inputs = RANDOM.normal(size=(300, 2))
    labels = targets_of("class numbers", 300)
    counts = bll.recommend((inputs, labels), likelihood=L.Poisson())
    assert (
        isinstance(counts.layer.likelihood, L.Poisson)
        and counts.reasons["targets"] == "the likelihood is given"
    )
    exposed = bll.recommend((inputs, labels), exposure=np.ones(300))
    assert isinstance(exposed.layer.likelihood, L.NegativeBinomial)
    ordered = bll.recommend((inputs, labels), likelihood=L.Ordinal())
    assert ordered.size.num_outputs == 1


@pytest.mark.parametrize("num_rows", [10, 120])
@pytest.mark.parametrize("kind", ["real", "text", "two words", "counts", "multilabel", "two real"])
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")  # ten rows say little
def test_what_is_declared_is_fitted(kind, num_rows):
    data = RANDOM.normal(size=(num_rows, 2)), targets_of(kind, num_rows)
    found = bll.recommend(data)
    fit = bll.fit(found.layer, data, None, found.inference)
    assert fit.num_rows == num_rows and bool(torch.isfinite(fit.predict(data[0]).total).all())


@pytest.mark.slow
@pytest.mark.parametrize(("num_rows", "num_features"), [(200, 60), (6_000, 2), (20_000, 8)])
@pytest.mark.parametrize("kind", ["real", "class numbers", "multilabel"])
def test_larger_ones_are_fitted(kind, num_rows, num_features):
    random = np.random.default_rng(1)
    data = random.normal(size=(num_rows, num_features)).astype("float32"), targets_of(kind, num_rows, random)
    found = bll.recommend(data)
    fit = bll.fit(found.layer, data, None, found.inference)
    assert bool(torch.isfinite(fit.predict(data[0][:50]).total).all())


def stored(num_rows, num_features, targets):
    """A store that takes no memory: one row, and one target, as often as it takes."""
    features = torch.zeros(1, num_features).expand(num_rows, num_features)
    return bll.Features.from_tensors(features, targets.expand(num_rows))


def fits(inference, likelihood, size, memory):
    """Whether the estimate is within memory, and the inference's own check passes."""
    try:
        inference.check(bll.LastLayer(likelihood), size.num_outputs, size.num_columns)
    except ValueError:
        return False
    return cost(inference, likelihood, size).num_bytes <= memory * GIB


@pytest.mark.parametrize("num_rows", [10, 1_000, 10**5, 10**6, 10**8])
@pytest.mark.parametrize("num_features", [3, 300, 30_000])
@pytest.mark.parametrize("memory", [1.0, 8.0, 64.0])
@pytest.mark.parametrize(
    "likelihood", [L.Gaussian(), L.Bernoulli(), L.Categorical(10), L.Categorical(20_000)]
)
def test_nothing_is_chosen_that_does_not_fit(likelihood, memory, num_features, num_rows):
    whole = likelihood.is_binary or likelihood.is_discrete
    data = stored(num_rows, num_features, torch.zeros(1, dtype=torch.long if whole else torch.float32))
    size = FitSize(num_rows, num_features, likelihood.num_outputs(()))
    axes = [bll.SVI(), bll.SVI(bll.guides.Diagonal(principal_axes=False))]
    is_gaussian = isinstance(likelihood, L.Gaussian)
    fitting = [one for one in [*axes, *[bll.Exact()] * is_gaussian] if fits(one, likelihood, size, memory)]
    if not fitting:
        with pytest.raises(ValueError, match="recommend: expected a fit that takes at most"):
            bll.recommend(data, likelihood=likelihood, memory=memory)
        return
    found = bll.recommend(data, likelihood=likelihood, memory=memory)
    assert found.size == size
    assert found.cost.num_bytes <= memory * GIB and found.cost.seconds > 0
    found.inference.check(found.layer, size.num_outputs, size.num_columns)
    if not is_gaussian:
        assert found.inference == fitting[0]  # the default, and without axes only where these do not fit
    assert ("SVI(guide=FullRank())" in found.table.index) == (
        not is_gaussian and size.num_weights <= MOST_CORRELATED
    )
    if is_gaussian and num_features < 1_000:
        assert isinstance(found.inference, bll.Exact)
    assert ("Laplace()" in found.table.index) == (
        not is_gaussian and num_rows >= MANY_ROWS * size.num_columns
    )


def test_a_store_is_not_read(monkeypatch):
    read = []
    batches = bll.Features.__getitem__

    def counted(self, index):
        found = batches(self, index)
        read.append(len(found))
        return found

    monkeypatch.setattr(bll.Features, "__getitem__", counted)
    data = stored(10**7, 16, torch.zeros(1))
    assert bll.recommend(data, likelihood=L.Gaussian()).size.num_rows == 10**7
    assert sum(read) <= 64


class Wide(nn.Module):
    """A backbone that counts its rows."""

    def __init__(self, num_features):
        super().__init__()
        self.layer, self.norm, self.seen = nn.Linear(2, num_features), nn.BatchNorm1d(num_features), 0

    def forward(self, rows):
        self.seen += len(rows)
        return self.norm(self.layer(rows))


@pytest.mark.parametrize("num_rows", [40, 300])
def test_random_features_are_reckoned_with(num_rows: int):
    inputs, backbone = np.random.default_rng(0).normal(size=(num_rows, 3)), bll.random_features(200)
    targets = np.sin(3 * inputs[:, 0]) + 0.1 * inputs[:, 1]
    found = bll.recommend((inputs, targets), backbone)
    fit = bll.fit(found.layer, (inputs, targets), backbone, found.inference)
    assert found.size.num_features == 203
    # of few rows the evidence may be for the columns alone
    assert fit.posterior.frame.num_features in ((3, 203) if num_rows == 40 else (203,))


def test_a_backbone_is_timed_on_a_few_rows_and_left_as_it_is():
    network = Wide(700).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = RANDOM.normal(size=(5_000, 2)).astype("float32")
    found = bll.recommend((inputs, targets_of("class numbers", 5_000)), network)
    assert network.seen <= 100 and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert found.size.num_features == 700 and found.backbone_seconds > 0
    assert "for one pass of all rows" in repr(found)
    with pytest.raises(ValueError, match=r"keep the features on disk: features = bll.extract"):
        bll.recommend((np.tile(inputs, (100, 1)), targets_of("real", 500_000)), Wide(1_500), memory=2.0)


def test_too_wide_for_principal_axes():
    found = bll.recommend(stored(500, 30_000, torch.zeros(1)), likelihood=L.Bernoulli(), memory=8.0)
    assert not found.inference.guide.principal_axes
    assert "too large      SVI()" in repr(found)


def test_data_that_come_batch_by_batch():
    class Rows(Dataset):
        def __init__(self, targets):
            self.targets = targets

        def __len__(self):
            return len(self.targets)

        def __getitem__(self, index):
            return torch.zeros(3) + index, self.targets[index]

    real = bll.recommend(Rows(torch.randn(50)))
    assert isinstance(real.layer.likelihood, L.Gaussian) and real.size == FitSize(50, 3, 1)
    with pytest.raises(ValueError, match=r"come batch by batch.*pass likelihood=bll.likelihoods.Categorical"):
        bll.recommend(Rows(torch.arange(50) % 3))
    assert bll.recommend(Rows(torch.arange(50) % 3), likelihood=L.Categorical(3)).size.num_outputs == 3
    whole = TensorDataset(torch.randn(60, 3), torch.arange(60) % 3)
    assert isinstance(bll.recommend(whole).layer.likelihood, L.Categorical)


def test_frames_and_print():
    frame = pd.DataFrame(RANDOM.normal(size=(90, 3)), columns=list("xyz"))
    found = bll.recommend((frame, pd.Series(targets_of("text", 90))))
    assert isinstance(found, Recommendation)
    lines = repr(found).splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 110
    assert lines[2].split() == ["inference", "SVI()"]
    assert "12 weights" in lines[3] and found.reasons["inference"] in repr(found)
    assert lines[-1].split()[:2] == ["or", "SVI(guide=FullRank())"]
    assert found.to_pandas().index[0] == "SVI()" and found.table["fits"].all()
    assert "<pre>" in found._repr_html_()


@pytest.mark.unchecked
def test_errors():
    data = RANDOM.normal(size=(30, 2)), RANDOM.normal(size=30)
    with pytest.raises(TypeError, match=r"recommend: expected a likelihood such as .*, got 'Gaussian'"):
        bll.recommend(data, likelihood="Gaussian")
    with pytest.raises(
        TypeError,
        match=r"recommend: expected a torch.nn.Module or bll.random_features\(\) as backbone, got int",
    ):
        bll.recommend(data, 3)
    with pytest.raises(ValueError, match="memory"):
        bll.recommend(data, memory=-1.0)
    with pytest.raises(ValueError, match=r"takes at most 0.01 GiB, got 30 rows x 2 features"):
        bll.recommend(data, memory=0.01)
    with pytest.raises(ValueError, match="inputs alone"):
        bll.recommend(data[0])


def test_memory_that_is_free():
    assert 0 < available_bytes() < 2**50


# ---- the evidence


def test_estimates_are_near_the_committed_figures():
    from benchmarks.recommend import INFERENCES, MOST_APART, likelihood_of

    rows = table("recommend", "Cost of a fit")
    assert len(rows) > 15
    for row in rows:
        size = FitSize(*row["sizes"])
        found = cost(INFERENCES[row["inference"]], likelihood_of(row["inference"], size.num_outputs), size)
        assert 1 / MOST_APART < found.seconds / row["seconds"] < MOST_APART, row
        assert found.num_bytes >= row["gib"] * GIB, row


@pytest.mark.parametrize(
    ("method", "inference"),
    [
        ("SVI, Diagonal (principal axes)", bll.SVI()),
        ("SVI, FullRank", bll.SVI(bll.guides.FullRank())),
        ("Laplace, Kronecker", bll.Laplace()),
    ],
)
def test_memory_of_wide_layers_is_not_above_the_estimate(method, inference):
    found = [row for row in table("memory", "Fit and predict") if row["method"] == f"bll_pyro, {method}"]
    assert found
    for row in found:
        num_outputs, num_features = (int(number.replace(",", "")) for number in row["size"].split(", "))
        size = FitSize(10_000, num_features, num_outputs)
        estimated = cost(inference, L.Categorical(num_outputs), size).num_bytes / GIB
        assert row["work_gib"] <= estimated <= 4 * row["work_gib"]


def test_the_default_at_many_and_at_few_rows():
    """Within 1% of the lowest NLL at 60,000 rows, the lowest at 2,000; Laplace's epistemic uncertainty is the better detector."""
    for title, share in (("All rows", 1.01), ("2,000 rows", 1.001)):
        ours = {
            row["method"]: row for row in table("inferences", title) if row["method"].startswith("bll_pyro")
        }
        default = ours["bll_pyro, SVI, Diagonal (principal axes)"]
        assert default["nll"] <= share * min(row["nll"] for row in ours.values())
        if title == "All rows":
            laplace = ours["bll_pyro, Laplace, Kronecker"]
            assert laplace["nll"] <= 1.01 * default["nll"]
            assert laplace["auroc_epistemic"] > default["auroc_epistemic"] + 0.05
        else:
            assert ours["bll_pyro, Laplace, Kronecker"]["nll"] > 1.05 * default["nll"]


def test_a_full_covariance_of_few_weights():
    """Near the posterior where independent weights are far from it, and no better on new rows."""
    for title in ("Logistic regression, 2 classes", "Softmax regression, 3 classes"):
        rows = {row["method"]: row for row in table("referee", title)}
        full, default = rows["bll_pyro, SVI, FullRank"], rows["bll_pyro, SVI, Diagonal (principal axes)"]
        assert full["kl"] < 0.1 < 1 < default["kl"]
        assert default["nll"] <= 1.001 * full["nll"]
    small = table("recommend", "Few weights")
    assert np.mean([row["default"] / row["full"] for row in small]) <= 1.02
    wide = {
        row["method"]: row
        for row in table(
            "referee", "Chains on 2,000 rows of Fashion-MNIST features (60,000 x 128, 10 classes): 1,290"
        )
    }
    nearest = min((row for row in wide.values() if row.get("kl") is not None), key=lambda row: row["kl"])
    assert nearest["method"] == "bll_pyro, SVI, FullRank" and MOST_CORRELATED >= 1_290


SIDE_BY_SIDE = {
    "SVI, Diagonal (principal axes)": "SVI()",
    "SVI, Diagonal (plain axes)": "SVI(Diagonal(principal_axes=False))",
    "SVI, MAP": "SVI(MAP())",
    "SVI, MatrixNormal": "SVI(MatrixNormal())",
    "SVI, LowRank(8)": "SVI(LowRank(8))",
    "SVI, BlockDiagonal": "SVI(BlockDiagonal())",
    "SVI, FullRank": "SVI(FullRank())",
    "SVI, Flow": "SVI(Flow())",
    "Laplace, Diagonal": "Laplace(Diagonal())",
    "Laplace, Kronecker": "Laplace()",
    "Laplace, Full": "Laplace(Full())",
    "NUTS": "NUTS()",
}


def side_by_side():
    """The lines of the page's table of all inferences, from the committed figures."""
    many, few, small = (
        {row["method"].removeprefix("bll_pyro, "): row for row in table(name, title)}
        for name, title in (("inferences", "All rows"), ("inferences", "2,000 rows"), ("referee", "Softmax"))
    )
    default = "SVI, Diagonal (principal axes)"
    lines = []
    for name, declared in SIDE_BY_SIDE.items():
        rows = [few[name], many.get(name, {})]
        times = [
            row["fit_seconds"] / group[default]["fit_seconds"] if row else None
            for row, group in zip(rows, (few, many))
        ]
        numbers = [
            (times[0], ".1f"), (times[1], ".1f"), (rows[0]["nll"], ".3f"), (rows[1].get("nll"), ".4f"),
            (rows[0]["auroc_epistemic"], ".2f"), (rows[1].get("auroc_epistemic"), ".2f"), (small.get(name, {}).get("kl"), ".1f"),
        ]  # fmt: skip
        cells = ["-" if number is None else format(number, form) for number, form in numbers]
        lines.append("| " + " | ".join([f"`{declared}`", *cells]) + " |")
    return lines


def test_the_page_has_the_committed_figures_of_every_inference():
    page = (RESULTS.parents[1] / "docs" / "how-to" / "choose-inference.md").read_text()
    assert "\n".join(side_by_side()) in page, "write the lines of side_by_side() into the page"
