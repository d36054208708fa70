"""Adam, and L-BFGS for one problem or many side by side.

The first optimizer of class ``torch.optim.Optimizer`` of a process imports torch's compiler, which takes seconds: as long
as some hundred fits of few rows. Adam's steps as a function import nothing, and L-BFGS is short.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.optim.adam import adam as adam_step

# strong Wolfe conditions: least share of the predicted fall, and largest share of the slope at the start
DESCENT, FLATNESS = 1e-4, 0.9
MAX_TRIALS = 20  # evaluations of a line search
NEAREST, FARTHEST = 1.5, 10.0  # by what factor a step grows
EDGE = 0.1  # share of an interval at both of its ends where no step is tried
ROUNDINGS = 4  # units of the last place by which a value may be wrong


@runtime_checkable
class Optimizer(Protocol):
    """What the training loop needs of an optimizer; those of torch have it."""

    param_groups: list[dict[str, Any]]

    def step(self) -> object:
        """Move the parameters along their gradients."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> object:
        """Put it back."""


class Adam:
    """Adam in one fused step (Kingma and Ba 2015), bit for bit that of ``torch.optim.Adam(..., fused=True)``.

    Parameters
    ----------
    parameters
        What is moved.
    lr, betas
        Learning rate, and the decays of the running averages of the gradient and of its square.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, betas: tuple[float, float]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(parameters), "lr": lr}]
        self.betas = betas
        # averages of gradient and square, and number of steps
        self.averages: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The averages of each parameter that has moved, by its number."""
        parameters = self.param_groups[0]["params"]
        return {"averages": {i: self.averages[p] for i, p in enumerate(parameters) if p in self.averages}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        parameters = self.param_groups[0]["params"]
        for index, (mean, square, number) in state_dict["averages"].items():
            p = parameters[index]
            self.averages[p] = mean.to(p.device), square.to(p.device), number.to(p.device)

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient."""
        (group,) = self.param_groups
        moved = [p for p in group["params"] if p.grad is not None]
        for p in moved:
            if p not in self.averages:
                number = torch.zeros((), dtype=torch.float32, device=p.device)
                self.averages[p] = (torch.zeros_like(p), torch.zeros_like(p), number)
        means, squares, numbers = ([self.averages[p][i] for p in moved] for i in range(3))
        adam_step(
            moved,
            [p.grad for p in moved],
            means,
            squares,
            [],
            numbers,
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a search ended, for each of F problems.

    Parameters
    ----------
    value
        Losses ``[F]``.
    converged
        Whether the fall of the loss that is left is within the tolerance, as far as the search can tell, ``[F]``.
    num_evaluations
        Evaluations of the loss and its gradient.
    """

    value: Tensor
    converged: Tensor
    num_evaluations: int


def minimise(
    loss: Callable[[], Tensor],
    parameters: list[Tensor],
    num_steps: int,
    history: int = 20,
    tolerance: float = 1e-9,
    inverse: InverseHessian | None = None,
) -> Minimum:
    """Lower a loss by up to ``num_steps`` steps of L-BFGS (Nocedal and Wright 2006, 7.2), in place.

    F problems are solved side by side if the loss is ``[F]``: slice f of each parameter ``[F, ...]`` is that of problem f,
    its steps are those that it would take alone, and one that is done waits for the others.

    Parameters
    ----------
    loss
        The loss at the present parameters, differentiable: a number, or ``[F]``. Where it is not finite no step ends.
    parameters
        Leaf tensors, which are moved.
    num_steps
        Most steps.
    history
        How many steps the curvature is estimated from; each is remembered by twice the numbers of the parameters.
    tolerance
        Fall of the loss, as the curvature predicts it, below which a problem is done.
    inverse
        What is known of the curvature, which learns more; None begins with nothing, and remembers ``history`` steps.
    """
    problems = Problems(loss, parameters)
    value, gradient = problems.evaluate()
    argument = rows(parameters, len(value))
    inverse = InverseHessian(history) if inverse is None else inverse
    if not inverse.pairs:
        inverse.scale = 1 / gradient.abs().sum(-1).clamp_min(1.0)
    waiting = ~torch.isfinite(value)
    converged = torch.zeros_like(waiting)
    for _ in range(num_steps):
        direction = -inverse.solve(gradient)
        slope = torch.linalg.vecdot(gradient, direction)
        # along a quadratic with this slope and its minimum at 1; before the first step nothing is known of the curvature
        converged |= slope.abs() / 2 <= (tolerance if inverse.pairs else 0.0)
        waiting = waiting | converged | ~(slope < 0)
        if bool(waiting.all()):
            break
        direction = torch.where(waiting[:, None], 0.0, direction)
        size, value, new_gradient = search_lines(problems, argument, direction, value, slope, waiting)
        waiting = waiting | (size == 0)  # rounding hides any fall
        change = size[:, None] * direction
        inverse.learn(change, new_gradient - gradient)
        argument, gradient = argument + change, new_gradient
    problems.put(argument)
    return Minimum(value, converged, problems.num_evaluations)


def search_lines(
    problems: Problems,
    argument: Tensor,
    direction: Tensor,
    value: Tensor,
    slope: Tensor,
    waiting: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step sizes ``[F]`` that meet the strong Wolfe conditions, with value and gradient there; 0 where none was found.

    ``low`` is the longest step known to be too short, ``high`` the shortest known to be too long, as value and slope there
    tell. A step that is not finite is too long.
    """
    rounding = ROUNDINGS * torch.finfo(value.dtype).eps * value.abs()
    low = Trial(torch.zeros_like(value), value, slope)
    high = Trial(torch.full_like(value, torch.inf), value, slope)
    size, settled = torch.ones_like(value), waiting
    for _ in range(MAX_TRIALS):
        new_value, gradient = problems.evaluate(argument + size[:, None] * direction)
        new = Trial(size, new_value, torch.linalg.vecdot(gradient, direction))
        fell = new.value <= value + DESCENT * size * slope + rounding
        short = fell & (new.slope < FLATNESS * slope)
        settled = waiting | (fell & (new.slope.abs() <= -FLATNESS * slope))
        if bool(settled.all()):
            return size, new_value, gradient
        longer = further(low, new)
        low, high = new.where(short, low), high.where(short, new)
        proposed = torch.where(torch.isinf(high.size), longer, between(low, high))
        size = torch.where(settled, size, proposed)
    size = torch.where(settled, size, low.size)
    return size, *problems.evaluate(argument + size[:, None] * direction)


class Trial(NamedTuple):
    """Steps, and value and slope there, ``[F]`` each."""

    size: Tensor
    value: Tensor
    slope: Tensor

    def where(self, condition: Tensor, other: Trial) -> Trial:
        """These where the condition holds, and else others."""
        return Trial(*(torch.where(condition, *pair) for pair in zip(self, other, strict=True)))


def further(first: Trial, second: Trial) -> Tensor:
    """A longer step: where the line through both slopes is zero, 1.5 to 10 times the second step."""
    width = second.size - first.size
    step = second.size - second.slope * width / (second.slope - first.slope)
    step = torch.where(second.slope > first.slope, step, torch.inf)
    return torch.minimum(torch.maximum(step, NEAREST * second.size), FARTHEST * second.size)


def between(low: Trial, high: Trial) -> Tensor:
    """The minimum of the cubic through both values and slopes, and not at the edges; the middle where there is none."""
    width = high.size - low.size
    chord = low.slope + high.slope - 3 * (high.value - low.value) / width
    root = (chord.square() - low.slope * high.slope).sqrt()
    share = 1 - (high.slope + root - chord) / (high.slope - low.slope + 2 * root)
    return low.size + width * torch.where(torch.isfinite(share), share, 0.5).clamp(EDGE, 1 - EDGE)


class Problems:
    """F losses of parameters of their own, as rows: ``[F, n]``."""

    def __init__(self, loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        self.loss, self.parameters, self.num_evaluations = loss, parameters, 0

    def evaluate(self, argument: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses ``[F]`` and gradients ``[F, n]`` at given parameters, or at the present ones."""
        if argument is not None:
            self.put(argument)
        self.num_evaluations += 1
        with torch.enable_grad():
            value = self.loss()
            # the loss of one problem knows nothing of the parameters of another
            slopes = torch.autograd.grad(
                value.sum(), self.parameters, allow_unused=True, materialize_grads=True
            )
        return value.detach().reshape(-1), rows(slopes, value.numel())

    @torch.no_grad()
    def put(self, argument: Tensor) -> None:
        """Set the parameters."""
        sizes = [p.numel() // len(argument) for p in self.parameters]
        for parameter, part in zip(self.parameters, argument.split(sizes, -1), strict=True):
            parameter.copy_(part.reshape(parameter.shape))


def rows(tensors: Iterable[Tensor], num_rows: int) -> Tensor:
    """Tensors ``[F, ...]`` side by side, as ``[F, n]``."""
    return torch.cat([tensor.detach().reshape(num_rows, -1) for tensor in tensors], -1)


class InverseHessian:
    """The inverse Hessian from the last ``history`` steps; before the first it is ``scale [F]`` times the identity."""

    def __init__(self, history: int) -> None:
        self.scale, self.pairs = torch.ones(1), deque[tuple[Tensor, Tensor, Tensor]](maxlen=history)

    def multiply(self, factor: float) -> None:
        """Make it that of a loss whose curvature is ``1 / factor`` times that of the one it was learned from."""
        self.scale = self.scale * factor
        pairs = [(step, change / factor, weight * factor) for step, change, weight in self.pairs]
        self.pairs = deque(pairs, maxlen=self.pairs.maxlen)

    def learn(self, step: Tensor, change: Tensor) -> None:
        """Learn from steps and changes of the gradient ``[F, n]``; a problem in which they disagree learns nothing."""
        product, square = torch.linalg.vecdot(step, change), change.square().sum(-1)
        least = torch.finfo(step.dtype).eps * (step.square().sum(-1) * square).sqrt()
        agree = product > least
        self.scale = torch.where(agree, product / square, self.scale)
        self.pairs.append((step, change, torch.where(agree, 1 / product, 0.0)))

    def solve(self, gradient: Tensor) -> Tensor:
        """The inverse Hessian times ``gradient [F, n]``, by the two loops of Nocedal (1980)."""
        found, factors = gradient.clone(), []
        for step, change, weight in reversed(self.pairs):
            factors.append((weight * torch.linalg.vecdot(step, found))[:, None])
            found = found - factors[-1] * change
        found = found * self.scale[:, None]
        for (step, change, weight), factor in zip(self.pairs, reversed(factors), strict=True):
            found = found + step * (factor - (weight * torch.linalg.vecdot(change, found))[:, None])
        return found
