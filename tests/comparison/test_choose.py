"""``bll.choose``: ranks as leave-one-out does, gives the fits of ``bll.fit``, reads and extracts once, and refuses beforehand."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bll_pyro as bll
from bll_pyro.comparison import Choice, choice

L, N = bll.likelihoods, bll.priors.Normal(1.0)
GAUSSIAN, ROBUST, VARYING = (
    bll.LastLayer(one, N) for one in (L.Gaussian(), L.StudentT(), L.HeteroscedasticGaussian())
)
COUNTS = [bll.LastLayer(one, N) for one in (L.Poisson(), L.NegativeBinomial())]
QUICK = bll.Laplace()
NUM_SETS = 6


def rows(kind, seed=0, num_rows=200):
    """Two features, and targets whose law is known."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, 2, generator=random)
    f = 0.5 + inputs @ torch.tensor([0.6, -0.3])
    noise = torch.randn(num_rows, generator=random)
    match kind:
        case "Gaussian":
            return inputs, f + 0.5 * noise
        case "HeteroscedasticGaussian":
            return inputs, f + (-1 + 0.8 * inputs[:, 0]).exp() * noise
        case "StudentT":
            chi2 = torch.randn(num_rows, 3, generator=random).square().sum(-1)
            return inputs, f + 0.3 * noise * (3 / chi2).sqrt()
        case "Poisson":
            return inputs, torch.poisson(f.exp(), generator=random).long()
        case "NegativeBinomial":
            gamma = -torch.empty(num_rows, 2).exponential_(generator=random).sum(-1).neg() / 2
            return inputs, torch.poisson(gamma * f.exp(), generator=random).long()
    raise AssertionError(kind)


@cache
def chosen():
    return bll.choose([GAUSSIAN, ROBUST, VARYING], rows("HeteroscedasticGaussian"), inference=QUICK, seed=3)


class Counting(nn.Module):
    """A network that counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, inputs):
        self.seen += len(inputs)
        return torch.cat([inputs, inputs.square()], -1)


class Items(Dataset):
    """Pairs that count how often each is read."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets, self.read = inputs, targets, 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.read += 1
        return self.inputs[index], self.targets[index]


# ---- what comes out


def test_the_ranking_is_that_of_compare_on_the_same_fits():
    data, result = rows("HeteroscedasticGaussian"), chosen()
    expected = bll.compare(result.fits, data).table
    assert list(result.table.index) == list(expected.index) and result.best == "HeteroscedasticGaussian"
    for column in ("elpd", "se", "elpd_diff", "dse", "flagged"):
        np.testing.assert_allclose(
            result.table[column].astype(float), expected[column].astype(float), atol=1e-9
        )
    for name, one in result.loos.items():
        assert result.table.loc[name, "influence"] == pytest.approx(float(one.influence.max()))
    assert result.fit is result.fits[result.best]
    assert result.table["converged"].all() and not result.table["message"].any()


@pytest.mark.parametrize(
    "layer", [GAUSSIAN, ROBUST, VARYING], ids=lambda layer: type(layer.likelihood).__name__
)
def test_each_fit_is_that_of_fit(layer):
    made = chosen().fits[type(layer.likelihood).__name__]
    alone = bll.fit(layer, rows("HeteroscedasticGaussian"), inference=QUICK, seed=3)
    assert made.fingerprint == alone.fingerprint and (made.seed, made.num_rows) == (3, 200)


