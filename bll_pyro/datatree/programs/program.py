"""``Program``: a Pyro model or guide with its arguments, the survey of its sites, and a context for its runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.nn import PyroModule
from torch import Tensor, nn

from bll_pyro.datatree.programs.sites import Site, blocks_of, join, kind_of, mask_of, read_site
from bll_pyro.datatree.programs.substitute import Substitute
from bll_pyro.scope import isolated, without_validation


@dataclass(frozen=True)
class Program:
    """A callable with Pyro statements, and the arguments of its calls."""

    call: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def trace(self, substitute: Substitute, enumerate_from: int | None = None) -> Any:
        """Run once and return the trace; discrete sites without a value are enumerated if a first axis is named."""

        def supplied() -> None:
            with substitute:
                self.call(*self.args, **self.kwargs)

        run: Callable[[], Any] = supplied
        if enumerate_from is not None:
            substitute.enumerating = True
            run = poutine.enum(config_enumerate(supplied), first_available_dim=enumerate_from)
        with torch.no_grad():
            return poutine.trace(run).get_trace()

    @property
    def modules(self) -> list[nn.Module]:
        """Torch modules that the callable uses visibly: itself, its owner, and what handlers wrap."""
        call = poutine.unwrap(self.call)
        owners = [self.call, call, getattr(call, "__self__", None), getattr(self.call, "__self__", None)]
        return [owner for owner in owners if isinstance(owner, nn.Module)]


@dataclass(frozen=True)
class Survey:
    """What one run over all rows shows of a program: its sites, its data, and how its rows are cut into blocks."""

    sites: dict[str, Site]
    observed: dict[str, NDArray[Any]]
    """Data by observed site, over the full plates."""
    masks: dict[str, NDArray[np.bool_]]
    """Masks over the rows, of the sites that have one."""
    blocks: list[dict[str, Tensor]]
    device: torch.device

    def of_kind(self, *kinds: str) -> list[Site]:
        """Sites of these kinds, in the order of the program."""
        return [site for site in self.sites.values() if site.kind in kinds]

    @property
    def enumerate_from(self) -> int | None:
        """First axis for enumeration: left of all plates; None where nothing is enumerated."""
        if not self.of_kind("enumerated"):
            return None
        return -1 - max((-plate.axis for site in self.sites.values() for plate in site.plates), default=0)


def survey(
    program: Program, draw: Mapping[str, Tensor] | None = None, predicted: Collection[str] = ()
) -> Survey:
    """Run a program once over all its rows, on one draw of its latent sites or, without one, on draws of its own.

    Sites in ``predicted`` are data even if the program has none for them.
    """
    first = Substitute(draw or {})
    trace = program.trace(first)
    nodes = _nodes(trace)
    sites = {name: read_site(node, kind_of(node, draw, predicted)) for name, node in nodes.items()}
    blocks = blocks_of(first.subsampled)
    carried = {
        name: nodes[name]["value"] for name in first.sampled if not sites[name].in_any(first.subsampled)
    }
    parts: dict[tuple[str, str], NDArray[Any]] = {}
    for rows in blocks:
        if len(blocks) > 1:
            nodes = _nodes(program.trace(Substitute({**carried, **(draw or {})}, rows=rows)))
        for name, node in nodes.items():
            _add_data(parts, sites[name], node, rows)
    masks = {n: np.asarray(part[0]) for (what, n), part in parts.items() if what == "mask" and not part.all()}
    # Data under poutine.mask(mask=False) are not in the model.
    hidden = {name for name, mask in masks.items() if not mask.any()}
    found = {name: site for name, site in sites.items() if name not in hidden or site.kind != "observed"}
    observed = {n: np.asarray(part[0]) for (what, n), part in parts.items() if what == "value" and n in found}
    device = next((node["value"].device for node in nodes.values() if torch.is_tensor(node["value"])), None)
    return Survey(found, observed, masks, blocks, device or torch.device("cpu"))


@contextmanager
def undisturbed(programs: Sequence[Program], seed: int) -> Iterator[None]:
    """Run programs without side effects: the caller's parameters inside, the caller's state unchanged outside.

    The parameter store holds the caller's entries, so that trained values are found; random generators are seeded and
    put back; modules of the programs are in eval mode; distributions don't check their arguments, since draws at the
    edge of a support are legal (MCMC makes them; data are checked by the survey).

    Raises
    ------
    ValueError
        If a program makes a parameter from its initial value, since then it was never trained with this store; or if a
        module and the store disagree about a parameter.
    """
    store = pyro.get_param_store()
    state = store.get_state()
    owners = {id(owner): owner for program in programs for owner in program.modules}
    own = {name for owner in owners.values() for name in _own_parameters(owner, state["params"])}
    # A module reads its parameters from the store where it finds them there, and would be changed.
    outside = {part: {k: v for k, v in entries.items() if k not in own} for part, entries in state.items()}
    modules = {id(module): module for owner in owners.values() for module in owner.modules()}
    flags = {key: module.training for key, module in modules.items()}
    try:
        with isolated(seed), without_validation():
            store.set_state(outside)
            for module in modules.values():
                module.training = False
            yield
            made = sorted(
                name
                for name, value in store.named_parameters()
                if name not in outside["params"] and not isinstance(value, nn.Parameter)
            )
            if made:
                raise ValueError(
                    f"the parameters {made} are not in Pyro's parameter store, so that the program would start from "
                    "their initial values; expected trained ones. Convert before the store is cleared, or inside the "
                    "`with pyro.get_param_store().scope(state):` that it was trained in."
                )
    finally:
        for key, module in modules.items():
            module.training = flags[key]


def _add_data(
    parts: dict[tuple[str, str], NDArray[Any]],
    site: Site,
    node: Mapping[str, Any],
    rows: Mapping[str, Tensor],
) -> None:
    """Add the data and the mask that one block of rows shows of a site."""
    if site.kind in ("deterministic", "factor"):
        return
    batch = torch.broadcast_shapes(node["fn"].batch_shape, _batch(node))
    if site.kind == "observed":
        value = torch.as_tensor(node["value"]).expand(batch + node["fn"].event_shape)
        _check_support(node, value, tuple(batch))
        parts["value", site.name] = join(
            parts.get(("value", site.name)), value.detach().cpu().numpy()[None].copy(), site, "value", rows
        )
    mask = mask_of(node, tuple(batch))
    if mask is not None:
        parts["mask", site.name] = join(
            parts.get(("mask", site.name)), mask.numpy()[None].copy(), site, "mask", rows
        )


def _check_support(node: Mapping[str, Any], value: Tensor, batch: tuple[int, ...]) -> None:
    """Refuse data outside of the distribution's support, such as NaN; masked rows may hold anything."""
    try:
        good = node["fn"].support.check(value).expand(batch)
    except NotImplementedError:
        return  # a distribution without a known support
    mask = mask_of(node, batch)
    bad = ~good.cpu() if mask is None else ~good.cpu() & mask
    if bad.any():
        row = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"the data of site {node['name']!r} lie outside the support {node['fn'].support} of its "
            f"{type(node['fn']).__name__} in {int(bad.sum())} rows, the first of them {row}. Correct the data, mask these "
            "rows (poutine.mask or obs_mask), or use another likelihood."
        )


