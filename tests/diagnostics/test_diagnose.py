"""``bll.diagnose``: passes what is right, and flags each thing that was made wrong on purpose."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import bll_pyro as bll
from bll_pyro.diagnostics import Grade
from bll_pyro.diagnostics.guide import nats_to_full_rank
from bll_pyro.diagnostics.optimisation import distance_to_optimum, rise_of
from bll_pyro.diagnostics.study import Study
from bll_pyro.gaussian.precision import precision, quadratic
from bll_pyro.inference import Trace
from bll_pyro.posterior import DrawsPosterior

L, G, P = bll.likelihoods, bll.guides, bll.priors
NUM_ROWS = 150
LOOKS = (Grade.LOOK, Grade.WRONG)


def numbers(num_rows=NUM_ROWS, seed=0):
    """Four features with correlation 0.92, weights of size 1, noise 0.5."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(num_rows, 1, generator=random, dtype=torch.float64)
    inputs = common + 0.3 * torch.randn(num_rows, 4, generator=random, dtype=torch.float64)
    f = inputs @ torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=torch.float64)
    return inputs, f + 0.5 * torch.randn(num_rows, generator=random, dtype=torch.float64)


def classes(num_rows=400):
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_rows, 5, generator=random, dtype=torch.float64)
    f = inputs @ torch.randn(5, 3, generator=random, dtype=torch.float64)
    return inputs, torch.multinomial(f.softmax(-1), 1, generator=random).squeeze(-1)


def linear(prior=None, noise=0.5):
    prior = prior or P.Normal(1.0)
    return bll.LastLayer(L.Gaussian(noise), prior=prior)


def fitted(layer, data, inference, **options):
    return bll.fit(layer, data, inference=inference, **options)


def study(fit, data):
    return Study(fit, fit.rows(data), 1000, 2000, 0)


@pytest.fixture(scope="module")
def good():
    return fitted(linear(), numbers(), bll.SVI())


@pytest.fixture(scope="module")
def plain():
    return fitted(linear(), numbers(), bll.SVI(G.Diagonal(principal_axes=False)))


@pytest.fixture(scope="module")
def diagnosed(good):
    return bll.diagnose(good, *numbers())


def test_a_good_fit_passes(diagnosed):
    assert diagnosed.verdict is Grade.OK, str(diagnosed)
    assert diagnosed.flagged == []


@pytest.mark.parametrize(
    ("layer", "data", "inference"),
    [
        (linear(noise=None), numbers(), bll.Exact()),
        (linear(), numbers(), bll.SVI(G.FullRank())),
        (
            bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0)),
            classes(1500),
            bll.Laplace(bll.curvatures.Full()),
        ),
    ],
    ids=["exact", "full rank", "laplace"],
)
@pytest.mark.slow
def test_good_fits_of_other_kinds_pass(layer, data, inference):
    found = bll.diagnose(fitted(layer, data, inference), data)
    assert found.verdict is Grade.OK, str(found)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
def test_too_high_a_learning_rate_is_flagged():
    layer = bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0))
    fit = fitted(layer, classes(), bll.SVI(learning_rate=8.0, num_epochs=60, batch_size=64))
    found = bll.diagnose(fit, classes())
    assert found["optimum"].verdict in LOOKS, str(found)
    assert "lower learning rate" in found["optimum"].remedy
    assert "8" in found["optimum"].remedy


def test_too_few_steps_are_flagged():
    layer = bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0))
    fit = fitted(layer, classes(), bll.SVI(num_epochs=1, batch_size=400))
    found = bll.diagnose(fit, classes())
    assert found["optimum"].verdict in LOOKS, str(found)
    assert "more steps" in found["optimum"].remedy and "there were 1" in found["optimum"].remedy


def test_an_elbo_that_still_climbs_is_flagged(good):
    """The trace alone: a slope far above its noise, and a level one within it."""
    random = np.random.default_rng(0)
    steps = np.arange(600)
    for slope, expected in ((0.001, True), (0.0, False)):
        elbo = torch.from_numpy(NUM_ROWS * (slope * steps + 0.02 * random.standard_normal(600)))
        climbing = replace(good, trace=replace(good.trace, elbo=elbo))
        found = bll.diagnose(climbing, *numbers())["ELBO trace"]
        assert (found.verdict in LOOKS) is expected, found


def test_the_slope_has_the_standard_error_of_a_line():
    """Against SciPy."""
    from scipy import stats

    values = np.random.default_rng(1).standard_normal(50) + 0.1 * np.arange(50)
    line = stats.linregress(np.arange(50), values)
    assert rise_of(values) == pytest.approx((49 * line.slope, 49 * line.stderr))