def test_it_prints_the_winner_and_how_far_the_others_are_behind():
    text = str(chosen())
    assert "best" in text and "nats lower (se" in text and len(text.splitlines()) <= 10
    assert "<pre>" in chosen()._repr_html_()
    assert chosen().to_pandas().equals(chosen().table)
    near = bll.choose([GAUSSIAN, VARYING], rows("Gaussian"), inference=QUICK)
    loser = near.table.index[1]
    assert -near.table.loc[loser, "elpd_diff"] < 2 * near.table.loc[loser, "dse"]
    assert f"no clear difference from {loser}" in str(near)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("HeteroscedasticGaussian", [GAUSSIAN, ROBUST, VARYING]),
        ("StudentT", [GAUSSIAN, ROBUST]),
        ("NegativeBinomial", COUNTS),
        ("Gaussian", [GAUSSIAN, VARYING]),
        ("Poisson", COUNTS),
    ],
)
@pytest.mark.thinned(5)
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")  # without outliers, any large df will do
def test_the_law_of_simulated_rows_is_found(kind, layers):
    """In all but one of the sets; a law that others nest is either found, or not clearly behind."""
    right = 0
    for seed in range(NUM_SETS):
        table = bll.choose(layers, rows(kind, seed), inference=QUICK).table
        behind, error = -table.loc[kind, "elpd_diff"], table.loc[kind, "dse"]
        right += table.index[0] == kind if kind not in ("Gaussian", "Poisson") else behind <= 2 * error
    assert right >= NUM_SETS - 1


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (torch.tensor([0, 1, 4, 2] * 10), {"Poisson", "NegativeBinomial"}),
        (torch.tensor([0.0, 1.0, 4.0, 2.0] * 10), {"Gaussian", "StudentT", "HeteroscedasticGaussian"}),
        (torch.tensor([0, -1, 4, 2] * 10), {"Gaussian", "StudentT", "HeteroscedasticGaussian"}),
    ],
)
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")  # of a df that a few rows do not determine
def test_without_declarations_the_type_of_the_targets_decides(targets, expected):
    inputs = rows("Gaussian", num_rows=40)[0]
    assert set(bll.choose(None, (inputs, targets), inference=QUICK).fits) == expected
    data = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    assert set(bll.choose(None, data, inference=QUICK).fits) == expected


def test_an_exposure_says_that_targets_are_counts():
    inputs, counts = rows("Poisson")
    exposure = torch.linspace(1, 2, len(counts))
    result = bll.choose(None, (inputs, counts.double()), inference=QUICK, exposure=exposure)
    assert set(result.fits) == {"Poisson", "NegativeBinomial"}
    data = bll.Data((inputs, counts.double()), exposure=exposure)
    expected = bll.loo(bll.fit(result.fit.layer, data, inference=QUICK), data).elpd
    assert result.table["elpd"].iloc[0] == pytest.approx(expected)


def test_names():
    given = {"one": GAUSSIAN, "two": ROBUST}
    assert set(bll.choose(given, rows("Gaussian"), inference=QUICK).fits) == set(given)
    heavy = bll.LastLayer(L.StudentT(df=4.0), N)
    assert set(bll.choose([ROBUST, heavy], rows("Gaussian"), inference=QUICK).fits) == {
        "StudentT()",
        "StudentT(df=4)",
    }
    narrow = bll.LastLayer(L.Gaussian(), bll.priors.Normal(0.5))
    names = set(bll.choose([GAUSSIAN, narrow], rows("Gaussian"), inference=QUICK).fits)
    assert all("Normal(scale=" in name for name in names) and len(names) == 2
    with pytest.raises(ValueError, match="expected declarations that differ"):
        bll.choose([GAUSSIAN, bll.LastLayer(L.Gaussian(), N)], rows("Gaussian"))


# ---- weights


def test_a_weight_counts_as_often_as_it_says():
    """Densities by row are those of ``loo``, and their sums are weighted; rows of weight 0 do not count."""
    inputs, targets = rows("HeteroscedasticGaussian")
    weight = torch.arange(200) % 3
    result = bll.choose([GAUSSIAN, VARYING], (inputs, targets), inference=QUICK, sample_weight=weight)
    data = bll.Data((inputs, targets), sample_weight=weight)
    times = weight.double().numpy()
    by_row = {name: times * np.asarray(bll.loo(fit, data).elpd_i) for name, fit in result.fits.items()}
    for name, values in by_row.items():
        difference = values - by_row[result.best]
        line = result.table.loc[name]
        assert line["elpd"] == pytest.approx(values.sum()) and line["elpd_diff"] == pytest.approx(
            difference.sum()
        )
        assert line["se"] == pytest.approx(math.sqrt(200) * values.std())
        assert line["dse"] == pytest.approx(math.sqrt(200) * difference.std())
    kept = weight > 0
    spoiled = targets.where(kept, targets + 1000)  # whose weights are 0
    again = bll.choose([GAUSSIAN, VARYING], (inputs, spoiled), inference=QUICK, sample_weight=weight)
    np.testing.assert_allclose(again.table["elpd"], result.table["elpd"], rtol=1e-3)


# ---- features, once


