"""Sets of classes: scores by hand, and coverage of simulated classes inside the exact band, right model or wrong."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import binom, kstest

from bll_pyro import conformal

P = np.array([[0.1, 0.6, 0.3], [0.4, 0.2, 0.4]])


def simulated(num_rows: int, seed: int, sharpen: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(num_rows, 6, dtype=torch.float64, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return (sharpen * logits).softmax(1), targets


def test_scores_by_hand():
    np.testing.assert_allclose(conformal.lac_scores(P), [[0.9, 0.4, 0.7], [0.6, 0.8, 0.6]])
    # 0.6, then 0.3, then 0.1; in the second row the tie is ranked by the number of the class
    np.testing.assert_allclose(conformal.aps_scores(P), [[1.0, 0.6, 0.9], [0.4, 1.0, 0.8]])
    np.testing.assert_allclose(conformal.own_scores(conformal.lac_scores(P), [1, 0]), [0.4, 0.6])


def test_randomised_scores_lie_between_the_classes_above_and_the_class_itself():
    p, _ = simulated(50, seed=0)
    upper = conformal.aps_scores(p)
    scores = conformal.aps_scores(p, torch.Generator().manual_seed(1))
    u = (scores - (upper - p.numpy())) / p.numpy()
    np.testing.assert_allclose(u, np.broadcast_to(u[:, :1], u.shape), atol=1e-9)  # one draw a row
    expected = torch.rand((50, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    np.testing.assert_allclose(u[:, :1], expected, atol=1e-9)


def test_randomised_scores_of_the_true_class_are_uniform_for_the_right_model():
    p, y = simulated(5000, seed=2)
    own = conformal.own_scores(conformal.aps_scores(p, torch.Generator().manual_seed(3)), y)
    assert kstest(own, "uniform").pvalue > 0.01
    p_wrong, y = simulated(5000, seed=2, sharpen=1.5)
    own = conformal.own_scores(conformal.aps_scores(p_wrong, torch.Generator().manual_seed(3)), y)
    assert kstest(own, "uniform").pvalue < 1e-6


def test_scores_leave_the_global_random_state():
    state = torch.get_rng_state()
    conformal.aps_scores(P, torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.get_rng_state())


def test_sets_and_their_coverage():
    sets = conformal.prediction_sets(conformal.lac_scores(P), 0.6)
    np.testing.assert_array_equal(sets, [[False, True, False], [True, False, True]])
    assert conformal.set_coverage(sets, [1, 1]) == 0.5
    assert conformal.set_coverage(torch.tensor(sets), torch.tensor([1, 2])) == 1


def test_empty_sets_get_the_likeliest_class_on_request():
    scores = conformal.lac_scores(P)
    assert not conformal.prediction_sets(scores, 0.5)[1].any()
    np.testing.assert_array_equal(
        conformal.prediction_sets(scores, 0.5, allow_empty=False),
        [[False, True, False], [True, False, False]],
    )
    assert conformal.prediction_sets(conformal.aps_scores(P), 0.3).sum() == 0
    assert conformal.prediction_sets(scores, np.inf).all()


@pytest.mark.parametrize("alpha", [0.05, 0.2])
@pytest.mark.parametrize("sharpen", [1.0, 2.5])
@pytest.mark.parametrize("family", ["lac", "aps", "randomised aps"])
def test_coverage_lies_in_its_beta_binomial_band_over_repeated_splits(family, sharpen, alpha):
    num_repeats, num_calibration, num_new, prob = 200, 150, 250, 0.95
    score = {
        "lac": conformal.lac_scores,
        "aps": conformal.aps_scores,
        "randomised aps": partial(conformal.aps_scores, generator=torch.Generator().manual_seed(0)),
    }[family]
    lower, upper = conformal.coverage_band(num_calibration, num_new, alpha, prob)
    p, y = simulated(num_repeats * (num_calibration + num_new), seed=4, sharpen=sharpen)
    rows = np.arange(len(y)).reshape(num_repeats, -1)
    inside = 0
    for old, new in ((r[:num_calibration], r[num_calibration:]) for r in rows):
        threshold = conformal.conformal_quantile(conformal.own_scores(score(p[old]), y[old]), alpha)
        sets = conformal.prediction_sets(score(p[new]), threshold)
        inside += lower <= conformal.set_coverage(sets, y[new]) <= upper
    assert inside >= binom.ppf(1e-4, num_repeats, prob)


def test_sharper_models_give_smaller_sets_of_the_same_coverage():
    (good, y), blurred = simulated(4000, seed=5), simulated(4000, seed=5)[0]
    blurred = 0.3 * blurred + 0.7 * blurred[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
    sizes = []
    for p in (good, blurred):
        threshold = conformal.conformal_quantile(
            conformal.own_scores(conformal.lac_scores(p[:2000]), y[:2000]), 0.1
        )
        sets = conformal.prediction_sets(conformal.lac_scores(p[2000:]), threshold)
        assert conformal.set_coverage(sets, y[2000:]) == pytest.approx(0.9, abs=0.04)
        sizes.append(sets.sum(1).mean())
    assert sizes[0] < sizes[1] - 0.5


def test_refusals():
    for score in (conformal.lac_scores, conformal.aps_scores):
        with pytest.raises(ValueError, match="rows that sum to 1"):
            score(P * 0.9)
        with pytest.raises(ValueError, match=r"\[rows, classes\] with 2 classes or more, got \(3,\)"):
            score(P[0])
    with pytest.raises(ValueError, match="targets: expected whole numbers from 0 to 2, got 3 in row 1"):
        conformal.own_scores(P, [0, 3])
    with pytest.raises(ValueError, match=r"scores: expected shape \[rows, classes\], got \(3,\)"):
        conformal.prediction_sets(P[0], 0.5)
    with pytest.raises(ValueError, match="threshold: expected a number, got nan"):
        conformal.prediction_sets(P, np.nan)
    with pytest.raises(
        ValueError, match=r"sets: expected 0 or 1, got 0.4 to 0.6; pass the result of prediction_sets"
    ):
        conformal.set_coverage(P, [1, 0])
