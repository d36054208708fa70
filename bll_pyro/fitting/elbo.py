"""``ELBO``: the objective of SVI as a plain module, for a training loop of the user's, and the way from there to a ``Fit``."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.features.columns import Columns, bundled
from bll_pyro.features.forward import feature_width
from bll_pyro.features.recorded import Recorded
from bll_pyro.fitting.entry import check_kinds
from bll_pyro.fitting.result import Fit
from bll_pyro.frame import as_floats
from bll_pyro.guides import Diagonal, Guide
from bll_pyro.inference import SVI, Trace
from bll_pyro.inference.own_loop import NOTE, OwnLoop
from bll_pyro.inference.rows import Targets, with_columns
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.svi.batch_elbo import BatchELBO, check_moving
from bll_pyro.inference.training_data import TrainingData, check_exposure
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods.base import TargetShape
from bll_pyro.prediction import Integration, Prediction
from bll_pyro.scope import isolated


class ELBO(BatchELBO):
    r"""A Bayesian last layer as a module: features and targets of a batch in, a loss out.

    The loss is the negative ELBO a row, in nats and in the user's units, estimated from a batch of B of the N rows:

    .. math:: -\frac1B \sum_{n=1}^B w_n E_q[\log p(y_n \mid f_n)] + \frac1N \mathrm{KL}(q \,\|\, p).

    So the KL term is divided by N, the rows of the *whole* training set, whatever the batch, the number of processes, or
    how many batches a loader drops. Gradients flow into the parameters of the guide, and through the features into the
    network. A learned prior scale is set in closed form at each step (with a guide that is not Gaussian it is a parameter).

    Features are standardised by running averages, which follow them in ``train()`` mode and rest in ``eval()`` mode, as in a
    BatchNorm (``standardize=False`` in the layer leaves them as they are). In both modes the loss is an estimate whose
    random draws come from torch's generator, as those of dropout do. It is for training: judge a model on other rows by
    ``predict(features).log_prob(targets)``.

    It is a plain module: its state is all in ``state_dict()``, it can be moved, copied, wrapped in ``DistributedDataParallel`` and
    run under autocast, in which the last layer itself stays in full precision, as it does under ``half()`` and ``bfloat16()``.

    Parameters
    ----------
    layer
        The declaration: prior x likelihood. Features of a network that moves have one common scale.
    num_features
        Width D of the features.
    num_rows
        Number N of rows of the whole training set, over all processes.
    guide
        Variational family, in the axes of the features (principal axes would move); None takes ``guides.Diagonal()``.
    target_shape
        Shape of one target: ``()`` for a label or number, ``(T,)`` for T numbers.
    target_center, target_scale
        Mean and standard deviation of the real-valued targets of a layer that standardises, a number or ``[T]``.
        :meth:`from_data` finds them.
    output_space
        As in :class:`bll_pyro.SVI`.
    seed
        Of the random directions in which the means of the weights start.

    Raises
    ------
    ValueError
        If the layer standardises real-valued targets and their constants are not given; for a prior or head that is in the
        coordinates of frozen features.

    See Also
    --------
    bll_pyro.fit : does all of this by itself: ``bll.SVI(backbone_learning_rate=...)``.

    Examples
    --------
    >>> elbo = bll.ELBO(layer, num_features=64, num_rows=len(dataset))  # doctest: +SKIP
    >>> optimizer = torch.optim.AdamW([*network.parameters(), *elbo.parameters()])  # doctest: +SKIP
    >>> for inputs, labels in loader:  # doctest: +SKIP
    ...     elbo(network(inputs), labels).backward()
    ...     optimizer.step(), optimizer.zero_grad()
    >>> fit = elbo.to_fit(network)  # doctest: +SKIP
    """

    def __init__(
        self,
        layer: LastLayer,
        num_features: int,
        num_rows: int,
        *,
        guide: Guide | None = None,
        target_shape: TargetShape = (),
        target_center: Any = None,
        target_scale: Any = None,
        output_space: bool = True,
        seed: int = 0,
    ) -> None:
        if not isinstance(layer, LastLayer):
            raise TypeError(f"ELBO: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}")
        check_moving(layer)
        num_features, num_rows = (
            count(num_features, "num_features", "ELBO"),
            count(num_rows, "num_rows", "ELBO"),
        )
        svi, target_shape = (
            SVI(Diagonal() if guide is None else guide, output_space=output_space),
            tuple(target_shape),
        )
        constants = checked_constants(layer, target_shape, target_center, target_scale)
        dtype = torch.get_default_dtype()
        with isolated(seed, dtype):
            super().__init__(layer, num_features, num_rows, target_shape, *constants, svi, seed)
        self.layer, self.declared_guide, self.seed = layer, svi.guide, seed

    @classmethod
    def from_data(
        cls,
        layer: LastLayer,
        data: Any,
        backbone: nn.Module | None = None,
        *,
        sample_weight: Any = None,
        exposure: Any = None,
        **options: Any,
    ) -> Self:
        """The module for these training rows: their number, the shape and constants of their targets, the width of the features.

        The rows are read once, not kept, and checked as :func:`bll_pyro.fit` checks them. ``data`` are in any form that it takes:
        arrays, a dataset, a loader. The backbone is run on a few rows, without effect on it.

        Parameters
        ----------
        layer, data, backbone, sample_weight, exposure
            As in :func:`bll_pyro.fit`.
        **options
            ``guide``, ``output_space``, ``seed``.
        """
        if not isinstance(layer, LastLayer):
            raise TypeError(
                f"ELBO.from_data: expected bll.LastLayer(likelihood=...), got {type(layer).__name__}"
            )
        check_kinds(SVI(), backbone)
        with isolated(0):
            rows = TrainingData.of(layer, bundled(data, sample_weight, exposure))
            width = feature_width(backbone, rows.source.example()[0])
            _, center, scale = target_moments(layer, rows)
        known = {"target_shape": rows.target_shape}
        if layer.standardize and layer.likelihood.real_valued:
            known |= {"target_center": center, "target_scale": scale}
        return cls(layer, width, rows.source.num_rows, **known, **options)

    def forward(
        self,
        features: Float[Tensor, "B D"],
        targets: Tensor,
        sample_weight: Tensor | None = None,
        exposure: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The loss: negative ELBO a row, nats.

        Parameters
        ----------
        features
            ``[B, D]``, in any floating-point type.
        targets
            ``[B]`` or ``[B, T]``, in the user's units; labels as whole numbers. On a CPU their values are checked.
        sample_weight, exposure
            As in :func:`bll_pyro.fit`, for these rows: ``[B]``; exposures of T counts ``[B, T]``.
        generator
            Random numbers from here and not from torch's own generator (for guides that are Gaussian).
        """
        if self.objective.guide is not self.guide:
            raise RuntimeError(
                "ELBO: expected one copy of the module in a process, got replicas of torch.nn.DataParallel; use "
                "DistributedDataParallel (torchrun), or one device"
            )
        rows, weight = self._rows(features, targets, sample_weight, exposure)
        in_user_units = self.target_scale.log().sum().to(self.scale.center)
        if weight is not None:
            in_user_units = in_user_units * weight.mean()
        return in_user_units - self.nats(features, rows, generator) / self.objective.num_rows

    def predict(
        self, features: Float[Tensor, "N D"], *, exposure: Any = None, integration: Integration | None = None
    ) -> Prediction:
        """Posterior predictive for features ``[N, D]``, at the present parameters and averages, without gradients.

        For validation inside a loop. For many batches take ``to_fit()`` once, of a guide that is not Gaussian above all: its
        posterior is made of 1,000 draws anew in each call.
        """
        return self.to_fit().predict(features.detach(), exposure=exposure, integration=integration)

    def to_fit(self, backbone: nn.Module | None = None) -> Fit:
        """A :class:`bll_pyro.Fit` of the present parameters: predictions, ``to_datatree``, ``save``, detectors, ``bll.calibrate``.

        It holds a copy of the posterior, and the network itself; training that goes on changes neither the posterior nor this
        warning: predictions by a network that was changed say so.

        Parameters
        ----------
        backbone
            The network from inputs to features; None for a fit of features.
        """
        check_kinds(SVI(), backbone)
        recorded = None if backbone is None else Recorded(backbone)
        return Fit(
            self.layer,
            self.posterior(),
            OwnLoop(self.declared_guide),
            Trace(notes=[NOTE]),
            self.seed,
            self.objective.num_rows,
            backbone,
            recorded=recorded,
        )

    def extra_repr(self) -> str:
        """What is printed beside the parts."""
        return f"{self.layer!r}, num_rows={self.objective.num_rows}"

    def _rows(
        self, features: Tensor, targets: Tensor, weight: Tensor | None, exposure: Tensor | None
    ) -> tuple[Targets, Tensor | None]:
        """Standardised targets with their columns, and the weights ``[B]``."""
        width, like = len(self.scale.center), self.scale.center
        if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[1] != width:
            got = f"shape {list(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(
                f"ELBO: expected a tensor of features [B, {width}], got {got}; pass what the backbone returns for the batch"
            )
        shape = (len(features), *self.objective.model.target_shape)
        values = self._checked(targets)
        if values.numel() != torch.Size(shape).numel() or len(values) != shape[0]:
            raise ValueError(
                f"ELBO: expected targets of shape {list(shape)}, got {list(targets.shape)}; give target_shape=... for several "
                "targets a row"
            )
        if weight is not None:
            weight = of_the_batch(weight, shape[:1], "sample_weight").to(like)
        if exposure is not None:
            sizes = shape if exposure.dim() == 2 and exposure.shape[1:] == shape[1:] else (shape[0], 1)
            exposure = of_the_batch(exposure, sizes, "exposure").to(like)
        columns = Columns(weight, exposure)
        check_exposure(self.layer, columns, shape[1:])
        return with_columns(self.frame.targets(values.to(features.device)), columns), weight

    def _checked(self, targets: Tensor) -> Tensor:
        """Targets as the likelihood uses them; their values are looked at where that makes nobody wait."""
        likelihood = self.layer.likelihood
        if not isinstance(targets, Tensor):
            raise TypeError(
                f"ELBO: expected a tensor of targets, got {type(targets).__name__}; use torch.as_tensor"
            )
        if targets.device.type == "cpu" and not torch.compiler.is_compiling():
            return likelihood.check_targets(targets)
        if likelihood.is_discrete:
            return targets.long()
        values = as_floats(targets)
        return values[:, None] if values.dim() == 1 else values