@pytest.mark.parametrize("form", ["arrays", "dataset", "loader", "shuffled loader"])
def test_rows_are_read_once_and_the_backbone_runs_once_a_row(form):
    inputs, targets = rows("HeteroscedasticGaussian", num_rows=80)
    items, network = Items(inputs, targets), Counting()
    data = {
        "arrays": (inputs, targets),
        "dataset": items,
        "loader": DataLoader(items, batch_size=32),
        "shuffled loader": DataLoader(items, batch_size=32, shuffle=True),
    }[form]
    result = bll.choose([GAUSSIAN, VARYING], data, network, QUICK)
    assert network.seen == 80
    assert form == "arrays" or 80 <= items.read <= 84  # an example or two before, to see what there is
    assert result.fit.backbone is network and result.fit.posterior.frame.feature_scale == "common"
    if form != "shuffled loader":
        alone = bll.fit(result.fit.layer, data, network, QUICK)
        assert alone.fingerprint == result.fit.fingerprint
        torch.testing.assert_close(alone.predict(inputs).mean, result.fit.predict(inputs).mean)


def test_features_in_a_store_serve_later_calls(tmp_path):
    inputs, targets = rows("Gaussian", num_rows=40)
    network = Counting()
    for _ in range(2):
        result = bll.choose([GAUSSIAN, ROBUST], (inputs, targets), network, QUICK, store=tmp_path)
    result.fit.predict(inputs)
    assert network.seen == 40 and result.fit.store == tmp_path


def test_a_table_in_a_dataset_is_a_table():
    inputs, targets = rows("Gaussian", num_rows=40)
    inputs = inputs * torch.tensor([1.0, 1000.0])
    result = bll.choose([GAUSSIAN, ROBUST], Items(inputs, targets), inference=QUICK)
    assert result.fit.posterior.frame.feature_scale == "columns"
    assert result.fit.fingerprint == bll.fit(result.fit.layer, (inputs, targets), inference=QUICK).fingerprint


def test_a_store_of_features_and_many_targets():
    inputs, targets = rows("HeteroscedasticGaussian", num_rows=60)
    data = bll.Features.from_tensors(inputs, torch.stack([targets, targets.flip(0)], 1))
    result = bll.choose(None, data, inference=QUICK)
    assert len(result.fits) == 3 and result.fit.predict(inputs).mean.shape == (60, 2)


@pytest.mark.parametrize(
    "inference",
    [
        bll.SVI(num_epochs=50),
        bll.SVI(bll.guides.FullRank(), num_epochs=50),
        bll.SVI(bll.guides.MAP(), num_epochs=50),
        pytest.param(
            bll.NUTS(num_warmup=20, num_samples=20, num_chains=2, num_processes=1), marks=pytest.mark.nuts
        ),
    ],
    ids=["mean field", "full rank", "point", "draws"],
)
@pytest.mark.filterwarnings("ignore::bll_pyro.FitWarning")
def test_every_inference_that_has_leave_one_out(inference):
    result = bll.choose(
        [GAUSSIAN, VARYING], rows("HeteroscedasticGaussian", num_rows=60), inference=inference
    )
    assert result.best == "HeteroscedasticGaussian" and len(result.fits) == 2


def test_exact_inference_chooses_among_noises_and_priors():
    inputs, targets = rows("Gaussian")
    given = {str(scale): bll.LastLayer(L.Gaussian(scale), N) for scale in (0.1, 0.5, 3.0)}
    result = bll.choose(given, (inputs, targets), inference=bll.Exact())
    assert result.best == "0.5"


# ---- what fails


def test_a_fit_that_fails_is_named_and_cannot_win(monkeypatch):
    fit = choice.fit

    def failing(layer, *args, **kwargs):
        if layer is VARYING:
            raise torch.linalg.LinAlgError("singular")
        return fit(layer, *args, **kwargs)

    monkeypatch.setattr(choice, "fit", failing)
    with pytest.warns(bll.FitWarning, match="HeteroscedasticGaussian: the fit failed: singular"):
        result = bll.choose([VARYING, GAUSSIAN, ROBUST], rows("HeteroscedasticGaussian"), inference=QUICK)
    assert set(result.fits) == set(result.loos) == {"Gaussian", "StudentT"} and result.best in result.fits
    assert list(result.table.index)[-1] == "HeteroscedasticGaussian"
    line = result.table.loc["HeteroscedasticGaussian"]
    assert math.isnan(line["elpd"]) and not line["converged"] and "singular" in line["message"]
    assert "failed: the fit failed: singular" in str(result)
    monkeypatch.setattr(choice, "fit", lambda *args, **kwargs: failing(VARYING))
    with pytest.raises(
        ValueError, match=r"expected a fit that does not fail, got none; .*Gaussian.*singular"
    ):
        bll.choose([GAUSSIAN, ROBUST], rows("Gaussian"), inference=QUICK)


