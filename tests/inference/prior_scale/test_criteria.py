"""The prior scale that the library picks, against a grid of given scales on test rows, in regimes that pull it apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import bll_pyro as bll
from benchmarks import scales
from bll_pyro.declaration import from_plain, to_plain
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference import rows as inside
from bll_pyro.inference.prior_scale.choose import smallest_scale
from bll_pyro.inference.prior_scale.folds import divided, fold_of
from bll_pyro.inference.prior_scale.search import ScaleGrid, ScalePath
from bll_pyro.inference.start import warm_start
from bll_pyro.inference.svi.side_by_side import FoldFits, principal
from bll_pyro.model import Model
from bll_pyro.scope import generator

NUM_CLASSES, NUM_TEST = 3, 2000
Rows = tuple[Tensor, Tensor]


def classes(
    num_rows: int, rank: int, num_features: int, signal: float, seed: int, wrong: float = 0.0
) -> tuple[Rows, Rows]:
    """The benchmark's data: rows to fit, and rows to predict."""
    rows = scales.classes(num_rows, rank, num_features, signal, seed, wrong, num_test=NUM_TEST)
    return (rows.features, rows.labels), (rows.test_features, rows.test_labels)


REGIMES = {
    "many rows": lambda: classes(3000, 10, 10, 3.0, 0),
    "few rows, almost separable": lambda: classes(80, 8, 160, 60.0, 1),
    "noisy labels": lambda: classes(300, 20, 20, 30.0, 2, wrong=0.4),
    "pure noise": lambda: classes(200, 30, 30, 0.0, 4),
}
LEFT_OUT = bll.SVI(scale_criterion=bll.criteria.LeaveOneOut())
CROSS_VALIDATED = bll.Laplace(scale_criterion=bll.criteria.CrossValidation())
GRID = (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5)


def judged(rows: tuple[Rows, Rows], num_classes: int, inference: bll.SVI | bll.Laplace, scale: float | None):
    """Test NLL, nats a row, and the fit."""
    train, (features, labels) = rows
    layer = bll.LastLayer(bll.likelihoods.Categorical(num_classes), bll.priors.Normal(scale))
    fit = bll.fit(layer, train, inference=inference)
    return -float(fit.predict(features).log_prob(labels).mean()), fit


def best_of(
    rows: tuple[Rows, Rows], num_classes: int, inference: bll.SVI | bll.Laplace, grid: tuple
) -> float:
    """Lowest test NLL over a grid of given scales, for which no criterion is asked."""
    return min(judged(rows, num_classes, inference, scale)[0] for scale in grid)


def check(
    rows: tuple[Rows, Rows],
    num_classes: int,
    inference: bll.SVI | bll.Laplace,
    best: float,
    most: float = 1.02,
) -> bll.Fit:
    """The scale that is picked is near the best of a grid, and uncertainty varies over the inputs."""
    loss, fit = judged(rows, num_classes, inference, None)
    assert loss <= most * best, (loss, best)
    prediction = fit.predict(rows[1][0])
    assert float(prediction.total.std()) > 1e-5
    assert float(prediction.epistemic.std()) > 1e-5
    return fit


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.thinned(3)
def test_laplace_is_close_to_the_best_of_a_grid(regime: str) -> None:
    rows = REGIMES[regime]()
    check(rows, NUM_CLASSES, CROSS_VALIDATED, best_of(rows, NUM_CLASSES, CROSS_VALIDATED, GRID))


@pytest.mark.slow
@pytest.mark.parametrize("regime", [name for name in REGIMES if not name.startswith("few")])
def test_svi_is_close_to_the_best_of_a_grid(regime: str) -> None:
    grid = {"many rows": (0.4, 1.0), "noisy labels": (0.1, 0.2, 0.4)}.get(regime, (0.03, 0.1))
    rows = REGIMES[regime]()
    best = best_of(rows, NUM_CLASSES, bll.SVI(), grid)
    for inference in (bll.SVI(), LEFT_OUT):
        check(rows, NUM_CLASSES, inference, best)


@pytest.mark.slow
def test_svi_on_few_rows_that_are_almost_separable() -> None:
    """The held-out density of 80 rows is uncertain by a tenth, so the mean over data sets counts: 5.4% off; the ELBO 3.1%.

    Both with the temperature that left-out rows call for. Without it the ELBO's scale is 23% off.
    """
    excess: dict[str, list[float]] = {"folds": [], "evidence": []}
    for seed in (1, 2, 3, 4):
        rows = classes(80, 8, 160, 60.0, seed)
        best = best_of(rows, NUM_CLASSES, bll.SVI(), (0.8, 1.13, 1.6, 2.26))
        for name, criterion in (
            ("folds", bll.criteria.CrossValidation()),
            ("evidence", bll.criteria.Evidence()),
        ):
            loss, fit = judged(rows, NUM_CLASSES, bll.SVI(scale_criterion=criterion), None)
            excess[name].append(loss / best - 1)
            assert float(fit.predict(rows[1][0]).epistemic.std()) > 1e-3
    assert np.mean(excess["folds"]) <= 0.07, excess
    assert np.mean(excess["evidence"]) <= 0.05, excess