def test_plain_mean_field_on_correlated_features_is_flagged(plain, good):
    found = bll.diagnose(plain, *numbers())
    assert found["gap to full rank"].verdict is Grade.WRONG, str(found)
    assert "FullRank" in found["gap to full rank"].remedy
    assert bll.diagnose(good, *numbers())["gap to full rank"].verdict is Grade.OK


def test_the_gap_is_that_of_a_full_rank_fit(plain):
    """No second fit is made, and yet it is what a second fit gains."""
    full = fitted(linear(), numbers(), bll.SVI(G.FullRank()))
    assert nats_to_full_rank(study(plain, numbers())) == pytest.approx(full.elbo - plain.elbo, abs=0.15)
    assert nats_to_full_rank(study(full, numbers())) == pytest.approx(0.0, abs=0.05)


def test_the_distance_to_the_optimum_is_that_of_moved_means():
    """Move the means of the exact posterior: the distance is that in its own standard deviations."""
    data = numbers()
    fit = fitted(bll.LastLayer(L.Gaussian(0.5), prior=P.Normal(1.0)), data, bll.Exact())
    weights = fit.posterior.latents.weights
    moved = torch.tensor([[0.3, -0.2, 0.1, 0.0, 0.05]], dtype=torch.float64)
    latents = replace(fit.posterior.latents, weights=replace(weights, loc=weights.loc + moved))
    away = replace(fit, posterior=replace(fit.posterior, latents=latents))
    assert distance_to_optimum(study(fit, data))[0] == pytest.approx(0.0, abs=1e-5)
    square = float(quadratic(precision(weights), moved))
    distance, nats = distance_to_optimum(study(away, data))
    assert distance == pytest.approx(math.sqrt(square / 5), rel=1e-5)
    assert nats == pytest.approx(square / 2, rel=1e-5)


def test_a_prior_in_conflict_with_the_data_is_flagged():
    fit = fitted(linear(P.Normal(0.02)), numbers(), bll.SVI())
    found = bll.diagnose(fit, *numbers())
    assert found["prior against posterior"].verdict is Grade.WRONG, str(found)
    assert found["prior sensitivity"].verdict in LOOKS
    assert "wider prior" in found["prior against posterior"].remedy


@pytest.mark.slow
def test_a_prior_that_agrees_is_not_flagged_by_chance():
    """Targets from the prior itself: at most a few of twenty data sets are flagged."""
    flagged = 0
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        inputs = torch.randn(40, 3, generator=random, dtype=torch.float64)
        targets = inputs @ (0.8 * torch.randn(3, generator=random, dtype=torch.float64))
        targets = targets + 0.5 * torch.randn(40, generator=random, dtype=torch.float64)
        layer = bll.LastLayer(L.Gaussian(0.5), prior=P.Normal(0.8), standardize=False, bias=False)
        fit = fitted(layer, (inputs, targets), bll.Exact())
        found = bll.diagnose(fit, inputs, targets, num_draws=200, num_rows=2)
        flagged += found["prior against posterior"].verdict is not Grade.OK
    assert (
        flagged <= 2
    )  # at 5 % a draw of the weights itself would be flagged; its mean over the posterior less often


