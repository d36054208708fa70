"""``bll diagnose``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def diagnose_command(
    model: Path, data: str, console: Console, overrides: dict[str, str], num_draws: int = 2000
) -> None:
    """Check whether a fit can be trusted, on the rows that it was made from, and say what to try.

    Parameters
    ----------
    model
        Folder of a run or of a saved fit.
    data
        The rows that it was made from: run:train, those of the run; or all rows of the run's data, of which its training rows
        are taken; or the training rows of a fit that was saved by itself.
    num_draws
        Draws of the weights.

    Examples
    --------
    bll diagnose runs/flowers run:train
    bll diagnose model/ train.csv --data.target price --json
    """
    import bll_pyro as bll
    from bll_pyro.cli.saved import OWN, load_model

    saved = load_model(model)
    opened, rows = saved.rows(data, overrides)
    if saved.record is not None and not OWN.fullmatch(data):
        saved.record.check_same(opened)
        rows = saved.parts["train"]
    found = bll.diagnose(saved.fit, opened.take(rows), num_draws=num_draws)
    checks = [
        {
            "check": check.name,
            "verdict": str(check.verdict),
            "value": check.value if check.value == check.value else None,
            "finding": check.finding,
            "remedy": check.remedy,
        }
        for check in found
    ]
    console.result(str(found), {"verdict": str(found.verdict), "checks": checks})
