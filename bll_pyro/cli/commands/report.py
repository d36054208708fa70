"""``bll report``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def report_command(
    model: Path,
    console: Console,
    overrides: dict[str, str],
    out: Path = Path("report.html"),
    rows: str = "run:test",
    train: str | None = None,
    held_out: str | None = None,
    unknown: str | None = None,
    title: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> None:
    """Write what is known of a model on one page, and the same numbers as JSON beside it.

    Quality beside the plain head, calibration, uncertainty, rows to look at, unknown inputs, checks of the fit, convergence,
    weights, prior. The page is one file that needs no network. An earlier report of this name is replaced.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit.
    out
        Where to write the page; the numbers go into a file of the same name that ends in .json.
    rows
        Rows that were not fitted, with or without targets: as for bll predict, or a part of the run.
    train
        The rows that were fitted, for checks and plain head; by default those of the run.
    held_out
        Other rows with targets, for recalibration and detector; by default the part calibration of the run.
    unknown
        Inputs from elsewhere, of which many should raise an alarm.
    title
        Title of the page; by default the name of the model's folder.
    seed
        Of draws, and of the choice of rows in pictures.
    skip_bad
        Leave out images that cannot be read.

    Examples
    --------
    bll report runs/flowers
    bll report runs/prices -o prices.html --rows later.csv
    bll report model/ --rows test.csv --train train.csv --held-out more.csv --data.target price
    """
    import bll_pyro as bll
    from bll_pyro.cli.reported import rows_of_report
    from bll_pyro.cli.saved import load_model
    from bll_pyro.cli.usage import UsageError
    from bll_pyro.reporting.document import checked_path

    try:
        checked_path(out)
    except ValueError as error:
        raise UsageError(str(error)) from error
    saved = load_model(model)
    given = rows_of_report(saved, rows, train, held_out, unknown, overrides, skip_bad)
    name = title or f"Report of {model.resolve().name}"
    found = bll.report(saved.fit, path=out, title=name, seed=seed, **given)
    lines = [f"{one['grade'] or '-'}: {one['words']}" for one in found.numbers["summary"]]
    page = f"{out}: {len(found.html.encode()) / 1e6:.2f} MB; numbers in {out.with_suffix('.json')}"
    console.result("\n".join([*lines, "", page]), {"page": str(out), "metrics": found.metrics})