@pytest.mark.slow
def test_svi_on_few_rows_of_network_features(data_dir: Path) -> None:
    """80 rows, 128 features, 10 almost separable classes: 2.5% from the best scale; with a temperature the ELBO's own is better."""
    stored = np.load(data_dir / "fashion_features" / "cnn128.npz", allow_pickle=False)
    chosen = np.random.default_rng(0).permutation(len(stored["y_train"]))[:80]
    rows = tuple(
        (torch.tensor(features).float(), torch.tensor(labels).long())
        for features, labels in (
            (stored["H_train"][chosen], stored["y_train"][chosen]),
            (stored["H_test"][:3000], stored["y_test"][:3000]),
        )
    )
    fit = check(rows, 10, LEFT_OUT, best_of(rows, 10, LEFT_OUT, (1.0,)), 1.03)  # type: ignore[arg-type]
    loss = -float(fit.predict(rows[1][0]).log_prob(rows[1][1]).mean())
    evidence, _ = judged(rows, 10, bll.SVI(scale_criterion=bll.criteria.Evidence()), None)  # type: ignore[arg-type]
    assert evidence < 1.02 * loss
    path = fit.trace.statistics
    assert len(path["scale_path"]) == len(path["held_out_path"]) < 10


def test_the_lowest_point_of_a_path_is_found() -> None:
    for lowest in (-2.3, 0.1, 1.7):
        path: ScalePath[float] = ScalePath(fit_at=lambda x, state, lowest=lowest: (1 + (x - lowest) ** 2, x))
        assert path.search(0.0) == pytest.approx(lowest, abs=0.18)
        assert path.states[path.best] == path.best
    flat: ScalePath[float] = ScalePath(fit_at=lambda x, state: (float("nan"), x))
    flat.search(0.0)
    assert len(flat.losses) <= 3
    bounded: ScalePath[float] = ScalePath(fit_at=lambda x, state: (1 + x, x))
    assert bounded.search(0.0, lower=-1.0) >= -1.0


def test_folds_hold_every_row_once() -> None:
    features, targets = torch.randn(23, 4, generator=generator(0)), torch.arange(23)
    rows = inside.DesignRows(features, targets, Frame.identity(4, 1, features[:0], True))
    parts = divided(rows, fold_of(rows.num_rows, 5, seed=0))
    assert sorted(int(t) for part in parts for t in part.held_out.targets) == list(range(23))  # type: ignore[union-attr]
    assert all(part.fitted.num_rows + part.held_out.num_rows == 23 for part in parts)  # type: ignore[union-attr]
    assert smallest_scale(rows) == pytest.approx(float(features.square().sum()) ** -0.5, rel=1e-5)


def test_where_the_evidence_decides() -> None:
    classes_, gaussian = (
        bll.LastLayer(l) for l in (bll.likelihoods.Categorical(3), bll.likelihoods.Gaussian())
    )
    for criterion in (bll.criteria.CrossValidation(), bll.criteria.LeaveOneOut()):
        assert criterion.applies(classes_, 100, 3, 50)
        assert not criterion.applies(classes_, 1000, 3, 50)
        assert not criterion.applies(gaussian, 100, 1, 50)
        assert not criterion.applies(classes_, 100, 1000, 2048)
    assert not bll.criteria.Evidence().applies(classes_, 100, 3, 50)


@pytest.mark.filterwarnings("ignore:the ELBO was still rising")  # of a fit that is short on purpose
@pytest.mark.parametrize(
    "guide", [bll.guides.BlockDiagonal(), bll.guides.MAP(), bll.guides.LowRank(2)], ids=repr
)
@pytest.mark.parametrize(
    "criterion", [bll.criteria.LeaveOneOut(), bll.criteria.CrossValidation(2, 20.0)], ids=repr
)
@pytest.mark.thinned(6)
@pytest.mark.slow
def test_every_guide_with_scales_of_outputs(
    guide: bll.guides.Guide, criterion: bll.criteria.Criterion
) -> None:
    """The ratios of the outputs' scales are those of the evidence, and the fit is that of the scale picked."""
    (features, labels), _ = classes(40, 3, 6, 4.0, 5)
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), bll.priors.Normal(per_output=True))
    taus = []
    for used in (criterion, bll.criteria.Evidence()):
        fit = bll.fit(
            layer, (features, labels), inference=bll.SVI(guide, num_epochs=300, scale_criterion=used)
        )
        taus.append(fit.posterior.learned["tau"])
        assert fit.trace.elbo is not None
        assert len(fit.trace.elbo) == 300
        assert ("scale_path" in fit.trace.statistics) == (used == criterion)
    ratio = taus[0] / taus[1]
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=0)


