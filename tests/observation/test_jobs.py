"""Every job that may take long tells of its steps, and they reach their end."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.likelihoods import Categorical, Gaussian, StudentT
from bll_pyro.observation import Record

pytestmark = pytest.mark.filterwarnings(
    "ignore:the ELBO was still rising",
    "ignore:.*steps are too few",
    "ignore:no rows were kept",
    "ignore:the optimum was not reached",
    "ignore:.*R-hat",
    "ignore:.*effective",
    "ignore:.*diverge",
)

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(24, 3, generator=RANDOM)
NUMBERS = 5 * X[:, 0] + 3 + torch.randn(24, generator=RANDOM)
LABELS = (X[:, 0] + 0.5 * torch.randn(24, generator=RANDOM) > 0).long()
LINE = bll.LastLayer(Gaussian())
KNOWN = bll.LastLayer(Gaussian(noise_scale=1.0), prior=bll.priors.Normal(1.0))
CLASSES = bll.LastLayer(Categorical(num_classes=2))
FEW = bll.criteria.CrossValidation(num_folds=2, max_rows_per_column=50.0)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh())


def fit(layer: bll.LastLayer = LINE, targets: torch.Tensor = NUMBERS, **options: Any) -> bll.Fit:
    return bll.fit(layer, (X, targets), **options)


def exact() -> bll.Fit:
    return fit(inference=bll.Exact(), progress=False)


def cross_validated() -> object:
    return fit(CLASSES, LABELS, inference=bll.Laplace(scale_criterion=FEW), calibration=None)


def by_folds() -> object:
    svi = bll.SVI(scale_criterion=FEW, num_epochs=300)
    return fit(CLASSES, LABELS, inference=svi, calibration=None)


def simulated() -> object:
    return bll.sbc(KNOWN, bll.Exact(), X, 10, num_draws=10, num_processes=1)


JOBS: dict[str, tuple[Callable[[], object], dict[str, set[str]]]] = {
    # what is called, and which stages have which metrics
    "SVI": (
        lambda: fit(inference=bll.SVI(num_epochs=3, batch_size=8)),
        {"SVI": {"elbo", "learning_rate", "rows_per_second"}},
    ),
    "SVI with validation": (
        lambda: fit(inference=bll.SVI(num_epochs=2, patience=9), validation_data=(X, NUMBERS)),
        {"SVI": {"elbo", "learning_rate", "rows_per_second", "nll"}},
    ),
    "ascent and left-out rows": (
        lambda: fit(replace(LINE, likelihood=StudentT())),
        {"ascent": {"elbo"}, "left-out rows": set()},
    ),
    "rounds": (
        lambda: fit(inference=bll.SVI(guide=bll.guides.FullRank(), batch_size=24)),
        {"rounds on all rows": {"distance"}},
    ),
    "joint": (
        lambda: fit(
            backbone=network(),
            inference=bll.SVI(backbone_learning_rate=1e-3, num_epochs=2, batch_size=8, final_stage=False),
            validation_data=(X, NUMBERS),
        ),
        {"joint training": {"elbo", "learning_rate", "backbone_learning_rate", "rows_per_second", "nll"}},
    ),
    "extraction": (lambda: bll.extract(network(), (X, LABELS)), {"features": {"rows_per_second"}}),
    "Laplace": (
        lambda: fit(inference=bll.Laplace()),
        {"evidence": {"log_evidence"}, "evidence/mode": {"log_joint", "distance"}},
    ),
    "Exact": (lambda: fit(inference=bll.Exact()), {"sums": {"rows_per_second"}}),
    "cross-validation": (cross_validated, {"prior scale": {"nll"}}),
    "folds side by side": (by_folds, {"prior scale": {"nll"}, "prior scale/folds": {"elbo"}}),
    "leave-one-out": (lambda: bll.loo(exact(), (X, NUMBERS)), {"leave-one-out": set()}),
    "leave-one-out of a Gaussian": (
        lambda: bll.loo(fit(KNOWN, inference=bll.Exact(), progress=False), (X, NUMBERS)),
        {"leave-one-out": set()},
    ),
    "simulations": (simulated, {"simulations": set()}),
    "choose": (
        lambda: bll.choose([LINE, KNOWN], (X, NUMBERS), inference=bll.Laplace()),
        {"choose": set()},
    ),
    "compare": (
        lambda: bll.compare({"one": exact(), "two": exact()}, (X, NUMBERS)),
        {"compare": set(), "compare/one/leave-one-out": set(), "compare/two/leave-one-out": set()},
    ),
    "prediction": (lambda: exact().predict(torch.zeros(3000, 3)), {"prediction": {"rows_per_second"}}),
    "evaluation": (
        lambda: bll.evaluate(exact(), X, NUMBERS, held_out=(X, NUMBERS), plain=exact()),
        {"prediction": {"rows_per_second"}, "features": {"rows_per_second"}},
    ),
}


def told_of(work: Callable[[], object]) -> dict[str, list[Record]]:
    """Records by stage, each with a number of its own that grows."""
    found: dict[str, list[Record]] = {}
    with bll.observe(callbacks=[lambda record: found.setdefault(record.stage, []).append(record)]):
        work()
    return found


SLOW = ("rounds", "folds side by side")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in JOBS]
)
def test_tells_of_its_steps(name: str) -> None:
    work, stages = JOBS[name]
    found = told_of(work)
    assert stages.keys() <= found.keys()
    for stage, metrics in stages.items():
        records = found[stage]
        steps = [record.step for record in records]
        assert steps == sorted(steps) and steps[0] >= 1
        assert records[-1].total in (None, steps[-1]) or "rounds" in stage
        assert {name for record in records for name in record.metrics} == metrics
        seconds = [record.seconds for record in records]
        assert seconds == sorted(seconds) and seconds[0] >= 0


@pytest.mark.nuts
@pytest.mark.parametrize("num_processes", [1, 2])
def test_chains_tell_of_their_transitions(num_processes: int) -> None:
    """Warm-up and sampling of all chains; what is drawn does not change."""
    nuts = bll.NUTS(num_warmup=8, num_samples=4, num_chains=2, num_processes=num_processes)
    fits: list[bll.Fit] = []
    (records,) = (
        found
        for stage, found in told_of(lambda: fits.append(fit(KNOWN, inference=nuts))).items()
        if stage == "chains"
    )
    assert (records[-1].step, records[-1].total) == (24, 24)
    assert records[-1].metrics.keys() == {"warming_up", "sampling", "divergences"}
    assert (records[-1].metrics["warming_up"], records[-1].metrics["sampling"]) == (0, 2)
    diverging = fits[0].trace.by_draw["diverging"].sum()
    assert records[-1].metrics["divergences"] == diverging
    if num_processes == 1:
        assert [record.step for record in records] == list(range(1, 25))
        fits.append(fit(KNOWN, inference=nuts))
        assert torch.equal(*(each.posterior.draws["weight"] for each in fits))


@pytest.mark.nuts
def test_a_callback_that_fails_ends_chains_in_processes() -> None:
    """Long before they would be done, with its own error."""

    def fail(record: Record) -> None:
        if record.stage == "chains":
            raise ArithmeticError("of the callback")

    nuts = bll.NUTS(num_warmup=100_000, num_samples=10, num_chains=2, num_processes=2)
    with pytest.raises(ArithmeticError, match="of the callback"):
        fit(KNOWN, inference=nuts, callbacks=[fail])


def test_elbo_is_that_of_the_trace() -> None:
    """In the user's units, bit for bit; with weights too."""
    data = bll.Data((X, NUMBERS), sample_weight=torch.linspace(0.5, 2, 24))
    fits: list[bll.Fit] = []
    svi = bll.SVI(num_epochs=3, batch_size=8)
    joint = bll.SVI(backbone_learning_rate=1e-3, num_epochs=2, batch_size=8)
    by_stage = told_of(lambda: fits.append(bll.fit(LINE, data, inference=svi)))
    by_stage |= {
        name: records
        for name, records in told_of(lambda: fits.append(bll.fit(LINE, data, network(), joint))).items()
        if name == "joint training"
    }
    assert fits[1].trace.joint is not None
    for name, trace in (("SVI", fits[0].trace), ("joint training", fits[1].trace.joint)):
        assert [record.metrics["elbo"] for record in by_stage[name]] == trace.elbo.tolist()
        assert [record.step for record in by_stage[name]] == list(range(1, len(trace.elbo) + 1))


def test_a_plain_fit_does_nothing_more_in_a_step() -> None:
    """No function of the room of observation runs more often with more steps."""

    def entered(num_epochs: int) -> list[str]:
        names: list[str] = []

        def watch(frame: Any, event: str, argument: Any) -> None:
            if event == "call" and "observation" in frame.f_code.co_filename:
                names.append(frame.f_code.co_qualname)

        svi = bll.SVI(num_epochs=num_epochs, batch_size=8)
        sys.setprofile(watch)
        try:
            fit(inference=svi, calibration=None)
        finally:
            sys.setprofile(None)
        return names

    assert entered(6) == entered(2) != []
