"""A frozen backbone stays as it is, bit for bit; in joint training only the unfrozen parts are in train mode."""

import pytest
import torch
from torch import nn

from bll_pyro.features.forward import frozen, set_training, trainable_parameters


def network():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5))
    return nn.Sequential(first, second, nn.Dropout(0.1))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one, two):
    return all(one[name].equal(two[name]) for name in one)


def test_frozen_runs_in_eval_mode_and_leaves_everything_as_it_was():
    module = network()
    module[0][1].eval()
    before, modes = state(module), [part.training for part in module.modules()]
    x = torch.randn(8, 3)
    with frozen(module) as inside:
        assert inside is module
        assert not any(part.training for part in module.modules())
        first, second = module(x), module(x)
    assert not first.requires_grad
    assert first.equal(second)  # no dropout
    assert same(before, state(module))
    assert [part.training for part in module.modules()] == modes
    assert torch.is_grad_enabled()
    module(x)
    assert not same(before, state(module))  # outside, BatchNorm moves: the comparison can fail


def test_frozen_gives_the_modes_back_after_an_error_and_when_nested():
    module = network()
    with pytest.raises(RuntimeError), frozen(module), frozen(module):
        raise RuntimeError
    assert all(part.training for part in module.modules())


def test_frozen_holds_parts_that_refuse_eval_mode():
    class Stubborn(nn.BatchNorm1d):
        def train(self, mode=True):
            return super().train(True)

    module = nn.Sequential(Stubborn(3))
    before = state(module)
    with frozen(module):
        module(torch.randn(8, 3))
    assert same(before, state(module))
    assert module[0].training


def test_trainable_parameters_are_those_that_require_gradients():
    module = network()
    module[0].requires_grad_(False)
    assert [id(p) for p in trainable_parameters(module)] == [id(p) for p in module[1].parameters()]


def test_only_unfrozen_parts_train():
    module = network()
    module[0].requires_grad_(False)
    set_training(module)
    assert not any(part.training for part in module[0].modules())
    assert all(part.training for part in module[1].modules())  # the BatchNorm without parameters too
    assert module[2].training  # dropout of the whole network
    before = state(module)
    module(torch.randn(8, 3))
    after = state(module)
    assert before["0.1.running_mean"].equal(after["0.1.running_mean"])
    assert not before["1.1.running_mean"].equal(after["1.1.running_mean"])


def test_a_frozen_batchnorm_inside_an_unfrozen_part_keeps_its_statistics():
    module = network()
    module[0][1].requires_grad_(False)
    set_training(module)
    assert module[0].training
    assert not module[0][1].training


def test_a_wholly_frozen_network_does_not_train():
    module = network().requires_grad_(False)
    set_training(module)
    assert not any(part.training for part in module.modules())


def test_a_train_method_that_keeps_parts_in_eval_mode_is_respected():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    module = Careful()
    set_training(module)
    assert module.training
    assert not module.norm.training