@pytest.mark.parametrize("make", [bll.SVI, bll.Laplace])
def test_declared(make: type) -> None:
    declared = make(scale_criterion=bll.criteria.CrossValidation(num_folds=3))
    assert from_plain(json.loads(json.dumps(to_plain(declared, {}))), {}) == declared
    assert declared != make()
    with pytest.raises(TypeError, match="CrossValidation"):
        make(scale_criterion="loo")
    with pytest.raises(ValueError, match="num_folds"):
        bll.criteria.CrossValidation(num_folds=1)
    with pytest.raises(ValueError, match="max_rows_per_column"):
        bll.criteria.LeaveOneOut(max_rows_per_column=-1.0)


@pytest.mark.slow
def test_fits_side_by_side_are_those_of_single_fits() -> None:
    """Two folds at two scales, each against an SVI fit of its rows alone: they differ by the noise of the steps only."""
    (features, labels), _ = classes(60, 4, 5, 4.0, 6)
    held_out = torch.arange(60) % 2
    svi = bll.SVI(scale_criterion=bll.criteria.Evidence())
    rows = inside.DesignRows(features, labels, Frame.identity(5, 1, features[:0], True))
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), standardize=False)
    model = Model(layer, 5, ())
    fits = FoldFits(
        layer, rows, held_out, {}, {}, lambda part, learned: warm_start(layer, model.global_sites, part, 3, learned),
        False, 1500, 512, svi.rate(5),
    )  # fmt: skip
    scales = (0.3, 1.5)
    found = fits.losses([{"tau": torch.tensor(scale)} for scale in scales], generator(0))
    for scale, loss in zip(scales, found, strict=True):
        prior = bll.priors.Normal(scale)
        alone = 0.0
        for fold in range(2):
            fitted, left = held_out != fold, held_out == fold
            one = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), prior, standardize=False)
            plain = bll.SVI(bll.guides.Diagonal(principal_axes=False))
            fit = bll.fit(one, (features[fitted], labels[fitted]), inference=plain)
            alone -= float(fit.predict(features[left]).log_prob(labels[left]).sum()) / 60
        assert loss == pytest.approx(alone, rel=0.01)


@pytest.mark.slow
def test_axes_in_which_no_row_varies_change_nothing() -> None:
    """With 12 rows of 30 features the fits see 12 columns, and predict as the fits of all 30 in principal axes do."""
    (features, labels), _ = classes(12, 3, 30, 4.0, 7)
    rows = inside.DesignRows(features, labels, Frame.identity(30, 1, features[:0], True))
    layer = bll.LastLayer(bll.likelihoods.Categorical(NUM_CLASSES), standardize=False)
    turned_layer, turned = principal(layer, rows)
    assert turned.num_columns == 13
    assert torch.allclose(turned[:][0] @ turned[:][0].mT, rows[:][0] @ rows[:][0].mT, atol=1e-4)
    axes = torch.linalg.eigh((features.mT @ features).double()).eigenvectors.float()
    results = []
    for one, part in ((turned_layer, turned), (layer, rows.rotated(axes))):
        model = Model(one, part.frame.num_features, ())

        def start(part: inside.DesignRows, learned: dict, one=one, model=model) -> Start:
            return warm_start(one, model.global_sites, part, NUM_CLASSES, learned)

        fits = FoldFits(one, part, torch.arange(12) % 3, {}, {}, start, False, 300, 512, 0.02)
        results.append(fits.losses([{"tau": torch.tensor(0.7)}], generator(1))[0])
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_many_scales_at_once() -> None:
    """The grid goes on where the best scale is the outermost, down to the smallest, and gives up without a finite loss."""
    for lowest in (-4.4, 0.1, 3.0, 5.6):
        grid = ScaleGrid(losses_at=lambda xs, lowest=lowest: [1 + (x - lowest) ** 2 for x in xs])
        assert grid.search() == pytest.approx(lowest, abs=0.18)
    bounded = ScaleGrid(losses_at=lambda xs: [1 + x for x in xs])
    assert bounded.search(lower=-1.0) == -1.0
    lost = ScaleGrid(losses_at=lambda xs: [math.nan for _ in xs])
    assert lost.search() == 0.0
