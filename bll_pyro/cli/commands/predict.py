"""``bll predict``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def predict_command(
    model: Path,
    data: str,
    console: Console,
    overrides: dict[str, str],
    out: Path = Path("predictions.csv"),
    overwrite: bool = False,
    skip_bad: bool = False,
    batch_size: int = 256,
    interval: float | None = None,
    drift_alpha: float = 0.01,
) -> None:
    """Predict every row of some data, with all uncertainties.

    One line for each row: its name, the prediction, the total, aleatoric and epistemic uncertainty, and, where the model has a
    detector, whether the row is unlike the rows that are known. Rows are read and written as they come, so memory does not grow
    with their number. The file is there when it is whole, and not before.

    The columns of a table are taken by name, in any order. Options of the data, such as --data.index ID, say how they are read;
    by default they are read as those that the model was fitted to.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit.
    data
        A folder of images, a table (.csv, .parquet), arrays (.npy, .npz, .safetensors), a store of features, module:function,
        or a small data set by name, such as digits.
    out
        The file to write: .csv or .parquet.
    overwrite
        Replace a file that is there.
    skip_bad
        Leave out images that cannot be read.
    batch_size
        Images at a time through the backbone.
    interval
        Probability of an interval of predicted numbers, such as 0.9: columns lower and upper.
    drift_alpha
        Where the model has a detector: probability of an alarm of drift on rows without a change. Rows are taken in the order
        of the data.

    Examples
    --------
    bll predict runs/flowers photos/ -o photos.csv
    bll predict runs/prices new.parquet -o prices.parquet
    bll predict runs/prices new.csv --data.index customer -o prices.csv --overwrite
    """
    from bll_pyro.cli.predicting import predict_rows
    from bll_pyro.cli.row_files import check_out
    from bll_pyro.cli.saved import load_model
    from bll_pyro.cli.usage import UsageError
    from bll_pyro.ood import Drift

    check_out(out, overwrite)
    saved = load_model(model)
    if interval is not None and not 0 < interval < 1:
        raise UsageError(f"--interval: expected a probability between 0 and 1, got {interval}; 90 % is 0.9")
    try:
        drift = Drift(drift_alpha)
    except ValueError as error:
        raise UsageError(f"--drift-alpha: {error}") from error
    source = saved.source(data, overrides, skip_bad)
    summary = predict_rows(
        saved, source, out, overwrite=overwrite, batch_size=batch_size, interval=interval, drift=drift
    )
    for name, number in (summary.unknown_categories or {}).items():
        console.warning(
            f"column {name!r}: {number:,} rows have a category that the training rows did not have; it counts as none of them"
        )
    console.result(summary.told(), summary.plain())
