"""The caller's world after public calls: in any mode of torch, after errors, after interrupts; and the watch itself."""

import copy
import inspect
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pyro
import pytest
import torch
import world
from pyro.poutine import runtime
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

import bll_pyro as bll
from bll_pyro.features import forward
from bll_pyro.scope import isolated, one_thread, own_modes, own_store

RANDOM = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=RANDOM)
VALUES = X[:, 1] + 0.3 * torch.randn(60, generator=RANDOM)
LABELS = (X[:, 0] + 0.5 * torch.randn(60, generator=RANDOM) > 0).long()
CLASSES = bll.LastLayer(bll.likelihoods.Categorical(num_classes=2))
SHORT = bll.SVI(num_epochs=5)
JOINT = bll.SVI(num_epochs=2, backbone_learning_rate=1e-3, final_stage=False)


class Drawing(nn.Module):
    """A network that writes to Pyro's store and draws from every global generator, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        pyro.param("of the network", torch.ones(1))
        noise = 1e-3 * (torch.rand(()) + np.random.rand() + random.random())
        return self.drop(self.norm(self.layer(inputs))) + noise


@pytest.fixture
def network() -> nn.Module:
    with isolated(0):
        return Drawing().train()


@pytest.fixture
def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, LABELS), batch_size=16, shuffle=True)


def use(network: nn.Module, loader: DataLoader[Any], folder: Path) -> bll.Fit:
    """Pass by every door that changes global state inside."""
    bll.fit(CLASSES, loader, backbone=network, inference=JOINT)
    fit = bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT, store=folder / "features")
    fit = bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT)
    fit.predict(X)
    fit.predict(loader)
    fit = bll.calibrate(fit, X, LABELS)
    detector = bll.ood.Detector(bll.ood.Leverage()).calibrate(fit, X)
    fit = fit.with_detector(detector)
    fit.to_datatree(X, LABELS, num_draws=10)
    bll.extract(network, loader)
    fit.save(folder / "fit")
    return bll.load(folder / "fit", backbone=copy.deepcopy(network))


def test_nothing_is_changed(network: nn.Module, loader: DataLoader[Any], tmp_path: Path) -> None:
    pyro.param("mine", torch.ones(2))
    with world.watched("all doors", (network,)):
        use(network, loader, tmp_path)
    pyro.clear_param_store()


def test_nothing_is_changed_by_an_error_that_is_kept(network: nn.Module) -> None:
    fit = bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT)
    wrong = X.clone()
    wrong[40] = torch.nan
    pyro.param("mine", torch.ones(2))
    kept = []
    for call in (
        lambda: fit.predict(wrong, batch_size=16),
        lambda: fit.features(wrong, batch_size=16),
        lambda: fit.to_datatree(wrong, LABELS),
        lambda: bll.extract(network, wrong, batch_size=16),
        lambda: bll.fit(CLASSES, (wrong, LABELS), backbone=network, inference=SHORT, batch_size=16),
        lambda: bll.fit(CLASSES, (wrong, LABELS), backbone=network, inference=JOINT),
    ):
        with world.watched("a wrong row", (network,)):
            try:
                call()
            except ValueError as error:
                kept.append(error)
    assert len(kept) == 6
    assert torch.is_grad_enabled()
    assert network.training
    bll.fit(CLASSES, (X, LABELS), inference=SHORT)  # and the next fit works
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


class Interrupt(TorchFunctionMode):
    """Raise at the n-th call of torch, as Ctrl-C would."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.left = number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("number", [5, 30, 100, 300, 1000, 3000])
def test_nothing_is_changed_by_an_interrupt(network: nn.Module, loader: DataLoader[Any], number: int) -> None:
    fit = bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT)
    for call in (
        lambda: bll.fit(CLASSES, loader, backbone=network, inference=JOINT),
        lambda: bll.fit(CLASSES, (X, LABELS), backbone=network),
        lambda: bll.fit(CLASSES, (X, LABELS), inference=bll.NUTS(num_chains=1, num_warmup=5, num_samples=5)),
        lambda: fit.predict(loader),
        lambda: fit.predict(X, batch_size=16),
        lambda: fit.to_datatree(X, LABELS, num_draws=10),
        lambda: bll.diagnose(fit, (X, LABELS)),
    ):
        before = world.world((network,))
        kept = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chains that are too short
            try:
                with Interrupt(number):
                    call()
            except KeyboardInterrupt as error:
                kept = error
        world.compare(before, world.world((network,)), f"an interrupt at {number}")
        del kept


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "plate": lambda: pyro.plate("theirs", 3),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.thinned(5)
def test_modes_of_the_caller_do_not_matter(mode: str, tmp_path: Path) -> None:
    """Everything that a user does, inside a mode, gives the numbers that it gives outside."""
    found = []
    for name, around in (("plain", nullcontext), (mode, MODES[mode])):
        with isolated(0):
            backbone = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
            empty = copy.deepcopy(backbone)
        with around():
            found.append(everything(backbone, empty, tmp_path / name))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, msg=key)


