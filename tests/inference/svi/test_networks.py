"""Joint training of networks of many kinds: fitted, predicted with, saved and loaded; or named, with what to do."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, Dataset, TensorDataset

import bll_pyro as bll
from bll_pyro.inference.svi import joint
from bll_pyro.inference.svi.joint_training import JointTraining

N = 129  # one more than a batch
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + 0.3 * torch.randn(N, generator=torch.Generator().manual_seed(1))
LAYER = bll.LastLayer(bll.likelihoods.Gaussian(), bll.priors.Normal(1.0))
SHORT = bll.SVI(backbone_learning_rate=1e-2, num_epochs=2, final_stage=False)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))


class Linear(nn.Module):
    """A linear layer, called as the subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


class Tied(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Linear(6, 6)
        self.second.weight = self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.layer(x)))


class Scaled(Linear):
    """With a buffer that is not part of the state, and a weight that is not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6).T)
        self.register_buffer("factor", torch.full((6,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.factor) @ self.weight


class Hooked(Linear):
    """Keeps what it computed last, which depends on parameters, and has a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.register_forward_hook(lambda module, inputs, output: output.tanh())

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        return self.last


class Recurrent(nn.LSTM):
    def __init__(self) -> None:
        super().__init__(2, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.view(-1, 3, 2))[0][:, -1]


class Words(nn.Module):
    """Integers in."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x).mean(1)


class TwoInputs(Words):
    """A dictionary in."""

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return super().forward(x["words"]) + x["values"][:, :4]


class Items(Dataset[Any]):
    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return {"words": torch.tensor([index % 7, index % 3]), "values": X[index]}, Y[index]


def partly_frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    return net[:2].requires_grad_(False) and net


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "batch norm": (with_norm, (X, Y)),
    "batch norm, dataset": (TwoInputs, Items()),
    "batch norm, loader": (with_norm, DataLoader(TensorDataset(X, Y), 32, shuffle=True)),
    "drop_last": (with_norm, DataLoader(TensorDataset(X, Y), 100, shuffle=True, drop_last=True)),
    "float64": (lambda: with_norm().double(), (X, Y)),
    "float64, all": (lambda: with_norm().double(), (X.double(), Y.double())),
    "float64 inputs": (with_norm, (X.double(), Y)),
    "bfloat16": (lambda: Linear().bfloat16(), (X, Y)),
    "tied": (Tied, (X, Y)),
    "scaled": (Scaled, (X, Y)),
    "hooked": (Hooked, (X, Y)),
    "recurrent": (Recurrent, (X, Y)),
    "words": (Words, (torch.arange(2 * N).view(N, 2) % 7, Y)),
    "partly frozen": (partly_frozen, (X, Y)),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4))), (X, Y)),
    "orthogonal": (lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 4))), (X, Y)),
    "compiled": (lambda: torch.compile(with_norm(), backend="eager"), (X, Y)),  # type: ignore[dict-item]
    "parallel": (lambda: nn.DataParallel(with_norm()), (X, Y)),
}


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.filterwarnings("ignore:.*steps are too few:RuntimeWarning")
def test_networks_are_trained_saved_and_loaded(tmp_path: Path, kind: str) -> None:
    make, data = NETWORKS[kind]
    inputs = X if isinstance(data, DataLoader) else data[0] if isinstance(data, tuple) else data
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, other = make(), make()
    before = state(net)
    fit = bll.fit(LAYER, data, net, SHORT)
    assert fit.backbone is not None
    after = state(fit.backbone)
    assert all(torch.equal(value, before[name]) for name, value in state(net).items())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    prediction = fit.predict(inputs)
    assert torch.isfinite(prediction.mean).all() and len(prediction.mean) == N
    fit.save(tmp_path)
    again = bll.load(tmp_path, backbone=other)
    torch.testing.assert_close(again.predict(inputs).mean, prediction.mean)


def test_a_frozen_fit_takes_all_rows_of_a_loader_that_drops_some() -> None:
    loader = DataLoader(TensorDataset(X, Y), 100, shuffle=True, drop_last=True)
    net = with_norm().eval()
    fit, other = (bll.fit(LAYER, data, net, bll.Exact()) for data in (loader, (X, Y)))
    assert fit.num_rows == N
    torch.testing.assert_close(fit.predict(X).mean, other.predict(X).mean, atol=1e-4, rtol=1e-4)
    assert len(fit.predict(loader).mean) == N


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("final_stage", [False, True])
def test_a_float64_backbone_with_validation_data(final_stage: bool, standardize: bool) -> None:
    """Also without a final stage, where the posterior of the joint training predicts."""
    net, layer = with_norm().double(), replace(LAYER, standardize=standardize)
    svi = bll.SVI(backbone_learning_rate=1e-2, num_epochs=2, final_stage=final_stage)
    fit = bll.fit(layer, (X, Y), net, svi, validation_data=(X[:20], Y[:20]))
    trace = fit.trace.statistics["joint"] if final_stage else fit.trace
    assert len(trace.validation) == 2
    assert torch.isfinite(fit.predict(X).log_prob(Y)).all()


class Counting(Linear):
    """Extra state that is no tensor, and an average that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.num_passes = 0
        self.register_buffer("average", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_passes += 1
            self.average.copy_(x.mean())
        return self.layer(x)

    def get_extra_state(self) -> int:
        return self.num_passes

    def set_extra_state(self, state: int) -> None:
        self.num_passes = state


def test_extra_state_does_not_hinder_validation_and_saving(tmp_path: Path) -> None:
    fit = bll.fit(LAYER, (X, Y), Counting(), SHORT, validation_data=(X, Y))
    fit.save(tmp_path)
    again = bll.load(tmp_path, backbone=Counting()).backbone
    assert isinstance(again, Counting) and again.num_passes > 0


def test_what_is_put_back_includes_buffers_that_are_not_saved() -> None:
    module = nn.Sequential(Counting(), Tied(), with_norm())
    training: Any = JointTraining.__new__(JointTraining)
    training.module, training.average = module, None
    before = training.state()
    tensors = [*module.parameters(), *module.buffers()]
    kept = [value.detach().clone() for value in tensors]
    with torch.no_grad():
        for value in tensors:
            value.add_(1)
    training.restore(before)
    assert all(torch.equal(value, old) for value, old in zip(tensors, kept, strict=True))


class Detached(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).detach()


class Output(Linear):
    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.layer(x))


