"""``bll fit``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def fit_command(
    experiment: Path,
    console: Console,
    overrides: dict[str, str],
    out: Path | None = None,
    overwrite: bool = False,
    print_config: bool = False,
    no_tree: bool = False,
    store: Path | None = None,
    device: str | None = None,
    batch_size: int = 256,
) -> None:
    """Fit the experiment of a YAML file, and evaluate it beside a plain head.

    Every value of the file can be given on the command line, by its keys with dots between them: --layer.prior Horseshoe
    --inference.guide LowRank --inference.guide.rank 8 --seed 3. Classes go by their short name, or by an import path, such as
    my_priors.Wide in the file my_priors.py beside the YAML. bll schema prints what can be said, for editors.

    The folder of the run holds the experiment with all defaults, log, metrics, the fit (model/, for bll.load), the posterior for
    ArviZ, and the row numbers of training, calibration and test. The same command goes on with a run that was interrupted.

    Parameters
    ----------
    experiment
        The YAML file.
    out
        Folder of the run; by default runs/NAME for NAME.yaml.
    overwrite
        Replace a run that is there.
    print_config
        Print the experiment with all defaults and options as YAML, and do nothing else.
    no_tree
        Write no posterior.nc.
    store
        Folder that keeps features of the backbone, for later runs too.
    device
        Where to compute, such as cuda.
    batch_size
        Rows at a time through the backbone.

    Examples
    --------
    bll fit digits.yaml
    bll fit digits.yaml --layer.prior Horseshoe --inference.guide.rank 8 -o runs/horseshoe
    bll fit digits.yaml --print_config > whole.yaml
    """
    from bll_pyro.cli.experiment import read_draft
    from bll_pyro.cli.job import Machine
    from bll_pyro.cli.running import run_draft

    path = Path("runs") / experiment.stem if out is None else out
    machine = Machine(device, batch_size, store)
    draft = read_draft(experiment, overrides)
    run_draft(draft, path, machine, console, overwrite=overwrite, tree=not no_tree, print_config=print_config)