@pytest.mark.nuts
def test_chains_with_divergences_are_flagged():
    layer = linear(P.Horseshoe())
    inference = bll.NUTS(
        num_warmup=20, num_samples=60, num_chains=2, target_accept=0.3, max_tree_depth=6, num_processes=1
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        fit = fitted(layer, numbers(40), inference)
    found = bll.diagnose(fit, *numbers(40))
    assert int(fit.trace.statistics["sample_stats"]["diverging"].sum()) > 0
    assert found["divergences"].verdict in LOOKS, str(found)
    assert "target_accept" in found["divergences"].remedy
    assert found["inference"].verdict is Grade.LOOK


def test_good_chains_pass():
    """Draws of the exact posterior, as two chains that have mixed."""
    exact = fitted(linear(noise=None), numbers(), bll.Exact())
    names = ("layer", "frame", "target_shape", "num_outputs", "learned")
    draws = {k: v.reshape(2, 1000, *v.shape[2:]) for k, v in exact.posterior.sample(2000).items()}
    posterior = DrawsPosterior(**{name: getattr(exact.posterior, name) for name in names}, draws=draws)
    trace = Trace(statistics={"sample_stats": {"diverging": torch.zeros(2, 1000, dtype=torch.bool)}})
    found = bll.diagnose(replace(exact, posterior=posterior, trace=trace, inference=bll.NUTS()), *numbers())
    assert found.verdict is Grade.OK, str(found)
    assert {"R-hat", "effective draws", "divergences"} <= {check.name for check in found}


def test_independent_draws_have_no_r_hat(diagnosed):
    """R-hat and ESS of independent draws prove nothing and are not shown."""
    names = {check.name for check in diagnosed}
    assert not names & {"R-hat", "effective draws", "divergences"}
    assert diagnosed["chains"].verdict is Grade.NOT_CHECKED


def test_a_backbone_that_has_seen_the_rows_makes_leave_one_out_optimistic(good):
    inputs, targets = numbers()
    nothing = bll.diagnose(good, inputs, targets)["rows of the backbone"]
    assert nothing.verdict is Grade.NOT_CHECKED
    fresh = bll.diagnose(good, inputs, targets, seen_by_backbone=False)["rows of the backbone"]
    assert fresh.verdict is Grade.OK
    seen = bll.diagnose(good, inputs, targets, seen_by_backbone=True)["rows of the backbone"]
    assert seen.verdict is Grade.LOOK and "optimistic" in seen.finding


def test_some_rows_of_the_backbone_are_compared_with_the_others(good):
    inputs, targets = numbers()
    elpd = bll.loo(good, (inputs, targets)).elpd_i.values
    mask = np.zeros(NUM_ROWS, dtype=bool)
    mask[np.argsort(elpd)[75:]] = True  # the half that is predicted better
    by_mask = bll.diagnose(good, inputs, targets, seen_by_backbone=mask)["rows of the backbone"]
    by_number = bll.diagnose(good, inputs, targets, seen_by_backbone=np.flatnonzero(mask))
    assert by_mask.finding == by_number["rows of the backbone"].finding
    gap = elpd[mask].mean() - elpd[~mask].mean()
    assert f"by {gap:.3f}" in by_mask.finding and by_mask.value == pytest.approx(0.5)


def test_the_wrong_likelihood_shows_in_the_pit():
    inputs, targets = numbers(300)
    heavy = outliers(targets)
    fit = fitted(linear(noise=None), (inputs, heavy), bll.Exact())
    found = bll.diagnose(fit, inputs, heavy)["predictive (PIT)"]
    assert found.verdict in LOOKS and "too wide" in found.finding
    pit = bll.diagnose(fit, inputs, heavy).to_dataset()["pit"].values
    assert np.isfinite(pit).all() and found.value > 0.05


def outliers(targets):
    return torch.where(
        torch.arange(len(targets)) % 10 == 0,
        targets + 15 * (-1.0) ** (torch.arange(len(targets)) // 10),
        targets,
    )


def test_the_pit_leaves_the_row_out():
    """With as many weights as half the rows a row's own prediction is much too good; without the row it is right."""
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(80, 40, generator=random, dtype=torch.float64)
    targets = inputs @ torch.randn(40, generator=random, dtype=torch.float64)
    targets = targets + torch.randn(80, generator=random, dtype=torch.float64)
    layer = bll.LastLayer(L.Gaussian(1.0), prior=P.Normal(1.0), standardize=False, bias=False)
    fit = fitted(layer, (inputs, targets), bll.Exact())
    assert bll.diagnose(fit, inputs, targets)["predictive (PIT)"].verdict is Grade.OK
    own = bll.metrics.pit(fit.predict(inputs).cdf(targets))
    assert own.p_value < 0.01


@pytest.mark.slow
def test_counts_with_more_scatter_than_poisson_are_flagged():
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(300, 2, generator=random, dtype=torch.float64)
    rate = (inputs[:, 0] + 1.5 + 1.0 * torch.randn(300, generator=random, dtype=torch.float64)).exp()
    counts = torch.poisson(rate, generator=random)
    for likelihood, expected in ((L.Poisson(), True), (L.NegativeBinomial(), False)):
        layer = bll.LastLayer(likelihood, prior=P.Normal(1.0))
        fit = fitted(layer, (inputs, counts), bll.SVI(num_epochs=300))
        found = bll.diagnose(fit, inputs, counts)["predictive (PIT)"]
        assert (found.verdict is Grade.WRONG) is expected, found


@pytest.mark.filterwarnings("ignore:the ELBO was still rising:bll_pyro.FitWarning")
def test_timid_class_probabilities_are_flagged():
    layer = bll.LastLayer(L.Categorical(3), prior=P.Normal(0.05))
    inputs, labels = classes()
    fit = fitted(layer, (inputs, labels), bll.SVI(num_epochs=200))
    found = bll.diagnose(fit, inputs, labels)["predictive (events)"]
    assert found.verdict is Grade.WRONG and "underconfident" in found.remedy, found


@pytest.mark.slow
def test_labels_and_several_targets_are_judged():
    inputs, targets = numbers()
    both = torch.stack([targets, targets.flip(0)], 1)
    fit = fitted(bll.LastLayer(L.Gaussian(), prior=P.Normal(1.0)), (inputs, both), bll.SVI(num_epochs=400))
    assert bll.diagnose(fit, inputs, both)["predictive (PIT)"].verdict is Grade.OK
    labels = (targets > 0).long()
    fit = fitted(bll.LastLayer(L.Bernoulli(), prior=P.Normal(1.0)), (inputs, labels), bll.SVI(num_epochs=400))
    assert bll.diagnose(fit, inputs, labels)["predictive (events)"].verdict is Grade.OK


def test_a_point_has_no_spread():
    layer = bll.LastLayer(L.Categorical(3), prior=P.Normal(1.0))
    inputs, labels = classes()
    found = bll.diagnose(fitted(layer, (inputs, labels), bll.SVI(G.MAP())), inputs, labels)
    assert found["gap to full rank"].verdict is Grade.LOOK
    assert found["k-hat of the guide"].verdict is Grade.NOT_CHECKED


def test_many_weights_are_judged_in_output_space():
    """Of more than a hundred weights k-hat is told but not judged, and sensitivity is that of the outputs."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 40, generator=random)
    labels = (inputs[:, :3] + torch.randn(120, 3, generator=random)).argmax(-1)
    layer = bll.LastLayer(L.Categorical(3), prior=P.Normal(0.3))
    fit = fitted(layer, (inputs, labels), bll.SVI())
    found = bll.diagnose(fit, inputs, labels, num_draws=200)
    assert found["k-hat of the guide"].verdict is Grade.NOT_CHECKED
    assert math.isfinite(found["k-hat of the guide"].value)
    assert "outputs of a row move" in found["prior sensitivity"].finding


def test_sensitivity_of_the_outputs_is_that_of_a_fit_with_a_stronger_prior():
    """Doubling the log prior of a Normal divides its scale by the root of two; outputs move as said, to first order."""
    from bll_pyro.diagnostics.prior import _by_response

    data = numbers()

    def exact(strength):
        scale = 0.5 / math.sqrt(strength)
        layer = bll.LastLayer(L.Gaussian(0.5), prior=P.Normal(scale), bias=False, standardize=False)
        return fitted(layer, data, bll.Exact())

    fit, stronger = exact(1.0), exact(2**0.1)
    outputs = fit.posterior.outputs(data[0])
    shift = (stronger.posterior.outputs(data[0]).mean - outputs.mean) / outputs.variance.sqrt()
    expected = float(shift.square().mean().sqrt()) / 0.1
    assert _by_response(study(fit, data), "x").value == pytest.approx(expected, rel=0.05)


def test_it_prints_as_a_table_and_gives_a_dataset(diagnosed):
    text = str(diagnosed)
    assert text.startswith("check") and text.endswith("Verdict: ok")
    assert all(check.name in text for check in diagnosed)
    assert max(map(len, text.splitlines())) <= 120
    table = diagnosed.to_pandas()
    assert list(table.columns) == ["verdict", "value", "finding", "remedy"] and len(table) == len(diagnosed)
    data = diagnosed.to_dataset()
    assert data.attrs["verdict"] == "ok" and data.sizes == {"check": len(diagnosed), "obs": NUM_ROWS}
    assert str(data["verdict"].sel(check="optimum").item()) == "ok"
    assert np.isfinite(data["elpd_loo"]).all()
    assert "<table" in diagnosed._repr_html_()
    with pytest.raises(KeyError, match="no check 'nothing'"):
        diagnosed["nothing"]


def test_the_same_seed_gives_the_same_diagnosis(good, diagnosed):
    again = bll.diagnose(good, numbers())
    assert str(again) == str(diagnosed)


def test_wrong_input_is_refused_before_work(good):
    inputs, targets = numbers()
    with pytest.raises(ValueError, match="expected the 150 rows"):
        bll.diagnose(good, inputs[:50], targets[:50])
    with pytest.raises(ValueError, match="inputs and targets"):
        bll.diagnose(good, inputs)
    for seen in ([0, 150], np.ones(3, dtype=bool), [0.5]):
        with pytest.raises(ValueError, match="seen_by_backbone"):
            bll.diagnose(good, inputs, targets, seen_by_backbone=seen)
    for option in ({"num_draws": 1}, {"num_rows": 0}):
        with pytest.raises(ValueError, match="whole number >= 2"):
            bll.diagnose(good, inputs, targets, **option)
