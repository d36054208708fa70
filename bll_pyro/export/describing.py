"""What a graph says of itself."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from bll_pyro.export.kinds import prediction_kind
from bll_pyro.runtime.loading import FORMAT, VERSION

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

ENTROPIES = {
    "total": "entropy of probs, nats",
    "aleatoric": "expected entropy given the weights, nats",
    "epistemic": "mutual information of target and weights, nats",
}
VARIANCES = {
    "total": "variance of the target",
    "aleatoric": "variance of the target given the weights",
    "epistemic": "variance of the mean given the weights",
}
MEANINGS = {
    "classes": {"probs": "probabilities of the classes"} | ENTROPIES,
    "labels": {"probs": "probability of 1, or of the second class"} | ENTROPIES,
    "values": {
        "mean": "mean of the target",
        "scale": "standard deviation of the target",
        "quantiles": "quantiles of the target",
    }
    | VARIANCES,
}
VERDICT = {
    "score": "out-of-distribution score, larger is further out",
    "p_value": "share of known rows that are at least as far out",
    "is_ood": "whether p_value is at most alpha",
}


def described(
    fit: Fit, quantiles: tuple[float, ...], shape: list[int], dtype: str, names: list[str]
) -> dict[str, Any]:
    """Plain data: classes, inputs, meaning of the outputs, versions, fingerprint."""
    kind = prediction_kind(fit.layer.likelihood)
    meanings = MEANINGS[kind] | VERDICT
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "classes": _classes(fit),
        "inputs": {"shape": shape, "dtype": dtype, "names": _input_names(fit)},
        "outputs": {name: meanings[name] for name in names},
        "quantiles": list(quantiles) if "quantiles" in names else [],
        **_detector(fit),
        "images": _images(fit),
        "likelihood": type(fit.layer.likelihood).__name__,
        "fingerprint": fit.fingerprint,
        "versions": {name: version(name) for name in ("bll-pyro", "torch", "pyro-ppl", "onnx", "onnxscript")},
    }


def _classes(fit: Fit) -> list[Any] | None:
    """Labels in the order of ``probs``."""
    likelihood = fit.layer.likelihood
    if likelihood.coding is not None:
        return [label.item() if hasattr(label, "item") else label for label in likelihood.coding.labels]
    if likelihood.is_discrete:
        return list(range(likelihood.num_classes))  # type: ignore[attr-defined]
    return [0, 1] if likelihood.is_binary else None


def _detector(fit: Fit) -> dict[str, Any]:
    """The rate of false alarms of the detector, its threshold, and its number of calibration rows; None without one."""
    detector = fit.detector
    scores = None if detector is None else detector.calibration_scores
    if detector is None or scores is None:
        return {"alpha": None, "threshold": None, "num_calibration": None}
    return {"alpha": detector.alpha, "threshold": float(detector.threshold), "num_calibration": len(scores)}


def _images(fit: Fit) -> dict[str, Any] | None:
    """How images become rows, in the words of timm, where the backbone knows it."""
    config = getattr(fit.backbone, "config", None)
    return config.get("images") if isinstance(config, dict) else None


def _input_names(fit: Fit) -> list[str] | None:
    return None if fit.feature_names is None else list(fit.feature_names)
