"""``ELBO``: the objective of SVI as a plain module, for a training loop of the user's, and the way from there to a ``Fit``."""

from __future__ import annotations

from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bll_pyro.checks import count
from bll_pyro.features.columns import bundled
from bll_pyro.features.forward import feature_width
from bll_pyro.features.recorded import Recorded
from bll_pyro.features.tables import names_after
from bll_pyro.fitting.batch_rows import checked_constants, rows_of_batch
from bll_pyro.fitting.entry import check_kinds
from bll_pyro.fitting.result import Fit
from bll_pyro.guides import Diagonal, Guide
from bll_pyro.inference import SVI, Trace
from bll_pyro.inference.own_loop import NOTE, OwnLoop
from bll_pyro.inference.row_targets import weight_of
from bll_pyro.inference.standardization import target_moments
from bll_pyro.inference.svi.batch_elbo import BatchELBO, check_moving
from bll_pyro.inference.training_data import TrainingData
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

    Features are centred, and divided by one number if their scale is below 0.1 or above 1, with constants of the first 20
    batches in ``train()`` mode (``standardize=False`` in the layer leaves them as they are). In both modes the loss is an estimate
    whose random draws come from torch's generator, as those of dropout do. It is for training: judge a model on other rows by
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
        width, num_rows = count(num_features, "num_features", "ELBO"), count(num_rows, "num_rows", "ELBO")
        svi = SVI(Diagonal() if guide is None else guide, output_space=output_space)
        shape = tuple(target_shape)
        constants = checked_constants(layer, shape, target_center, target_scale)
        with isolated(seed, torch.get_default_dtype()):
            super().__init__(layer, width, num_rows, shape, *constants, svi, seed)
        self.layer, self.declared_guide, self.seed = layer, svi.guide, seed
        # names of the columns of a fit without a backbone, and with one
        self.feature_names: tuple[tuple[str, ...] | None, tuple[str, ...] | None] = (None, None)

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
        arrays, a frame, a dataset, a loader. The backbone is run on a few rows, without effect on it. The names of a frame's
        columns go into the fit.

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
        layer = rows.layer  # with the classes of the targets
        known: dict[str, Any] = {"target_shape": rows.target_shape}
        if layer.standardize and layer.likelihood.real_valued:
            known |= {"target_center": center, "target_scale": scale}
        made = cls(layer, width, rows.source.num_rows, **known, **options)
        names = rows.source.feature_names
        made.feature_names = names_after(backbone, names), None if backbone is None else names
        return made

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
            ``[B]`` or ``[B, T]``, in the user's units; labels as class numbers. On a CPU their values are checked.
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
        rows = rows_of_batch(
            self.layer,
            self.frame,
            self.objective.model.target_shape,
            features,
            targets,
            sample_weight,
            exposure,
        )
        weight = weight_of(rows)
        in_user_units = self.target_scale.log().sum().to(self.units.center)
        if weight is not None:
            in_user_units = in_user_units * weight.mean()
        return in_user_units - self.nats(features, rows, generator) / self.objective.num_rows

    def predict(
        self, features: Float[Tensor, "N D"], *, exposure: Any = None, integration: Integration | None = None
    ) -> Prediction:
        """Posterior predictive for features ``[N, D]``, at the present parameters, without gradients.

        For validation inside a loop. For many batches take ``to_fit()`` once, of a guide that is not Gaussian above all: its
        posterior is made of 1,000 draws anew in each call.
        """
        return self.to_fit().predict(features.detach(), exposure=exposure, integration=integration)

    def to_fit(self, backbone: nn.Module | None = None) -> Fit:
        """A :class:`bll_pyro.Fit` of the present parameters: predictions, ``to_datatree``, ``save``, detectors, ``bll.calibrate``.

        It holds a copy of the posterior, and the network itself: training that goes on does not change the posterior, and
        predictions by a network that was changed warn. A network is better on rows that it was trained on than on others, so
        recalibrate on rows that were kept out: ``bll.calibrate(fit, inputs, targets)``.

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
            feature_names=self.feature_names[backbone is not None],
        )

    def extra_repr(self) -> str:
        """What is printed beside the parts."""
        return f"{self.layer!r}, num_rows={self.objective.num_rows}"