def everything(backbone: nn.Module, empty: nn.Module, folder: Path) -> dict[str, Tensor]:
    """Numbers of fits, predictions, draws and checks."""
    fit = bll.fit(CLASSES, (X, LABELS), backbone=backbone, inference=SHORT)
    fit = bll.calibrate(fit, X, LABELS)
    fit = fit.with_detector(bll.ood.Detector(bll.ood.Epistemic()).calibrate(fit, X))
    prediction: Any = fit.predict(X)
    values = bll.fit(
        bll.LastLayer(bll.likelihoods.Gaussian()), (X.numpy(), VALUES.numpy()), inference=bll.Exact()
    )
    guessed: Any = values.predict(X)
    tree = fit.to_datatree(X, LABELS, num_draws=10)
    fit.save(folder)
    loaded = bll.load(folder, backbone=empty)
    prior = bll.fit(
        bll.LastLayer(CLASSES.likelihood, fit.as_prior()), (X, LABELS), backbone=backbone, inference=SHORT
    )
    joint = bll.fit(
        CLASSES, (X, LABELS), backbone=backbone, inference=replace(SHORT, backbone_learning_rate=1e-3)
    )

    def probs(fit: Any) -> Tensor:
        return fit.predict(X).probs

    return {
        "probs": prediction.probs,
        "log_prob": prediction.log_prob(LABELS),
        "p_value": prediction.ood.p_value,
        "loaded": probs(loaded),
        "joint": probs(joint),
        "mean": guessed.mean,
        "interval": torch.stack(guessed.interval(0.9)),
        "crps": guessed.crps(VALUES),
        "sample": guessed.sample(5),
        "draws": torch.from_numpy(tree["posterior"]["weight"].values),
        "log likelihood": torch.from_numpy(tree["log_likelihood"]["y"].values),
        "loo": torch.tensor(float(bll.loo(fit, (X, LABELS)).elpd), device="cpu"),
        "laplace": probs(bll.fit(CLASSES, (X, LABELS), inference=bll.Laplace())),
        "as prior": probs(prior),
        "updated": values.update((X, VALUES)).posterior.sample(5)["weight"],
        "posterior": fit.posterior.sample(5)["weight"],
    }


GUARDS: dict[
    str, tuple[Callable[..., Any], str]
] = {  # what the watch sees where a line of the library is missing
    "Pyro's parameter store": (own_store, "after.enter_context(pyro.get_param_store().scope())"),
    "Pyro's handlers": (
        own_store,
        "after.callback(runtime._PYRO_STACK.__setitem__, slice(None), runtime._PYRO_STACK[:])",
    ),
    "default dtype": (isolated, "after.callback(torch.set_default_dtype, torch.get_default_dtype())"),
    "Python's random state": (isolated, "after.callback(random.setstate, random.getstate())"),
    "NumPy's random state": (isolated, "after.callback(np.random.set_state, np.random.get_state())"),
    "torch's random state": (isolated, "after.callback(torch.set_rng_state, torch.get_rng_state())"),
    "number of threads": (one_thread, "torch.set_num_threads(before)"),
    "modes of networks": (forward.frozen, "part.training = mode"),
}


def code_of(function: Callable[..., Any], name: str) -> list[FunctionType]:
    """Every function of a name that a decorated function leads to."""
    found: list[FunctionType] = []
    seen: set[int] = set()
    left: list[Any] = [function]
    while left:
        one = left.pop()
        if not isinstance(one, FunctionType) or id(one) in seen:
            continue
        seen.add(id(one))
        if one.__code__.co_name == name and "decorate" not in one.__code__.co_freevars:
            found.append(one)
        left += [cell.cell_contents for cell in one.__closure__ or ()]
        left += [
            *(one.__defaults__ or ()),
            *(one.__kwdefaults__ or {}).values(),
            getattr(one, "__wrapped__", None),
        ]
    return found


def set_random_states(python: Any, numpy: Any, torch_state: Tensor) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_state)