def test_densities_that_are_not_finite_cannot_win(monkeypatch):
    loo = choice.loo

    def broken(fit, data):
        result = loo(fit, data)
        if fit.layer is GAUSSIAN:
            result.elpd_i[3] = math.inf
        return result

    monkeypatch.setattr(choice, "loo", broken)
    with pytest.warns(bll.FitWarning, match="Gaussian: leave-one-out densities are not finite"):
        result = bll.choose([GAUSSIAN, ROBUST], rows("Gaussian"), inference=QUICK)
    assert result.best == "StudentT" and list(result.fits) == ["StudentT"]


def test_a_fit_that_has_not_converged_says_so_with_its_name(monkeypatch):
    fit = choice.fit

    def stopping(layer, *args, **kwargs):
        made = fit(layer, *args, **kwargs)
        if layer is VARYING:
            made.trace.stop("too few steps")
        return made

    monkeypatch.setattr(choice, "fit", stopping)
    with pytest.warns(bll.FitWarning, match="^HeteroscedasticGaussian: too few steps$") as said:
        result = bll.choose([GAUSSIAN, VARYING], rows("HeteroscedasticGaussian"), inference=QUICK)
    assert len(said) == 1
    assert result.table["converged"].to_dict() == {"HeteroscedasticGaussian": False, "Gaussian": True}
    assert result.table.loc["HeteroscedasticGaussian", "message"] == "too few steps"
    assert result.best == "HeteroscedasticGaussian" and "not converged: too few steps" in str(result)


def test_what_does_not_suit_is_refused_before_anything_is_fitted(monkeypatch):
    monkeypatch.setattr(choice, "fit", lambda *args, **kwargs: pytest.fail("something was fitted"))
    inputs, targets = rows("Gaussian")
    network = Counting()
    for call, expected in (
        (lambda: bll.choose([GAUSSIAN, ROBUST], (inputs, targets), inference=bll.Exact()), "'StudentT': Exact: expected"),
        (lambda: bll.choose([GAUSSIAN, COUNTS[0]], (inputs, targets)), "choose: expected densities of one kind"),
        (lambda: bll.choose(COUNTS, (inputs, targets), network), "'Poisson': .*expected"),
        (lambda: bll.choose([GAUSSIAN], (inputs, targets)), "at least two declarations, got 1"),
        (lambda: bll.choose([GAUSSIAN, ROBUST], inputs), "expected inputs and targets"),
        (lambda: bll.choose([GAUSSIAN, ROBUST], (inputs[:, 0], targets)), r"'Gaussian': inputs: expected features"),
        (
            lambda: bll.choose([GAUSSIAN, ROBUST], (inputs, targets), exposure=torch.ones(200)),
            "'Gaussian': exposure: expected a likelihood of counts",
        ),
        (
            lambda: bll.choose([GAUSSIAN, ROBUST], (inputs, targets), network, bll.SVI(backbone_learning_rate=1e-3)),
            "leaves the backbone as it is",
        ),
        (
            lambda: bll.choose([GAUSSIAN, ROBUST], (inputs, targets), inference=bll.NUTS(), sample_weight=torch.ones(200)),
            "choose: expected rows without sample_weight",
        ),
        (
            lambda: bll.choose([bll.LastLayer(L.Gaussian(), bll.priors.Normal(loc=torch.zeros(1, 5))), ROBUST], (inputs, targets)),
            r"choose, 'Gaussian': .*expected",
        ),
        (lambda: bll.choose(None, (inputs, (targets > 0).long())), "got labels 0 and 1"),
        (lambda: bll.choose([GAUSSIAN, ROBUST], (inputs, targets.fill_(1.0))), "'Gaussian': .*expected"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=expected):
            call()
    assert network.seen == 0


@pytest.mark.unchecked
def test_wrong_types_are_refused():
    data = rows("Gaussian")
    for call, expected in (
        (lambda: bll.choose(GAUSSIAN, data), "expected declarations such as .*, got LastLayer"),
        (lambda: bll.choose([L.Gaussian(), ROBUST], data), "got Gaussian for '0'; a likelihood goes into"),
        (
            lambda: bll.choose([GAUSSIAN, ROBUST], data, inference=bll.guides.MAP()),
            "inference: expected an inference",
        ),
        (
            lambda: bll.choose([GAUSSIAN, ROBUST], data, lambda x: x),
            r"backbone: expected a torch\.nn\.Module",
        ),
    ):
        with pytest.raises(TypeError, match=expected):
            call()


def test_the_result_is_a_choice():
    assert isinstance(chosen(), Choice)
