"""``bll bayesianize``."""

from __future__ import annotations

from pathlib import Path

from bll_pyro.cli.console import Console


def bayesianize_command(
    net: str,
    data: str,
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
    """Put a posterior around the last layer of a network that is trained already, and calibrate it.

    Nothing is trained: features are computed once a row, and the prior is centred at the network's own head. The data should be
    rows that the network was not trained on: their part calibration says how far to trust it. Options of an experiment are taken
    as in bll fit, such as --splits.calibration 0.4 or --data.target price; --print-config writes the experiment as YAML.

    Parameters
    ----------
    net
        Module and name of a class or function that makes the network with its weights, with a Linear at its end: my_net:load.
        Its file may lie in the present folder.
    data
        A folder of images, a table (.csv, .parquet), arrays (.npy, .npz, .safetensors), a store of features, module:function,
        or a small data set by name, such as digits.
    out
        Folder of the run; by default runs/NAME for the name in NET.
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
        Rows at a time through the network.

    Examples
    --------
    bll bayesianize my_net:load photos/ -o runs/photos
    bll bayesianize my_net:load digits --splits.calibration 0.4 --backbone.prior_scale 0.1
    """
    from bll_pyro.cli.data.resolve import resolve
    from bll_pyro.cli.experiment import Draft
    from bll_pyro.cli.job import Machine
    from bll_pyro.cli.overrides import overridden
    from bll_pyro.cli.running import run_draft
    from bll_pyro.cli.yaml_file import Document
    from bll_pyro.declaration import written

    plain = {
        "data": written(resolve(data)),
        "backbone": {
            "class": "TrainedNetwork",
            "network": {"class": "Imported", "path": net.replace(":", ".")},
        },
    }
    draft = Draft(overridden(Document(plain, "the options", folder=Path.cwd()), overrides))
    path = Path("runs") / net.replace(":", ".").rpartition(".")[2] if out is None else out
    machine = Machine(device, batch_size, store)
    run_draft(draft, path, machine, console, overwrite=overwrite, tree=not no_tree, print_config=print_config)