@contextmanager
def without(function: Callable[..., Any], line: str) -> Iterator[None]:
    """Run a block with a line of the library taken out."""
    name, source = function.__name__, inspect.getsource(inspect.unwrap(function))
    assert source.count(line) == 1
    made: dict[str, Any] = {}
    body = source[source.index("def ") :].replace(line, "pass")
    exec(compile(body, f"{name} without a line", "exec"), dict(vars(inspect.getmodule(function))), made)
    file = inspect.getsourcefile(inspect.unwrap(function))  # the checks of types wrap it in code of their own
    places = [each for each in code_of(function, name) if each.__code__.co_filename == file]
    assert places
    whole = [each.__code__ for each in places]
    try:
        for each in places:
            each.__code__ = made[name].__code__
        yield
    finally:
        for each, code in zip(places, whole, strict=True):
            each.__code__ = code


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of a chain that is too short
def test_the_watch_sees_a_guard_that_is_missing(guard: str, network: nn.Module) -> None:
    chain = bll.NUTS(num_chains=1, num_warmup=5, num_samples=5)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    torch.set_num_threads(2)
    runtime._PYRO_STACK.append(TraceMessenger())

    def calls() -> None:
        bll.fit(CLASSES, (X, LABELS), backbone=network, inference=SHORT)
        bll.fit(CLASSES, (X.double(), LABELS), inference=chain)

    try:
        with without(*GUARDS[guard]), pytest.raises(AssertionError, match=guard):
            calls()
    finally:
        set_random_states(*before)
        runtime._PYRO_STACK.clear()
        pyro.clear_param_store()
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("mode", "line"),
    [
        ("inference_mode", "after.enter_context(torch.inference_mode(False))"),
        ("autocast", "after.enter_context(torch.autocast(device, enabled=False))"),
        ("device", 'after.enter_context(torch.device("cpu"))'),
    ],
)
def test_a_mode_that_is_not_switched_off_is_seen(mode: str, line: str) -> None:
    values = bll.LastLayer(bll.likelihoods.Gaussian())

    def scores() -> Tensor:
        fit = bll.fit(values, (X, VALUES), inference=SHORT)
        return torch.cat([fit.predict(X).log_prob(VALUES), fit.posterior.sample(5)["weight"].flatten()])

    expected = scores()
    with MODES[mode]():
        assert torch.equal(scores(), expected)
    with MODES[mode](), without(own_modes, line), pytest.raises((AssertionError, RuntimeError)):
        torch.testing.assert_close(scores(), expected)


CHANGES: dict[str, Callable[[nn.Module, Path], Any]] = {
    "Pyro's parameter store": lambda network, path: pyro.param("new", torch.ones(1)),
    "gradient mode": lambda network, path: torch._C._set_grad_enabled(False),
    "autocast": lambda network, path: torch.set_autocast_enabled("cpu", True),
    "default dtype": lambda network, path: torch.set_default_dtype(torch.float64),
    "default device": lambda network, path: torch.set_default_device("meta"),
    "torch's random state": lambda network, path: torch.rand(1),
    "NumPy's random state": lambda network, path: np.random.rand(),
    "Python's random state": lambda network, path: random.random(),
    "filters of warnings": lambda network, path: warnings.simplefilter("ignore"),
    "number of threads": lambda network, path: torch.set_num_threads(3),
    "working directory": lambda network, path: os.chdir(path),
    "open files": lambda network, path: KEPT.append((path / "left").open("w")),
    "modes of networks": lambda network, path: network.eval(),
    "buffers of networks": lambda network, path: network(X),
    "gradients of networks": lambda network, path: network(X).sum().backward(),
    "hooks of networks": lambda network, path: network.register_forward_hook(lambda *_: None),
}
KEPT: list[Any] = []


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("raises", [False, True], ids=["", "with an error"])
def test_the_watch_sees_a_change(change: str, raises: bool, network: nn.Module, tmp_path: Path) -> None:
    folder = os.getcwd()

    def call(network: nn.Module) -> None:
        CHANGES[change](network, tmp_path)
        if raises:
            raise ValueError("on purpose")

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        with warnings.catch_warnings(), pytest.raises(AssertionError, match=change):
            world.watching(call, "a call")(network)
    finally:
        set_random_states(*before)
        pyro.clear_param_store()
        torch._C._set_grad_enabled(True)
        torch.set_autocast_enabled("cpu", False)
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(1)
        os.chdir(folder)
        while KEPT:
            KEPT.pop().close()
