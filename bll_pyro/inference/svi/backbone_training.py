"""``BackboneTraining``: how a backbone is trained along with the last layer, declared."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from bll_pyro.checks import count, message, share
from bll_pyro.declaration import Declaration
from bll_pyro.inference.svi.imported import Imported

OPTIMIZERS = {
    "adam": Imported("torch.optim.Adam", {"betas": (0.9, 0.99), "fused": True}),
    "adamw": Imported("torch.optim.AdamW", {"betas": (0.9, 0.99), "fused": True}),
    "sgd": Imported("torch.optim.SGD", {"momentum": 0.9}),
}
SCHEDULES = ("cosine", "constant")
NUM_EPOCHS = 20  # where none are given
OWN_FIELDS = {"lr": "SVI(backbone_learning_rate=...)", "weight_decay": "BackboneTraining(weight_decay=...)"}


@dataclass(frozen=True, eq=False)
class BackboneTraining(Declaration):
    """How :class:`bll_pyro.SVI` trains a backbone along: ``SVI(backbone_learning_rate=1e-4, training=BackboneTraining(...))``.

    All of it is about the backbone. The guide is trained by Adam with a rate of its own, ``SVI(learning_rate=...)``, which
    falls to zero along half a cosine over all steps, and its weights never decay: what holds them is their prior.

    Parameters
    ----------
    optimizer
        ``"adam"`` and ``"adamw"`` (decays .9 and .99), ``"sgd"`` (momentum .9), or a factory of any torch optimizer: a class, a
        function, a ``functools.partial`` of these with keyword arguments, an import path, or a :class:`bll_pyro.Imported`. It is
        called as ``factory(groups, lr=rate)``.
    schedule
        ``"cosine"``: the rate falls to zero along half a cosine; ``"constant"``; or a factory of any scheduler of torch, in the
        forms of ``optimizer``, called as ``factory(optimizer)`` and stepped once a step. Where it takes ``num_steps``,
        ``total_steps``, ``T_max`` or ``num_training_steps``, and is not given it, it gets the number of steps.
    warmup
        Epochs in which the rate rises in a straight line, to be followed by a schedule with a name. With w steps of it, step t
        has the rate times ``(t + 1) / (w + 1)``.
    layer_decay
        Factor of the rate from a layer to the one before it: with L + 1 layers, layer l has the rate times
        ``layer_decay ** (L - l)``. Layers are those of timm, or else the parts of the module in their order: entries of
        ``Sequential`` and ``ModuleList`` one by one, and norms with what they follow.
    weight_decay
        Decay of the backbone's weights, in the optimizer's own way (AdamW: beside the gradient; Adam, SGD: in it). Biases,
        parameters of norms, and what timm's ``no_weight_decay`` names do not decay.
    accumulate
        Batches to a step. Its ELBO and gradient are those of all rows of these batches together, also of fewer batches at the
        end of a pass. BatchNorm sees each batch alone.
    ema_decay
        Decay d of a moving average of all that is trained, backbone and guide, and of the statistics of BatchNorm.
        After step t it is ``a + (1 - min(d, (1 + t) / (10 + t))) (p - a)``. The fit holds the average, and validation data judge
        it. None (default) takes none.
    compile
        Run the backbone through ``torch.compile``; a string names its backend. The fit holds the plain module.
    frozen_epochs
        The first epochs, of ``SVI(num_epochs=...)``, which train the guide alone, on the backbone as it is, in eval mode.
        ``warmup`` and ``schedule`` begin after them, and the patience of early stopping too.
    kl_warmup
        Epochs in which the weight of the Kullback-Leibler divergence rises in a straight line, as the rate does in ``warmup``.
        The ELBO of these steps is no lower bound of the evidence, which the trace says: ``trace.notes``, and the weights in
        ``trace.statistics["kl_weight"]``. None by default: a start with random directions needs none.
    """

    family: ClassVar[str] = "training"
    optimizer: Any = "adam"
    schedule: Any = "cosine"
    warmup: float = 0.0
    layer_decay: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    ema_decay: float | None = None
    compile: bool | str = False
    frozen_epochs: int = 0
    kl_warmup: float = 0.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        object.__setattr__(
            self, "optimizer", known_or_imported(self.optimizer, "optimizer", tuple(OPTIMIZERS))
        )
        object.__setattr__(self, "schedule", known_or_imported(self.schedule, "schedule", SCHEDULES))
        for name in ("warmup", "weight_decay", "kl_warmup"):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < float("inf"):
                raise ValueError(message(name, owner, "a number >= 0", value))
        if self.layer_decay != 1 or isinstance(self.layer_decay, bool):
            share(self.layer_decay, "layer_decay", owner, "1 gives all layers the same rate")
        if self.ema_decay is not None:
            share(self.ema_decay, "ema_decay", owner, "such as 0.999; None takes no average")
        count(self.accumulate, "accumulate", owner)
        count(self.frozen_epochs, "frozen_epochs", owner, least=0)
        if not isinstance(self.compile, (bool, str)):
            raise TypeError(
                message(
                    "compile", owner, "True, False, or the name of a backend of torch.compile", self.compile
                )
            )
        if isinstance(self.optimizer, Imported):
            for name in OWN_FIELDS.keys() & self.optimizer.arguments.keys():
                raise ValueError(
                    f"{owner}(optimizer=...): expected arguments other than {name}, got {self.optimizer}; give it as "
                    f"{OWN_FIELDS[name]}"
                )
        if self.warmup and isinstance(self.schedule, Imported):
            raise ValueError(
                f"{owner}(warmup={self.warmup!r}): expected a schedule with a name, {' or '.join(SCHEDULES)}, got "
                f"{self.schedule}; a scheduler of torch has its own warm-up: torch.optim.lr_scheduler.SequentialLR or OneCycleLR"
            )

    @property
    def made_by(self) -> Imported:
        """The factory of the optimizer."""
        return OPTIMIZERS[self.optimizer] if isinstance(self.optimizer, str) else self.optimizer

    def check_epochs(self, num_epochs: int) -> None:
        """Raise a ValueError unless an epoch with both and a full rate is left of so many."""
        if self.frozen_epochs + self.warmup >= num_epochs:
            raise ValueError(
                f"SVI(num_epochs={num_epochs}): expected more epochs than frozen_epochs + warmup of its training, got "
                f"{self.frozen_epochs} + {self.warmup:g}; the backbone would not be trained at its full rate"
            )


def known_or_imported(value: Any, name: str, known: tuple[str, ...]) -> Any:
    """One of the known names, or what can be imported."""
    if isinstance(value, str) and "." not in value:
        if value not in known:
            raise ValueError(
                f"BackboneTraining({name}=...): expected one of {', '.join(known)}, or an import path such as "
                f"'torch.optim.RAdam', got {value!r}"
            )
        return value
    return Imported.of(value, f"BackboneTraining({name}=...)")
