"""Any guide that Pyro can run: an autoguide class by name, or a function with ``pyro.param`` and ``pyro.sample``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide, AutoMessenger
from pyro.nn import PyroModule
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import transform_to

from bll_pyro.guides.base import Guide, Start

POINTS = ("AutoDelta", "AutoLaplaceApproximation")  # trained as points, without uncertainty
# base classes, composites that a user has to assemble, guides of discrete sites, and the class behind guides.Flow
UNFIT = (
    *("AutoGuide", "AutoMessenger", "AutoContinuous", "AutoGuideList", "AutoCallable"),
    *("AutoDiscreteParallel", "AutoNormalizingFlow"),
)


class OwnParameters(nn.Module):
    """Parameters of a guide function, held here and not in Pyro's store: ``with own.catching(): ...``."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.ParameterList()
        self.index: dict[str, int] = {}

    @contextmanager
    def catching(self) -> Iterator[None]:
        """Answer every ``pyro.param`` statement inside with a parameter of this module."""
        with ParameterMessenger(self):
            yield

    def value(self, name: str, initial: Any, constraint: Any) -> Tensor:
        """The parameter of a name, made from its initial value when it is first asked for."""
        transform = transform_to(constraint)
        if name not in self.index:
            if initial is None:
                raise ValueError(
                    f"pyro.param({name!r}): expected an initial value where it is first used, got none"
                )
            start = initial() if callable(initial) else initial
            if not isinstance(start, nn.Parameter):  # else it belongs to a module that the guide runs
                start = nn.Parameter(transform.inv(torch.as_tensor(start)).detach().clone())
            self.index[name] = len(self.values)
            self.values.append(start)
        free = self.values[self.index[name]]
        value = transform(free)
        value.unconstrained = weakref.ref(free)  # as Pyro's store marks its values
        return value


class ParameterMessenger(poutine.messenger.Messenger):
    """Pyro effect handler that hands param statements to :class:`OwnParameters`."""

    def __init__(self, owner: OwnParameters) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_param(self, message: Any) -> None:
        if message["name"] in pyro.get_param_store():  # a Pyro module asks for what it holds itself
            return
        initial = message["args"][1] if len(message["args"]) > 1 else None
        message["value"] = self.owner.value(message["name"], initial, message["kwargs"]["constraint"])
        message["done"] = True


class CallableGuide(PyroModule):
    """A Pyro module around any guide: it owns the parameters and returns the values of the latent sites."""

    def __init__(self, guide: Callable[..., Any], latents: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.own = OwnParameters()
        self.latents = latents  # the shape of each site
        self.guide = guide  # a module is registered with its parameters, a function is kept as it is

    def forward(self, *args: Any) -> dict[str, Tensor]:
        """Run the guide; return ``{site: value}``."""
        # some of Pyro's guides run the model: its observed sites are no part of the guide's density
        latent_part = poutine.block(self.guide, hide_fn=is_data)
        with self.own.catching():
            trace = poutine.trace(latent_part).get_trace(*args)
        sites = {
            name: site["value"]
            for name, site in trace.iter_stochastic_nodes()
            if not site["infer"].get("is_auxiliary")
        }
        if sites.keys() != self.latents.keys():
            raise ValueError(
                f"guides.Custom: expected a guide with the sample sites {', '.join(sorted(self.latents))}, got "
                f"{', '.join(sorted(sites)) or 'none'}; write one pyro.sample(name, ...) for each, with the same names"
            )
        for name, shape in self.latents.items():
            found = tuple(sites[name].shape)
            if found[len(found) - len(shape) :] != shape:
                raise ValueError(
                    f"guides.Custom: expected the site {name} of shape {list(shape)}, got {list(found)}; write the guide "
                    "function for this layer's outputs and features"
                )
        return sites


def is_data(site: Any) -> bool:
    """Whether a site is observed, or the choice of a batch."""
    return site["type"] == "sample" and (site["is_observed"] or site_is_subsample(site))


@dataclass(frozen=True, eq=False)
class Custom(Guide):
    """Any guide that Pyro can run, trained by its ``Trace_ELBO``; the posterior is a set of draws.

    Parameters
    ----------
    guide
        A class of ``pyro.infer.autoguide`` or its name, e.g. ``"AutoLowRankMultivariateNormal"``; another class of Pyro
        guides, made as ``guide(model, **options)``; or a function of the model's arguments
        ``(features, targets, num_rows)`` with a ``pyro.sample`` for each latent site. Autoguides start where the
        library's own guides do, if they take initial values. Only names can be written to a file.
    options
        Arguments of the class, e.g. ``{"rank": 4}``.
    """

    guide: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = getattr(self.guide, "__name__", "")
        if name in autoguide.__all__ and getattr(autoguide, name) is self.guide:
            object.__setattr__(self, "guide", name)
        if isinstance(self.guide, str):
            if self.guide in POINTS:
                raise ValueError(
                    f"Custom(guide=...): expected a guide with uncertainty, got {self.guide}, which is trained as a point; "
                    "use bll.guides.MAP() for the mode, bll.Laplace() for a Gaussian around it"
                )
            if self.guide not in known_autoguides():
                raise ValueError(
                    f"Custom(guide=...): expected the name of a class in pyro.infer.autoguide, got {self.guide!r}; "
                    f"known: {', '.join(known_autoguides())}"
                )
        elif not callable(self.guide):
            raise TypeError(
                f"Custom(guide=...): expected an autoguide class, its name, or a guide function, got {self.guide!r}"
            )
        if self.options and not isinstance(self.guide, (str, type)):
            raise ValueError(
                f"Custom(options=...): expected options for a class only, got {self.options} for a function; "
                "bind them with functools.partial"
            )

    def build(self, model: Any, start: Start) -> PyroModule:
        """The guide of ``model``."""
        latents = {name: tuple(prior.event_shape) for name, prior in model.global_sites.priors.items()}
        latents |= {
            "weight": model.weight_shape,
            **({"bias": (model.num_outputs,)} if model.layer.bias else {}),
        }
        cls = getattr(autoguide, self.guide) if isinstance(self.guide, str) else self.guide
        if not isinstance(cls, type):
            return CallableGuide(cls, latents)
        guide = cls(model, **self._start_options(cls, model, start), **self.options)
        if isinstance(guide, AutoGuide):
            return guide
        return CallableGuide(guide, latents)

    def _start_options(self, cls: type, model: Any, start: Start) -> dict[str, Any]:
        """Initial values as arguments of Pyro's autoguides, except those given in the options."""
        if not issubclass(cls, (AutoGuide, AutoMessenger)) or issubclass(cls, autoguide.AutoNormalizingFlow):
            return {}
        weight, bias = start.loc[:, : start.num_features], start.loc[:, start.num_features :]
        values = {"weight": weight, **({"bias": bias.squeeze(-1)} if bias.shape[1] else {})}
        if len(start.globals_loc):
            values |= model.global_sites.constrain(start.globals_loc)[0]
        offered = {
            "init_loc_fn": autoguide.init_to_value(values=values),
            "init_scale": float(start.scale.median()),
        }
        accepted = signature(cls).parameters
        return {k: v for k, v in offered.items() if k in accepted and k not in self.options}


def known_autoguides() -> list[str]:
    """Names of Pyro's autoguides that give a distribution."""
    found = {name: getattr(autoguide, name) for name in autoguide.__all__ if name not in (*POINTS, *UNFIT)}
    return [n for n, c in found.items() if isinstance(c, type) and issubclass(c, (AutoGuide, AutoMessenger))]
