"""A joint fit of few rows trains a second time, on all of them, with the number that the first training found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bll_pyro as bll
from bll_pyro.scope import generator

N = 300
RANDOM = generator(1)
X = torch.randn(N, 3, generator=RANDOM)
VALUES = X[:, 0] + 0.5 * torch.randn(N, generator=RANDOM)
LABELS = torch.bucketize(VALUES, torch.tensor([-1.0, 0.5]))
REAL, CLASSES = (bll.LastLayer(of) for of in (bll.likelihoods.Gaussian(), bll.likelihoods.Categorical(3)))
JOINT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=4)


def network(dropout: float = 0.0) -> nn.Module:
    """Layers with the same start each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout))


def weights(fit: bll.Fit) -> Tensor:
    """Those of the network, and means and variances of the outputs of the last layer."""
    outputs = fit.posterior.outputs(fit.backbone(X))
    parts = [*fit.backbone.parameters(), outputs.mean, outputs.variance]
    return torch.cat([each.detach().flatten() for each in parts])


CASES = {
    "values": (REAL, VALUES, JOINT),
    "classes": (CLASSES, LABELS, JOINT),
    "one stage": (REAL, VALUES, replace(JOINT, final_stage=False)),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_the_fit_of_all_rows_with_the_number_of_the_kept_ones(case: str) -> None:
    """What two calls give that a user can make. A network with dropout: both trainings draw from the same seed."""
    layer, targets, joint = CASES[case]
    own = network(0.2)
    fit = bll.fit(layer, (X, targets), own, joint, seed=5)
    first = bll.fit(layer, (X, targets), own, joint, seed=5, calibration=50 / N)
    with pytest.warns(bll.FitWarning, match="no rows were kept"):
        second = bll.fit(layer, (X, targets), own, joint, seed=5, calibration=None)
    assert fit.num_rows == second.num_rows == N and first.num_rows == N - 50
    assert torch.equal(weights(fit), weights(second)) and not torch.equal(weights(fit), weights(first))
    assert fit.recalibration.alone == first.recalibration.alone
    found = fit.recalibration.found_on
    assert found.source == "rows kept from a first training"
    assert replace(found, source="") == replace(first.recalibration.found_on, source="")
    assert "50 rows kept from a first training" in repr(fit)
    by_hand = second.with_recalibration(first.recalibration)
    assert torch.equal(fit.predict(X).log_prob(targets), by_hand.predict(X).log_prob(targets))


def test_of_many_rows_the_kept_ones_stay_out() -> None:
    x = torch.randn(2000, 3, generator=generator(2))
    fit = bll.fit(REAL, (x, x[:, 0]), network(), replace(JOINT, num_epochs=1))
    assert fit.num_rows == 1800 and fit.recalibration.found_on.source == "rows kept from training"


def test_a_training_that_a_callback_ended_is_not_begun_anew() -> None:
    """It would be ended again, or, if the callback counts its steps, not at all."""
    steps = []

    def stop(record: bll.Record) -> None:
        if record.stage == "joint training":
            steps.append(record.step)
            if len(steps) == 3:
                raise bll.StopTraining

    fit = bll.fit(REAL, (X, VALUES), network(), replace(JOINT, final_stage=False), callbacks=[stop])
    assert len(steps) == 3 and fit.num_rows == N - 50
    assert "rows kept from training" in repr(fit)


def test_a_training_that_became_infinite_is_not_begun_anew() -> None:
    with pytest.warns(bll.FitWarning, match="not finite"):
        fit = bll.fit(
            REAL, (X, VALUES), network(), bll.SVI(backbone_learning_rate=1e30, num_epochs=3), seed=0
        )
    assert fit.num_rows == N - 50


def test_a_checkpoint_holds_both_trainings(tmp_path: Path) -> None:
    """Stopped in the second training, the same call goes on there: no step of the first one is taken again."""
    whole: list[bll.Record] = []
    expected = bll.fit(REAL, (X, VALUES), network(0.2), JOINT, callbacks=[whole.append])
    first: list[bll.Record] = []
    bll.fit(REAL, (X, VALUES), network(0.2), JOINT, callbacks=[first.append], calibration=50 / N)
    num_first, num_steps = len(joint(first)), len(joint(whole)) - len(joint(first))

    def interrupt(record: bll.Record) -> None:
        if record.stage == "joint training" and record.step == num_first + 2:
            raise KeyboardInterrupt

    kept = {"checkpoint": tmp_path / "kept"}
    with pytest.raises(KeyboardInterrupt):
        bll.fit(REAL, (X, VALUES), network(0.2), JOINT, callbacks=[interrupt], **kept)
    for steps in (num_steps, 0):  # what is left, and what is left of a finished fit
        after: list[bll.Record] = []
        fit = bll.fit(REAL, (X, VALUES), network(0.2), JOINT, callbacks=[after.append], **kept)
        assert torch.equal(weights(fit), weights(expected)) and fit.recalibration == expected.recalibration
        assert len(joint(after)) == steps


def joint(records: list[bll.Record]) -> list[bll.Record]:
    """Steps of the network."""
    return [record for record in records if record.stage == "joint training"]
