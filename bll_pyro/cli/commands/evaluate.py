"""``bll evaluate``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def evaluate_command(
    model: Path,
    data: str,
    console: Console,
    overrides: dict[str, str],
    train: str | None = None,
    held_out: str | None = None,
    skip_bad: bool = False,
) -> None:
    """Score a model on rows that it was not fitted to, beside a plain head.

    The plain head is a point estimate of the same layer on the same training rows. Both are also scored with a temperature or
    noise factor that is found on held-out rows. Of a run, training and held-out rows are its own (run:train, run:calibration),
    and run:test names its test rows.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit.
    data
        Rows with targets: as for bll predict, or run:test.
    train
        Training rows, for the plain head; by default those of the run.
    held_out
        Rows for the temperature or noise factor; by default the part calibration of the run.
    skip_bad
        Leave out images that cannot be read.

    Examples
    --------
    bll evaluate runs/flowers run:test
    bll evaluate runs/prices later.csv --json
    bll evaluate model/ test.csv --train train.csv --held-out more.csv --data.target price
    """
    import bll_pyro as bll
    from bll_pyro.cli.figures import errors_of
    from bll_pyro.cli.saved import load_model
    from bll_pyro.cli.usage import UsageError

    saved = load_model(model)
    if saved.record is None and (train is None or held_out is None):
        raise UsageError(
            "expected --train and --held-out with a fit that was saved by itself, for the plain head and its temperature; only a "
            "run knows them"
        )
    opened, rows = saved.rows(data, overrides, skip_bad=skip_bad)
    given = {"held_out": held_out or "run:calibration", "train": train or "run:train"}
    others = {}
    for name, text in given.items():
        other, numbers = saved.rows(text, overrides)
        others[name] = other.take(numbers)
    found = bll.evaluate(saved.fit, opened.take(rows), **others)
    console.result(
        f"{len(rows):,} rows\n\n{found}", {"rows": len(rows), "scores": found.scores, **errors_of(found)}
    )
