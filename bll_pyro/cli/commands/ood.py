"""``bll ood``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def ood_command(
    model: Path,
    data: str,
    console: Console,
    overrides: dict[str, str],
    alpha: float = 0.05,
    known: str = "run:calibration",
    train: str | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    skip_bad: bool = False,
    batch_size: int = 256,
) -> None:
    """Say which rows are unlike those that the model knows.

    A detector is calibrated on rows that the model was not fitted to. Of rows like these it takes at most the share alpha for
    unknown; each row has a p-value, which is small where it is strange.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit.
    data
        Rows to look at: as for bll predict.
    alpha
        Allowed rate of false alarms.
    known
        Known rows that were not fitted, for the threshold.
    train
        Training rows, from which scores learn what is known; by default those of the run.
    out
        A file (.csv or .parquet) with the verdict on each row.
    overwrite
        Replace a file that is there.
    skip_bad
        Leave out images that cannot be read.
    batch_size
        Images at a time through the backbone.

    Examples
    --------
    bll ood runs/flowers photos/ --alpha 0.01
    bll ood runs/prices new.csv -o verdicts.csv --json
    """
    from bll_pyro.cli.detecting import calibrated, judge_rows
    from bll_pyro.cli.row_files import check_out
    from bll_pyro.cli.saved import load_model

    if out is not None:
        check_out(out, overwrite)
    saved = load_model(model)
    source = saved.source(data, overrides, skip_bad)
    detector = calibrated(saved, alpha, known, train, overrides, batch_size)
    found = judge_rows(saved, detector, source, out, overwrite, batch_size)
    console.result(found.told(), found.plain())