NAMED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "scripted": (lambda: torch.jit.script(with_norm()), {}, "pass the module that was scripted"),
    "traced": (lambda: torch.jit.trace(nn.Linear(6, 4), X), {}, "pass the module that was scripted"),
    "old weight norm": (
        lambda: nn.utils.weight_norm(nn.Linear(6, 4)),
        {},
        "take torch.nn.utils.parametrizations",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()),
        {},
        "run lazy modules on a batch first",
    ),
    "detached": (Detached, {}, "without gradient; take torch.no_grad.* out of its forward"),
    "sparse": (lambda: nn.EmbeddingBag(3, 2, sparse=True), {}, "sparse=True; set it to"),
    "without parameters": (nn.Flatten, {}, "parameters to train, got none"),
    "batches of one": (with_norm, {"batch_size": 1}, r"got one row: .*SVI\(batch_size=2\)"),
}


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Lazy modules:UserWarning"
)
def test_what_cannot_be_trained_is_named_with_a_remedy(kind: str) -> None:
    make, options, message = NAMED[kind]
    svi = bll.SVI(backbone_learning_rate=1e-2, num_epochs=2, **options)
    inputs = torch.zeros(N, 2, dtype=torch.long) if kind == "sparse" else X
    with pytest.raises(ValueError, match=f"(?s)backbone.*expected .*{message}"):
        bll.fit(LAYER, (inputs, Y), make(), svi)


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:.*steps are too few:RuntimeWarning")
def test_a_lazy_layer_takes_its_shape_in_the_copy() -> None:
    net = nn.LazyLinear(4)
    fit = bll.fit(LAYER, (X, Y), net, SHORT)
    assert isinstance(fit.backbone, nn.Linear) and fit.backbone.weight.shape == (4, 6)
    assert net.has_uninitialized_params()


def test_an_output_that_is_no_tensor_is_named() -> None:
    with pytest.raises(TypeError, match=r"expected one tensor of features \[N, D\], got SimpleNamespace"):
        bll.fit(LAYER, (X, Y), Output(), SHORT)


LOADERS: dict[str, tuple[Any, dict[str, int], int]] = {
    "arrays": ((X, Y), {}, 1),
    "arrays, batch size": ((X, Y), {"batch_size": 50}, 3),
    "arrays, one row left": ((X, Y), {"batch_size": 64}, 2),
    "arrays, batches of one": ((X[:5], Y[:5]), {"batch_size": 1}, 5),
    "dataset": (Items(), {"batch_size": 32}, 4),
    "loader": (DataLoader(TensorDataset(X, Y), 20, shuffle=True), {}, 7),
    "loader, one row left": (DataLoader(TensorDataset(X, Y), 16, shuffle=True), {}, 8),
    "loader, drop_last": (DataLoader(TensorDataset(X, Y), 20, shuffle=True, drop_last=True), {}, 6),
    "loader in order": (DataLoader(TensorDataset(X, Y), 100), {"batch_size": 10}, 2),
}


@pytest.mark.filterwarnings("ignore:no rows were kept:RuntimeWarning")
@pytest.mark.parametrize("kind", LOADERS)
def test_the_schedule_has_as_many_steps_as_are_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the learning rate ends at zero, whoever makes the batches."""
    data, options, num_batches = LOADERS[kind]
    steppers: list[Any] = []
    kept = joint.JointStepper

    def keep(*arguments: Any) -> Any:
        steppers.append(kept(*arguments))
        return steppers[-1]

    monkeypatch.setattr(joint, "JointStepper", keep)
    svi = bll.SVI(backbone_learning_rate=1e-2, num_epochs=3, final_stage=False, **options)
    bll.fit(LAYER, data, TwoInputs() if isinstance(data, Items) else nn.Linear(6, 4), svi, calibration=None)
    assert (steppers[0].num_steps, steppers[0].done) == (3 * num_batches, 3 * num_batches)
