"""``fit_from_draws``: draws of ``bll.Model`` that any inference of Pyro made, as a ``Fit``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.features.arrays import check_finite, to_tensor
from bll_pyro.features.recorded import Recorded
from bll_pyro.fitting.result import Fit
from bll_pyro.frame import Frame
from bll_pyro.inference import Trace
from bll_pyro.inference.own_loop import NOTE, OwnLoop
from bll_pyro.model import Model
from bll_pyro.posterior import Draws, DrawsPosterior
from bll_pyro.scope import own_modes


@own_modes(gradients=False)
def fit_from_draws(
    model: Model,
    draws: Mapping[str, Any],
    num_rows: int,
    *,
    backbone: nn.Module | None = None,
    center: Any = None,
    scale: Any = None,
    target_center: Any = None,
    target_scale: Any = None,
    markov_chain: bool = False,
) -> Fit:
    """A :class:`bll_pyro.Fit` from draws of the posterior of :class:`bll_pyro.Model`, whatever made them.

    A guide of yours trained by Pyro's ``SVI`` (draws by ``pyro.infer.Predictive(model, guide=guide, num_samples=S)``), ``MCMC``
    (``mcmc.get_samples(group_by_chain=True)``), or importance sampling: the fit predicts, goes to ArviZ, is saved, takes a
    detector and a recalibration. For the tree of any other program see :func:`bll_pyro.from_pyro`.

    Parameters
    ----------
    model
        The program; its learned hyper-parameters are taken at their present values.
    draws
        ``{site: [S, *event]}`` for each latent site of the program: the weight, the bias, noise and hyper-parameters; of Markov
        chains also ``[chain, S, *event]``. Axes of size 1 beside S, which Pyro's ``Predictive`` leaves, are joined to it. Other
        entries (``y``) are left out.
    num_rows
        Number N of rows that the program was conditioned on.
    backbone
        The network from inputs to features; by default that of the model.
    center, scale, target_center, target_scale
        What the program saw in place of features h and targets y was ``(h - center) / scale`` and
        ``(y - target_center) / target_scale``: numbers, ``[D]``, ``[T]``. None: 0 and 1. ``model.layer`` is in these units.
    markov_chain
        Whether the draws are of Markov chains, so that R-hat and ESS mean something.

    Raises
    ------
    ValueError
        If a site is missing or has another shape, and for draws that are not finite.
    """
    if not isinstance(model, Model):
        raise TypeError(f"fit_from_draws: expected a bll.Model, got {type(model).__name__}")
    num_rows = count(num_rows, "num_rows", "fit_from_draws")
    kept = checked_draws(model, draws, markov_chain)
    like = kept["weight"]
    num_features, num_targets = model.num_features, torch.Size(model.target_shape).numel()
    frame = Frame(
        constant(center, "center", 0.0, num_features, like),
        constant(scale, "scale", 1.0, num_features, like),
        constant(target_center, "target_center", 0.0, num_targets, like),
        constant(target_scale, "target_scale", 1.0, num_targets, like),
        bias=model.layer.bias,
    )
    layer = replace(
        model.layer, standardize=not all(v is None for v in (center, scale, target_center, target_scale))
    )
    learned = {name: value.detach().clone() for name, value in model.learned.items()}
    posterior = DrawsPosterior(
        layer, frame, model.target_shape, model.num_outputs, learned, draws=kept, markov_chain=markov_chain
    )
    if target_scale is not None:
        layer = replace(layer, likelihood=layer.likelihood.in_units(1 / frame.target_scale))
    backbone = model.backbone if backbone is None else backbone
    recorded = None if backbone is None else Recorded(backbone)
    return Fit(layer, posterior, OwnLoop(), Trace(notes=[NOTE]), 0, num_rows, backbone, recorded=recorded)


def checked_draws(model: Model, draws: Mapping[str, Any], markov_chain: bool) -> Draws:
    """Copies of the draws ``{site: [chain, S, *event]}`` of the latent sites, as a posterior keeps them."""
    shapes = {name: tuple(prior.event_shape) for name, prior in model.global_sites.priors.items()}
    shapes["weight"] = model.weight_shape
    if model.layer.bias:
        shapes["bias"] = (model.num_outputs,)
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        if name not in draws:
            raise ValueError(
                f"fit_from_draws: expected draws of the sites {', '.join(sorted(shapes))}, got none of {name}; pass all latent "
                "sites of the model"
            )
        value = to_tensor(draws[name], f"draws of {name}").detach()
        num_leading = value.dim() - len(shape)
        if tuple(value.shape[num_leading:]) != shape or num_leading < 1:
            raise ValueError(
                f"fit_from_draws: expected draws of {name} of shape [S, {', '.join(map(str, shape))}], got {list(value.shape)}"
            )
        check_finite(value, f"draws of {name}")
        if markov_chain and num_leading == 2:
            found[name] = value.clone()
        else:
            found[name] = value.reshape(1, -1, *shape).clone()
    sizes = {name: tuple(value.shape[:2]) for name, value in found.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"fit_from_draws: expected as many draws of each site, got chains and draws {sizes}")
    return model.global_sites.to_user(found)


def constant(value: Any, name: str, default: float, size: int, like: Tensor) -> Tensor:
    """A constant of the frame, ``[size]``; ValueError if it does not fit."""
    given = to_tensor(default if value is None else value, name).to(like).reshape(-1)
    if len(given) not in (1, size) or not bool(given.isfinite().all()):
        raise ValueError(
            f"fit_from_draws: expected {name} as a finite number, or one for each of {size}, got {value!r}"
        )
    if name.endswith("scale") and not bool((given > 0).all()):
        raise ValueError(
            f"fit_from_draws: expected {name} above 0, got {value!r}; it is a standard deviation"
        )
    return given.expand(size).clone()
