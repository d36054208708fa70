"""``bll export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll_pyro.cli.console import Console


def export_command(
    model: Path,
    console: Console,
    out: Path = Path("model.onnx"),
    inputs: str | None = None,
    quantile: Sequence[float] = (0.05, 0.5, 0.95),
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Write the predictions of a model as one graph, which runs without Pyro and without this library.

    It gives probabilities, or mean, scale and quantiles; both uncertainties; and the verdict of the detector, where the model
    has one.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit, or a fit that is one file (.bll).
    out
        The file: .onnx for onnxruntime, .pt2 for torch.
    inputs
        Rows as for bll predict, for a model with a backbone: a few are enough, they tell the shape of an input. By default those
        of the run.
    quantile
        Probability of a quantile of real values and counts. May be given several times.
    dtype
        Numbers of the backbone: float32, float16 or bfloat16.
    overwrite
        Replace a file that is there.

    Examples
    --------
    bll export runs/flowers -o flowers.onnx
    bll export runs/prices -o prices.pt2 --quantile 0.1 --quantile 0.9
    """
    from bll_pyro.cli.saved import load_model
    from bll_pyro.cli.usage import UsageError
    from bll_pyro.files import user_path

    if user_path(out).exists() and not overwrite:
        raise UsageError(
            f"--out: expected a new file, got {out}, which is there; add --overwrite, or choose another name"
        )
    saved = load_model(model)
    rows = None
    if saved.fit.backbone is not None:
        opened, numbers = saved.rows(inputs or "run:test", {}, need_targets=False)
        rows = opened.inputs_of(numbers[:1])
    saved.fit.export(out, inputs=rows, quantiles=tuple(quantile), dtype=dtype)
    size = user_path(out).stat().st_size
    console.result(f"{out}: {size:,} bytes", {"path": str(out), "bytes": size})
