"""The declarations that ``choose`` is given: their names, those that suit some targets, and whether each can be fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bll_pyro.comparison.same_rows import check_one_kind
from bll_pyro.features.columns import Columns
from bll_pyro.features.sources import Source
from bll_pyro.fitting.description import declared
from bll_pyro.inference import NUTS, Inference
from bll_pyro.inference.training_data import TrainingData
from bll_pyro.layer import LastLayer
from bll_pyro.likelihoods import (
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    NegativeBinomial,
    Poisson,
    StudentT,
)

EXAMPLE = "[bll.LastLayer(bll.likelihoods.Gaussian()), bll.LastLayer(bll.likelihoods.StudentT())]"


def named(layers: Any) -> dict[str, LastLayer]:
    """Declarations by name; those of a list by their likelihood, or by as much as tells them apart."""
    given: dict[str, LastLayer]
    if isinstance(layers, Mapping):
        given = {str(name): layer for name, layer in layers.items()}
    elif isinstance(layers, Sequence) and not isinstance(layers, str):
        given = {str(number): layer for number, layer in enumerate(layers)}
    else:
        raise TypeError(f"choose: expected declarations such as {EXAMPLE}, got {type(layers).__name__}")
    for name, layer in given.items():
        if not isinstance(layer, LastLayer):
            raise TypeError(
                f"choose: expected declarations such as {EXAMPLE}, got {type(layer).__name__} for {name!r}; a likelihood goes into "
                "bll.LastLayer(likelihood)"
            )
    if len(given) < 2:
        raise ValueError(
            f"choose: expected at least two declarations, got {len(given)}; fit one by bll.fit(layer, data)"
        )
    check_one_kind({name: layer.likelihood for name, layer in given.items()}, "choose")
    return given if isinstance(layers, Mapping) else _told_apart(list(given.values()))


def _told_apart(layers: list[LastLayer]) -> dict[str, LastLayer]:
    for say in (
        lambda layer: type(layer.likelihood).__name__,
        lambda layer: declared(layer.likelihood),
        declared,
    ):
        found = {say(layer): layer for layer in layers}
        if len(found) == len(layers):
            return found
    raise ValueError(
        f"choose: expected declarations that differ, got {', '.join(map(declared, layers))}; drop what is there twice, or give "
        'names: {"one": layer, ...}'
    )


def suited_to(rows: Source) -> dict[str, LastLayer]:
    """The declarations to choose from where none are given: by the type of the targets, with the default prior."""
    whole = rows.tensors()
    targets = rows.stored.targets if rows.stored is not None else None if whole is None else whole[1]
    assert targets is not None
    if rows.classes is not None:
        raise ValueError(
            f"choose(None, ...): expected real values or counts, got labels {rows.classes}, for which there is one likelihood; use "
            "bll.fit(bll.LastLayer(bll.likelihoods.Categorical()), data), or name the declarations"
        )
    is_whole, is_observed = not targets.is_floating_point(), rows.columns.exposure is not None
    if is_whole and not is_observed and bool(((targets == 0) | (targets == 1)).all()):
        raise ValueError(
            "choose(None, ...): expected real values or counts, got labels 0 and 1, for which there is one likelihood; use "
            "bll.fit(bll.LastLayer(bll.likelihoods.Bernoulli()), data), or name the declarations"
        )
    likelihoods: list[Likelihood] = [Gaussian(), StudentT(), HeteroscedasticGaussian()]
    if is_observed or (is_whole and bool((targets >= 0).all())):
        likelihoods = [Poisson(), NegativeBinomial()]
    return named([LastLayer(likelihood) for likelihood in likelihoods])


def check_inference(inference: Inference, columns: Columns) -> None:
    """Check that an inference leaves the backbone as it is, and its rows out one by one."""
    if inference.trains_backbone:
        raise ValueError(
            f"choose: expected an inference that leaves the backbone as it is, since all declarations share its features, got "
            f"{declared(inference)}; train it first, then choose on its features: bll.choose(layers, data, fit.backbone)"
        )
    if isinstance(inference, NUTS):
        columns.refused("choose", weight="with draws rows have none: use bll.Laplace() or bll.SVI()")


def check_targets_of(layers: Mapping[str, LastLayer], source: Source) -> None:
    """Check targets and exposures against each likelihood, as a fit does; of rows that are not in memory yet the first."""
    for name, layer in layers.items():
        _naming(name, TrainingData.of, layer, source)


def check_all(layers: Mapping[str, LastLayer], inference: Inference, rows: Source) -> None:
    """Check each declaration against rows of features and the inference, so that no fit begins in vain."""
    for name, layer in layers.items():
        data = _naming(name, TrainingData.of, layer, rows)
        features, _ = _naming(name, data.features, None, None, None, 1)
        layer = data.layer  # with the classes of the targets
        num_outputs, num_features = layer.likelihood.num_outputs(data.target_shape), features.shape[1]
        _naming(name, layer.prior.check, (num_outputs, num_features))
        _naming(name, inference.check, layer, num_outputs, num_features + int(layer.bias))


def _naming[R](name: str, check: Callable[..., R], *values: Any) -> R:
    """The result of a check, whose error says which declaration it is about."""
    try:
        return check(*values)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"choose, {name!r}: {error}") from error
