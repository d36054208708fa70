"""``bll compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll_pyro.cli.console import Console


def compare_command(
    experiment: Path,
    console: Console,
    overrides: dict[str, str],
    vary: Sequence[str] = (),
    out: Path | None = None,
    overwrite: bool = False,
    report: bool = False,
    processes: int | None = None,
    store: Path | None = None,
    device: str | None = None,
    batch_size: int = 256,
) -> None:
    """Fit every combination of some values of an experiment, and put the fits beside each other.

    Each --vary takes a key and values; three priors and three guides are nine fits. They are those that bll fit makes, on the
    same rows: the backbone runs once for all, and the fits share the cores. What is printed is the leave-one-out density of the
    training rows (nats a row), by which to choose, and the scores on the test rows, which are for no choice.

    Parameters
    ----------
    experiment
        The YAML file.
    vary
        A key and its values: layer.prior=Normal,Horseshoe. Commas in brackets belong to a value.
    out
        Folder of the comparison; by default runs/NAME-compared for NAME.yaml.
    overwrite
        Replace a comparison that is there.
    report
        Write the report of the best fit, with all beside it, into the folder: report.html.
    processes
        How many fits run at a time; by default one for each core.
    store
        Folder that keeps features of the backbone, for later runs too.
    device
        Where to compute, such as cuda.
    batch_size
        Rows at a time through the backbone.

    Examples
    --------
    bll compare digits.yaml --vary layer.prior=Normal,Horseshoe --vary inference.guide=Diagonal,LowRank,MatrixNormal
    bll compare digits.yaml --vary layer.prior=Normal,Horseshoe --report
    bll compare digits.yaml --vary seed=0,1,2,3,4 --json
    """
    import os
    import time

    from bll_pyro.cli import comparing, run_folder
    from bll_pyro.cli.compared_report import PAGE, check_same_rows, write_report
    from bll_pyro.cli.experiment import read_document
    from bll_pyro.cli.job import Machine
    from bll_pyro.cli.usage import UsageError
    from bll_pyro.cli.yaml_file import dump
    from bll_pyro.declaration import written

    if not vary:
        raise UsageError("expected what to vary, got nothing; give --vary layer.prior=Normal,Horseshoe")
    document = read_document(experiment, overrides)
    drafts = comparing.combinations(document, [comparing.Variation.of(text) for text in vary])
    jobs = comparing.jobs_of(drafts)
    if report:
        check_same_rows(jobs)
    path = Path("runs") / f"{experiment.stem}-compared" if out is None else out
    identity, began = dump({name: written(job.experiment) for name, job in jobs.items()}), time.perf_counter()
    with run_folder.unfinished(path, identity, overwrite) as work:
        machine = Machine(device, batch_size, store)
        found = comparing.run_all(jobs, work, machine, console, processes or os.cpu_count() or 1)
        run_folder.write_json(work / comparing.COMPARISON, found)
        if report:
            console.status("report")
            folders = comparing.unique_folders(jobs)
            done = {
                name: work / comparing.FITS / folders[name] for name in found if "failed" not in found[name]
            }
            try:
                write_report(done, work / PAGE, experiment.stem)
            except comparing.BROKEN as error:  # the fits are worth more than their page
                console.warning(f"no report: {error}")
        run_folder.write_record(work, time.perf_counter() - began, next(iter(jobs.values())).experiment.seed)
    there = [
        comparing.COMPARISON,
        f"{comparing.FITS}/",
        *([PAGE] if (path.expanduser() / PAGE).exists() else []),
    ]
    text = f"{comparing.comparison_table(found)}\n\n{path}/: {', '.join(there)}"
    console.result(text, {"comparison": str(path), "fits": found})
    if failed := [name for name, one in found.items() if "failed" in one]:
        raise RuntimeError(f"{len(failed)} of {len(found)} fits failed: {'; '.join(failed)}")
