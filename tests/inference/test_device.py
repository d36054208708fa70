"""Steps stay on the device: no number is asked for by the host inside the loop, and a CUDA device gives the same fit."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bll_pyro as bll
from bll_pyro.frame import Frame
from bll_pyro.guides import Start
from bll_pyro.inference.rows import DesignRows
from bll_pyro.inference.svi.objective import Objective
from bll_pyro.model import Model
from bll_pyro.scope import generator, isolated

CATEGORICAL, GAUSSIAN = bll.likelihoods.Categorical(3), bll.likelihoods.Gaussian()


class Synchronisations(TorchDispatchMode):
    """Counts the operations that make the host wait: reading a number, or a shape that depends on values."""

    WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in self.WAITING):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_counter_counts() -> None:
    with Synchronisations() as counter:
        bool(torch.zeros(()) > 0)
    assert counter.seen


@pytest.mark.parametrize("likelihood", [CATEGORICAL, GAUSSIAN], ids=["classes", "values"])
@pytest.mark.parametrize(
    "guide",
    [
        bll.guides.MAP(),
        bll.guides.Diagonal(),
        bll.guides.LowRank(2),
        bll.guides.MatrixNormal(),
        bll.guides.BlockDiagonal(),
        bll.guides.FullRank(),
    ],
    ids=lambda guide: type(guide).__name__,
)
def test_a_step_asks_for_no_number(likelihood: bll.likelihoods.Likelihood, guide: bll.guides.Guide) -> None:
    random, shape = generator(0), () if likelihood.is_discrete else (2,)
    features = torch.randn(30, 4, generator=random)
    targets = torch.randint(3, (30,), generator=random) if likelihood.is_discrete else features[:, :2]
    layer = bll.LastLayer(likelihood=likelihood)
    with isolated(0):
        model = Model(layer, 4, shape)
        start = Start(
            torch.zeros(model.global_sites.num),
            torch.randn(model.num_outputs, 5, generator=random),
            torch.ones(model.num_outputs, 5),
            4,
        )
        rows = DesignRows(features, targets, Frame.identity(4, 2, torch.empty(0)))
        subject = Objective(layer, model, guide.build(model, start), 30)
        subject.gradient(*rows[:], random)  # what is made once
        optimizer = torch.optim.Adam(subject.parameters, fused=True)
        with Synchronisations() as counter:
            for batch in rows.batches(8, random):
                subject.gradient(*batch, random)
        optimizer.step()
    assert not counter.seen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_fit_of_the_cpu() -> None:
    random = generator(1)
    features = torch.randn(400, 6, generator=random)
    labels = (features[:, 0] + torch.randn(400, generator=random) > 0).long()
    layer = bll.LastLayer(likelihood=bll.likelihoods.Categorical(2))
    on_cpu, on_device = (bll.fit(layer, (features, labels), device=device) for device in ("cpu", "cuda"))
    assert on_device.elbo == pytest.approx(on_cpu.elbo, abs=2.0)  # other draws, so equal but for their noise
    found, expected = on_device.predict(features).probs.cpu(), on_cpu.predict(features).probs
    assert (found - expected).abs().max() < 0.05