def of_the_batch(values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Weights or exposures of the rows of a batch, in this shape."""
    values = torch.as_tensor(values)
    if values.numel() != torch.Size(shape).numel() or len(values) != shape[0]:
        raise ValueError(
            f"ELBO: expected {name} of shape {list(shape)}, got {list(values.shape)}; pass one for each row of the batch"
        )
    return values.reshape(shape)


def checked_constants(
    layer: LastLayer, target_shape: TargetShape, center: Any, scale: Any
) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Centre and scale ``[T]`` of the targets; 0 and 1 where a layer does not standardise them."""
    num_targets = torch.Size(target_shape).numel()
    standardizes = bool(layer.standardize) and layer.likelihood.real_valued
    if not standardizes and not (center is scale is None):
        raise ValueError(
            f"ELBO: expected no target_center and target_scale for {type(layer.likelihood).__name__} with "
            f"standardize={layer.standardize}, whose targets are taken as they are; leave them out"
        )
    if standardizes and (center is None or scale is None):
        raise ValueError(
            "ELBO: expected target_center and target_scale, the mean and standard deviation of the training targets, since the "
            "layer standardises them, got None; give both, or use bll.ELBO.from_data(layer, data, backbone), or "
            "LastLayer(..., standardize=False)"
        )
    found = []
    for name, value, default in (("target_center", center, 0.0), ("target_scale", scale, 1.0)):
        given = torch.as_tensor(default if value is None else value).detach().cpu()
        given = given if given.is_floating_point() else given.to(torch.get_default_dtype())
        if given.numel() not in (1, num_targets) or not bool(given.isfinite().all()):
            raise ValueError(
                f"ELBO: expected {name} as a finite number, or one for each of {num_targets} targets, got {value!r}"
            )
        found.append(given.reshape(-1).expand(num_targets).clone())
    if not bool((found[1] > 0).all()):
        raise ValueError(f"ELBO: expected target_scale above 0, got {scale!r}; it is a standard deviation")
    return found[0], found[1]
