"""Fingerprints change with what decides the features, and with nothing else."""

import contextlib
import io
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from bll_pyro.features.fingerprint import DataHash, module_fingerprint

X = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10)


def data_hash(inputs, targets=None, cuts=(10,), ordered=True):
    digest = DataHash(ordered=ordered)
    start = 0
    for size in cuts:
        stop = start + size
        digest.update(inputs[start:stop], None if targets is None else targets[start:stop])
        start = stop
    return digest.hexdigest()


@pytest.mark.parametrize("ordered", [True, False])
def test_the_cut_into_batches_does_not_matter(ordered):
    assert data_hash(X, Y, (3, 3, 4), ordered) == data_hash(X, Y, (10,), ordered)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (X + 1e-6, Y),
        (X.double(), Y),
        (X.reshape(10, 3, 1), Y),
        (X, Y + 1),
        (X, Y.int()),
        (X, None),
        (X[:9], Y[:9]),
        (X, Y.flip(0)),
    ],
)
def test_contents_types_and_shapes_matter(inputs, targets, ordered):
    assert data_hash(inputs, targets, ordered=ordered) != data_hash(X, Y, ordered=ordered)


def test_the_order_matters_only_when_it_is_asked_for():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    assert data_hash(X[order], Y[order]) != data_hash(X, Y)
    assert data_hash(X[order], Y[order], ordered=False) == data_hash(X, Y, ordered=False)


def test_memory_layout_does_not_matter():
    assert data_hash(X.T.contiguous().T) == data_hash(X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.uint8])
def test_types_that_numpy_lacks(dtype):
    assert data_hash(X.to(dtype)) != data_hash(1 - X.to(dtype).to(torch.uint8))


def test_items_without_tensors_are_refused():
    with pytest.raises(TypeError, match=r"inputs.text: expected tensors.*got str"):
        DataHash().update({"image": X, "text": "a"}, None)


# ---- modules


class Net(nn.Module):
    def __init__(self, power=1.0, activation=functional.relu):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("shift", torch.zeros(2), persistent=False)
        self.power, self.activation = power, activation

    def forward(self, x):
        return self.activation(self.norm(self.layer(x))) ** self.power + self.shift


def net(cls=Net, **kwargs):
    torch.manual_seed(0)
    return cls(**kwargs)


def test_the_same_module_has_the_same_fingerprint():
    module = net()
    expected = module_fingerprint(module)
    assert module_fingerprint(net()) == expected
    module.eval().requires_grad_(False)
    assert module_fingerprint(module) == expected
    assert module_fingerprint(Net()) != expected  # other random weights


def test_weights_and_buffers_matter():
    expected = module_fingerprint(net())
    for name in ("layer.weight", "norm.running_mean", "shift"):
        module = net()
        tensor = dict([*module.named_parameters(), *module.named_buffers()])[name]
        with torch.no_grad():
            tensor.view(-1)[-1] += 1e-3
        assert module_fingerprint(module) != expected, name
    assert module_fingerprint(net().double()) != expected


def test_attributes_matter():
    expected = module_fingerprint(net())
    assert module_fingerprint(net(power=2.0)) != expected
    assert module_fingerprint(net(activation=functional.gelu)) != expected
    assert module_fingerprint(net(activation=lambda x: x)) != module_fingerprint(net(activation=lambda x: -x))
    module = net()
    module.norm.eps = 1e-2
    assert module_fingerprint(module) != expected


def test_the_same_weights_under_another_architecture_are_another_backbone():
    one, two = nn.Sequential(nn.Linear(3, 2), nn.ReLU()), nn.Sequential(nn.Linear(3, 2), nn.Tanh())
    two.load_state_dict(one.state_dict())
    assert module_fingerprint(one) != module_fingerprint(two)


def test_the_code_of_forward_matters():
    def variant(forward):
        return type("Net", (Net,), {"forward": forward, "__module__": "a", "__qualname__": "Net"})

    def first(self, x):
        """What it does."""
        return self.layer(x) + 1

    def second(self, x):
        """What it does."""
        return self.layer(x) + 2

    @torch.no_grad()
    def wrapped_first(self, x):
        return self.layer(x) + 1

    @torch.no_grad()
    def wrapped_second(self, x):
        return self.layer(x) + 2

    prints = {module_fingerprint(net(variant(f))) for f in (first, second, wrapped_first, wrapped_second)}
    assert len(prints) == 4


@pytest.mark.slow
def test_it_is_the_same_in_another_process():
    code = """
import torch
from torch import nn
from bll_pyro.features.fingerprint import module_fingerprint
class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x) if len(x) not in {1, 2, "three", "four", "five"} else x
torch.manual_seed(0)
print(module_fingerprint(Net(3, 2)))
"""
    printed = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"  # sets of words have another order
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == printed.getvalue()
