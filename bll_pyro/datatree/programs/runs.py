"""Many runs of a program, one for each draw: all at once where the program can be vectorised, else one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bll_pyro.datatree.programs.program import Program, Survey
from bll_pyro.datatree.programs.sites import Site, join, site_log_prob
from bll_pyro.datatree.programs.substitute import Substitute
from bll_pyro.scope import without_warnings

Key = tuple[str, str]
"""``("value", site)`` or ``("log_prob", site)``."""

_NO_VECTORS = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AssertionError,
    AttributeError,
)
"""What a program may raise inside ``torch.vmap`` that runs well outside of it."""

NUMBERS_AT_ONCE = 2**25
"""Numbers of all sites together that one vectorised call may hold."""


@dataclass
class Runs:
    """What the runs gave: values and log-densities ``[draw, ...]`` by site, over the full plates."""

    parts: dict[Key, NDArray[Any]]
    loop_reason: str = ""
    """Why the runs were done one by one; empty if they were vectorised."""

    def value(self, name: str) -> NDArray[Any]:
        """Values ``[draw, *shape]`` of a site."""
        return self.parts["value", name]

    def log_prob(self, name: str) -> NDArray[np.float64]:
        """Log-densities ``[draw, *batch]`` of a site."""
        return self.parts["log_prob", name].astype(np.float64, copy=False)


@dataclass(frozen=True)
class Runner:
    """A program that is run on draws.

    Parameters
    ----------
    program, survey
        The program, and what one run of it showed.
    release
        Sample the observed sites instead of scoring them.
    vectorize
        True insists, False forbids, None tries and checks.
    """

    program: Program
    survey: Survey
    release: bool = False
    vectorize: bool | None = None
    marginal: bool = False
    """Sum discrete sites without draws out of the log-density of the observed site."""

    @property
    def sites(self) -> dict[str, Site]:
        """Sites by name."""
        return self.survey.sites

    def run(self, wanted: Sequence[Key], num_draws: int, draws: Mapping[str, Tensor] | None = None) -> Runs:
        """Run on ``num_draws`` draws (values ``[draw, ...]`` by site), and collect what is wanted."""
        given = dict(draws or {})
        reason = self._reason_for_loop(given, num_draws)
        if reason and self.vectorize:
            raise ValueError(
                f"vectorize=True, but the program does not vectorise: {reason}. Use vectorize=None."
            )
        every = self._one_by_one if reason else self._at_once
        parts: dict[Key, NDArray[Any]] = {}
        carried: dict[str, Tensor] = {}
        for number, rows in enumerate(self.survey.blocks):
            keys = list(wanted)
            if number == 0 and len(self.survey.blocks) > 1:
                keys += [("value", site.name) for site in self._own(given) if not site.in_any(rows)]
            result = every(keys, num_draws, {**given, **carried}, rows)
            for what, name in keys:
                array = result[what, name].cpu().numpy()
                parts[what, name] = join(parts.get((what, name)), array, self.sites[name], what, rows)
            if number == 0 and len(self.survey.blocks) > 1:
                carried = {k[1]: result[k] for k in keys[len(wanted) :]}
        return Runs({key: parts[key] for key in wanted}, reason)

    def _own(self, given: Mapping[str, Tensor]) -> list[Site]:
        """Sites that draw their own values in these runs."""
        kinds = ("latent", "enumerated", "observed") if self.release else ("latent", "enumerated")
        marginal = {site.name for site in self.survey.of_kind("enumerated")} if self.marginal else set()
        return [s for s in self.survey.of_kind(*kinds) if s.name not in given and s.name not in marginal]

    def _body(self, keys: Sequence[Key], rows: Mapping[str, Tensor]) -> Callable[[Mapping[str, Tensor]], Any]:
        """Return one run as a function from values to what is wanted of it."""
        enumerate_from = self.survey.enumerate_from if self.marginal else None

        @torch.no_grad()
        def body(values: Mapping[str, Tensor]) -> dict[Key, Tensor]:
            trace = self.program.trace(Substitute(values, rows, self.release), enumerate_from)
            return {key: self._pick(trace, key, rows).detach() for key in keys}

        return body

    def _pick(self, trace: Any, key: Key, rows: Mapping[str, Tensor]) -> Tensor:
        """Take a value or a log-density out of a trace."""
        what, name = key
        site = self.sites[name]
        if name not in trace.nodes:
            raise ValueError(
                f"site {name!r} does not occur in every run; expected a program with the same sites for all draws."
            )
        sizes = {plate.name: len(rows[plate.name]) for plate in site.plates if plate.name in rows}
        shape = list(site.value_shape if what == "value" else site.batch_shape)
        for plate in site.plates:
            shape[plate.axis - (site.event_dim if what == "value" else 0)] = sizes.get(
                plate.name, plate.full_size
            )
        if what == "value":
            return torch.as_tensor(trace.nodes[name]["value"]).expand(shape)
        if self.marginal and site.kind == "observed" and self.survey.enumerate_from is not None:
            return self._marginal(trace, name).reshape(shape)
        return site_log_prob(trace.nodes[name]).expand(shape)

    def _marginal(self, trace: Any, name: str) -> Tensor:
        """Log-density of a row with its discrete sites summed out: ``log sum_z p(z | theta) p(y_n | z, theta)``."""
        names = [name, *(site.name for site in self.survey.of_kind("enumerated"))]
        joint = sum((site_log_prob(trace.nodes[n]) for n in names), torch.zeros(()))
        num_plates = -1 - (self.survey.enumerate_from or -1)
        return joint.logsumexp(tuple(range(joint.dim() - num_plates)))

    def _at_once(
        self, keys: Sequence[Key], num_draws: int, values: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> dict[Key, Tensor]:
        """Run all draws by ``torch.vmap``, in as few calls as memory allows."""
        body = self._body(keys, rows)

        def one(_: Tensor, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {" ".join(key): value for key, value in body(values).items()}

        numbers = sum(math.prod(s.value_shape) + math.prod(s.batch_shape) for s in self.sites.values())
        chunk = min(num_draws, max(1, NUMBERS_AT_ONCE // max(1, numbers)))
        with _vectorised():
            mapped = torch.vmap(one, randomness="different", chunk_size=chunk)
            result = mapped(torch.arange(num_draws), dict(values))
        return {key: result[" ".join(key)] for key in keys}

    def _one_by_one(
        self, keys: Sequence[Key], num_draws: int, values: Mapping[str, Tensor], rows: Mapping[str, Tensor]
    ) -> dict[Key, Tensor]:
        """Run one draw after another."""
        body = self._body(keys, rows)
        results = [body({name: value[s] for name, value in values.items()}) for s in range(num_draws)]
        return {key: torch.stack([result[key] for result in results]) for key in keys}

    def _reason_for_loop(self, given: Mapping[str, Tensor], num_draws: int) -> str:
        """Say why the runs cannot be vectorised; empty if they can.

        Three draws are run at once, then one by one on the values that came out. An error in the first, or other
        numbers in the second, is a reason. The program has run before: an error of its own has shown already.
        """
        if self.vectorize is False:
            return "vectorize=False"
        picked = np.unique(np.linspace(0, num_draws - 1, 3).round().astype(int))
        sample = {name: value[picked] for name, value in given.items()}
        own = self._own(given)
        scored = [s for s in self.survey.sites.values() if s.kind not in ("deterministic", "enumerated")]
        keys: list[Key] = [("value", s.name) for s in [*own, *self.survey.of_kind("deterministic")]]
        keys += [("log_prob", s.name) for s in scored]
        rows = self.survey.blocks[0]
        try:
            at_once = self._at_once(keys, len(picked), sample, rows)
        except _NO_VECTORS as error:
            return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        settled = dict(sample)
        for site in own:
            # The values that came out, in an array over the full plates, from which a run takes its rows.
            drawn = join(None, at_once["value", site.name].cpu().numpy(), site, "value", rows)
            settled[site.name] = torch.as_tensor(drawn, device=self.survey.device)
        one_by_one = self._one_by_one(keys, len(picked), settled, rows)
        for key in keys:
            if not torch.allclose(
                at_once[key].double(), one_by_one[key].double(), rtol=1e-3, atol=1e-4, equal_nan=True
            ):
                return (
                    f"the {key[0]} of site {key[1]!r} differs between a run of all draws and runs one by one"
                )
        return ""


class _FreshNumbers(TorchFunctionMode):
    """Make the random generators that fill a tensor in place return a fresh tensor instead.

    Distributions draw through ``torch.empty(shape).normal_()`` and its like. Inside ``torch.vmap`` such a tensor is
    shared by all draws and may not be filled; a fresh one belongs to each draw.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _FILLERS:
            return func(*args, **kwargs)
        like, *rest = args
        return _FILLERS[func](
            lambda draw: draw(like.shape, dtype=like.dtype, device=like.device), *rest, **kwargs
        )


_FILLERS: dict[Any, Callable[..., Tensor]] = {
    torch.Tensor.normal_: lambda new, mean=0.0, std=1.0: mean + std * new(torch.randn),
    torch.Tensor.uniform_: lambda new, low=0.0, high=1.0: low + (high - low) * new(torch.rand),
    torch.Tensor.exponential_: lambda new, rate=1.0: -torch.log1p(-new(torch.rand)) / rate,
    torch.Tensor.cauchy_: lambda new, median=0.0, scale=1.0: (
        median + scale * torch.tan(math.pi * (new(torch.rand) - 0.5))
    ),
}


@contextmanager
def _vectorised() -> Iterator[None]:
    """Set what ``torch.vmap`` needs: each draw has its own random numbers, and no warning about speed."""
    with without_warnings("There is a performance drop"), _FreshNumbers():
        yield