def _batch(node: Mapping[str, Any]) -> torch.Size:
    """Leading axes of a node's value, left of its event axes."""
    value = torch.as_tensor(node["value"])
    return value.shape[: value.dim() - node["fn"].event_dim]


def _nodes(trace: Any) -> dict[str, Any]:
    """Sample sites of a trace, without the row choices of the plates."""
    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }


def _own_parameters(module: nn.Module, stored: dict[str, Tensor]) -> list[str]:
    """Return the names by which Pyro's store knows a module's parameters; refuse a store that holds other values.

    Pyro lets the store win, silently: two guides of one class would share the values of the one trained last.
    """
    names = []
    for part in module.modules():
        if not isinstance(part, PyroModule):
            continue  # its parameters are known by the module that holds it, and are not changed
        for name, value in part.named_parameters(recurse=False):
            full = ".".join(filter(None, [part._pyro_name, name.removesuffix("_unconstrained")]))
            other = stored.get(full)
            if other is not None and other is not value and not torch.equal(other, value):
                raise ValueError(
                    f"the parameter {full!r} of a {type(module).__name__} differs from the one of this name in Pyro's "
                    "parameter store, which belongs to another module of the same name, or was loaded later. Clear "
                    "the store (pyro.clear_param_store()) to use the module's own values, or run the module once to "
                    "take over the store's."
                )
            names.append(full)
    return names
