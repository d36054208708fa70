"""One run: an experiment on open data, into a folder."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import bll_pyro as bll
from bll_pyro.cli import run_folder
from bll_pyro.cli.backbones import TrainedNetwork, make_backbone
from bll_pyro.cli.console import Console
from bll_pyro.cli.experiment import Draft
from bll_pyro.cli.figures import metrics_of, write_tree
from bll_pyro.cli.importing import importable
from bll_pyro.cli.job import Job, Machine
from bll_pyro.cli.telling import told
from bll_pyro.declaration import written
from bll_pyro.features.random_fourier import RandomFeatures
from bll_pyro.files import user_path
from bll_pyro.ood.learning import least_rows
from bll_pyro.scope import isolated


def run_draft(
    draft: Draft,
    path: Path,
    machine: Machine,
    console: Console,
    *,
    overwrite: bool,
    tree: bool,
    print_config: bool,
) -> None:
    """Check everything, open the data, run, and say what came of it; or print the experiment alone."""
    declared = draft.check()
    if not print_config:
        run_folder.check_free(user_path(path), overwrite)
    with importable(draft.document.folder):
        opened = declared.data.open()
    job = Job.of(draft, opened)
    if print_config:
        print(job.experiment.to_yaml(), end="")
        return
    metrics = run_job(job, path, machine, console, overwrite=overwrite, tree=tree)
    console.result(told(metrics, path), {"run": str(path), **metrics})


def run_job(
    job: Job, path: Path, machine: Machine, console: Console, *, overwrite: bool, tree: bool
) -> dict[str, Any]:
    """Fit, evaluate and write everything into the folder ``path``; return the metrics."""
    with run_folder.unfinished(path, job.experiment.to_yaml(), overwrite) as work:
        log = partial(run_folder.add_to_log, work)
        console.listeners.append(log)
        try:
            return _work(job, work, machine, console, tree)
        finally:
            console.listeners.remove(log)


def _work(job: Job, work: Path, machine: Machine, console: Console, tree: bool) -> dict[str, Any]:
    began = time.perf_counter()
    copy_code(job, work)
    run_folder.write_parts(work, job.parts, job.opened.row_ids)
    job.record.write(work)
    with importable(job.draft.document.folder):
        backbone = make_backbone(job.experiment.backbone, job.experiment.seed)
        job = replace(job, opened=job.record.ready(job.opened, backbone))
        if isinstance(backbone, nn.Module) and machine.store is None:  # the backbone runs once a row
            machine = replace(machine, store=work / run_folder.FEATURES)
        fit = fit_of_job(job, backbone, work, machine, console)
    fit.save(work / run_folder.MODEL)
    metrics = metrics_of(job, fit, console)
    if tree:
        console.status("posterior.nc")
        write_tree(job, fit, work / run_folder.TREE)
    run_folder.write_json(work / run_folder.METRICS, metrics)
    run_folder.write_record(work, time.perf_counter() - began, job.experiment.seed)
    return metrics


def fit_of_job(
    job: Job, backbone: nn.Module | RandomFeatures | None, work: Path, machine: Machine, console: Console
) -> bll.Fit:
    """The fit, with its detector."""
    experiment = job.experiment
    console.status(f"fitting {len(job.parts['train']):,} rows")
    if isinstance(experiment.backbone, TrainedNetwork):
        return with_detector(job, around_head(job, experiment.backbone, machine), machine, console)
    fit = bll.fit(
        experiment.layer,
        job.data("train"),
        backbone,
        experiment.inference,
        seed=experiment.seed,
        validation_data=job.data("validation"),
        store=machine.store,
        device=machine.device,
        batch_size=machine.batch_size,
        calibration=experiment.calibration_argument,
        checkpoint=work / run_folder.CHECKPOINT,
    )
    return with_detector(job, fit, machine, console)


def around_head(job: Job, declared: TrainedNetwork, machine: Machine) -> bll.Fit:
    """The fit of a trained network around its own head; the part ``calibration`` says how far to trust it."""
    experiment = job.experiment
    with isolated(experiment.seed):
        net = declared.whole()
    return bll.bayesianize(
        net,
        job.data("train"),
        calibration=job.data("calibration"),
        likelihood=experiment.layer.likelihood,
        inference=experiment.inference,
        prior_scale=declared.prior_scale,
        seed=experiment.seed,
        store=machine.store,
        device=machine.device,
        batch_size=machine.batch_size,
    )


def with_detector(job: Job, fit: bll.Fit, machine: Machine, console: Console) -> bll.Fit:
    """The fit with the detector that is declared; without, and a warning, where the rows do not suffice."""
    detector, rows = job.experiment.detector, job.rows("calibration")
    if detector is None:
        return fit
    least = least_rows(detector.alpha, 1)
    if rows is None or len(rows) < least:
        found = 0 if rows is None else len(rows)
        console.warning(
            f"no detector of unknown inputs: expected at least {least} rows in the part calibration, got {found}; give a larger "
            "splits.calibration, or detector: null"
        )
        return fit
    console.status("calibrating the detector")
    inputs = job.opened.inputs_of(rows)
    try:
        found_detector = detector.calibrate(
            fit, inputs, train=job.data("train"), batch_size=machine.batch_size
        )
    except (ValueError, TypeError) as error:
        console.warning(f"no detector of unknown inputs: {error}")
        return fit
    return fit.with_detector(found_detector)


def copy_code(job: Job, work: Path) -> None:
    """Copy modules of the user's that lie beside the YAML, so that the run can be read where it lies."""
    folder, code = job.draft.document.folder, work / run_folder.CODE
    for name in sorted(modules_in(written(job.experiment))):
        top = name.partition(".")[0]
        if (file := folder / f"{top}.py").is_file():
            code.mkdir(exist_ok=True)
            shutil.copyfile(file, code / file.name)
        elif (folder / top / "__init__.py").is_file():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder / top, code / top, dirs_exist_ok=True, ignore=ignored)


def modules_in(plain: Any) -> set[str]:
    """Names of the modules that plain data of a declaration name."""
    if isinstance(plain, list):
        return {name for one in plain for name in modules_in(one)}
    if not isinstance(plain, dict):
        return set()
    found = {name for value in plain.values() for name in modules_in(value)}
    if isinstance(plain.get("module"), str):
        found.add(plain["module"])
    if plain.get("class") == "training.Imported":
        found.add(plain["path"])
    return found
