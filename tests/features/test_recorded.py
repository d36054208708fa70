"""A network that is trained on after a fit is noticed, however it is changed; what changes nothing is not."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import bll_pyro as bll
from bll_pyro.scope import isolated

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(64, 3, generator=GENERATOR)
Y = X[:, 0] + 0.1 * torch.randn(64, generator=GENERATOR)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def stepped(net, make):
    optimizer = make(net.parameters(), lr=0.05)
    net.eval()  # without the statistics of BatchNorm
    net(X).square().sum().backward()
    optimizer.step()


def set_data(net):
    for parameter in net.parameters():
        parameter.data.mul_(1.01)


def forward_in_train_mode(net):
    net.train()(X)


def new_layer(net):
    net[3] = nn.Linear(8, 4)


CHANGES = {
    "SGD": lambda net: stepped(net, torch.optim.SGD),
    "foreach": lambda net: stepped(net, lambda p, lr: torch.optim.Adam(p, lr, foreach=True)),
    "fused": lambda net: stepped(net, lambda p, lr: torch.optim.AdamW(p, lr, fused=True)),
    "data": set_data,
    "running statistics": forward_in_train_mode,
    "load_state_dict": lambda net: net.load_state_dict({k: v + 1 for k, v in net.state_dict().items()}),
    "a new layer": new_layer,
}


def fitted(net):
    with isolated(0):
        return bll.fit(bll.LastLayer(bll.likelihoods.Gaussian()), (X, Y), net, bll.Exact())


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_said(change):
    with isolated(0):
        net = network()
        fit = fitted(net)
        before = fit.predict(X).mean
        CHANGES[change](net)
        with pytest.warns(RuntimeWarning, match=r"backbone was changed after the fit.*fit again"):
            after = fit.predict(X).mean
    assert not torch.equal(before, after)


def test_calibrating_and_detecting_say_it_too():
    with isolated(0):
        net = network()
        fit = fitted(net)
        set_data(net)
        for call in (lambda: bll.calibrate(fit, X, Y), lambda: bll.ood.Detector(alpha=0.1).calibrate(fit, X)):
            with pytest.warns(RuntimeWarning, match="backbone was changed"):
                call()


def test_nothing_is_said_where_nothing_changed(tmp_path):
    """Warnings are errors here."""
    net = network()
    fit = fitted(net)
    fit.predict(X)
    net.train().requires_grad_(False)
    net.to("cpu")
    with torch.no_grad():
        net.eval()(X)
    fit.predict(X)
    fit.head.predict(net(X))
    bll.calibrate(fit, X, Y).predict(X)
    fit.save(tmp_path / "fit")
    bll.load(tmp_path / "fit", backbone=network()).predict(X)
    with warnings.catch_warnings(record=True):
        joint = bll.fit(
            bll.LastLayer(bll.likelihoods.Gaussian()), (X, Y), net.requires_grad_(True),
            bll.SVI(backbone_learning_rate=1e-3, num_epochs=2),
        )  # fmt: skip
    set_data(net)
    joint.predict(X)


def test_copies_and_pickles_watch_their_own_network():
    net = network()
    fit = fitted(net)
    for twin in (copy.deepcopy(fit), pickle.loads(pickle.dumps(fit))):
        set_data(net)
        twin.predict(X)
        set_data(twin.backbone)
        with pytest.warns(RuntimeWarning, match="backbone was changed"):
            twin.predict(X)


def test_a_loaded_fit_watches_the_network_that_it_was_given(tmp_path):
    fitted(network()).save(tmp_path / "fit")
    other = network()
    fit = bll.load(tmp_path / "fit", backbone=other)
    set_data(other)
    with pytest.warns(RuntimeWarning, match="backbone was changed"):
        fit.predict(X)
