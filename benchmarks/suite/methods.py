"""The methods of the suite, the module that fits each, and the environment that it runs in."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.suite.splits import CLASSES, NETWORK, VALUES

OURS = "bll_pyro, default"
HERE = "benchmarks.suite"
THERE = f"{HERE}.peer_methods"


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes
    ----------
    name : str
        Name in the tables.
    fits : dict
        For each kind of task ``module:function``, with ``function(split, seed, budget) -> predict``.
    package : str
        The distribution that it comes from.
    peer : str or None
        Name of the environment (`benchmarks.suite.peers`); None: that of the project.
    is_variant : bool
        Another inference of ours: it is shown, and takes no part in ranks and losses.
    note : str
        Its settings, in one line.
    """

    name: str
    fits: dict[str, str]
    package: str = "torch"
    peer: str | None = None
    is_variant: bool = False
    note: str = ""

    def fit(self, kind: str) -> Callable[..., Any]:
        """The function that fits tasks of a kind."""
        module, _, function = self.fits[kind].partition(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


def _both(name: str, function: str, note: str) -> Method:
    network = f"{HERE}.network:{function}"
    return Method(name, {CLASSES: f"{HERE}.heads:{function}", VALUES: network, NETWORK: network}, note=note)


def _peer(name: str, peer: str, note: str, **functions: str) -> Method:
    module = f"{THERE}.{peer.replace('-', '_')}"
    return Method(
        name, {kind: f"{module}:{function}" for kind, function in functions.items()}, peer, peer, note=note
    )


METHODS = (
    Method(
        OURS, dict.fromkeys((CLASSES, VALUES, NETWORK), f"{HERE}.ours:default"), "bll-pyro",
        note="nothing chosen but the likelihood; end to end `SVI(backbone_learning_rate=)`",
    ),
    Method(
        "bll_pyro, Laplace", {CLASSES: f"{HERE}.ours:laplace"}, "bll-pyro", is_variant=True,
        note="`Laplace(Kronecker())`",
    ),
    Method("bll_pyro, Exact", {VALUES: f"{HERE}.ours:exact"}, "bll-pyro", is_variant=True, note="`Exact()`"),
    Method(
        "plain Pyro",
        {CLASSES: f"{HERE}.plain_pyro:classes"} | dict.fromkeys((VALUES, NETWORK), f"{HERE}.plain_pyro:values"),
        "pyro-ppl", note="`AutoDiagonalNormal`, `Trace_ELBO`, `Predictive`, N(0, 1) weights",
    ),
    _both("MAP", "point", "mode under N(0, 1) weights; the noise of values is that of the training rows"),
    _both("MAP + temperature", "tempered", "temperature, or noise of values, from a tenth of the training rows"),
    _both("ensemble", "ensemble", "5 modes from random starts"),
    _both("MC dropout", "dropout", "50 draws; rate 0.1 of features for classes, 0.05 for values"),
    _peer(
        "laplace-torch", "laplace-torch", "around the mode; Kronecker factors for classes, full for values; prior precision (and "
        "noise) by its marginal likelihood; 100 draws", classes="classes", values="values", network="network",
    ),
    _peer(
        "vbll", "vbll", "diagonal covariance, weight 1/N; values: noise started at 1", classes="classes", values="values",
        network="network",
    ),
    _peer("torch-uncertainty", "torch-uncertainty", "`BayesLinear`, `ELBOLoss`", classes="classes"),
    _peer(
        "probly", "probly", "`Bayesian`, `ELBOLoss`, weight 1/N; 0.3.1, since 0.9.1 does not import under Python 3.12.1",
        classes="classes",
    ),
    _peer(
        "lightning-uq-box", "lightning-uq-box", "`BNN_VI_ELBO_Classification` under Lightning's `Trainer`, one draw a step",
        classes="classes",
    ),
)  # fmt: skip
BY_NAME = {method.name: method for method in METHODS}
