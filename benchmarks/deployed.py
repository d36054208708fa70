"""Latency of exported graphs beside that of the plain network, in onnxruntime; size of a head's file; start of the runtime.

The plain network is the same backbone with one linear layer and a softmax, exported by the same exporter. All graphs of a table
run in interleaved rounds, in one process, with the same number of threads."""

import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import bll_pyro as bll
from benchmarks.harness import interleave, ratio, repeated_for
from benchmarks.options import Options
from benchmarks.report import Report, Table, Target
from bll_pyro import runtime

PLAIN = "plain network, softmax"
COLUMNS = {
    "method": "graph",
    "rows": "rows",
    "milliseconds": "ms",
    "ratio": "over the plain network (quartiles)",
}
OF_NETWORK, OF_HEAD = 1.15, 2.0  # limits of the ratio
ALARM = bll.ood.Leverage()
NOTES = [
    "A posterior with a standard deviation for each weight has two matrices of the size of the plain head's, and its graph "
    "two such products: twice the plain head is the least that it can cost, whatever the rest is. In principal axes (the "
    "default) there is a product of D x D before them. 256 points are 256 softmaxes a row.",
    "The file of a head is compared with the tensors of the posterior, the mean and the standard deviations.",
]
Predict = Callable[[np.ndarray], object]


def run(options: Options) -> Report:
    """Measure a network and a head alone."""
    report = Report("deployed", "Exported graphs: latency and size")
    report.notes += NOTES
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore", bll.FitWarning)  # fits of a few epochs: only their shapes matter here
        folder = Path(name)
        _network(report, options, folder)
        _head(report, options, folder)
        _sizes(report, folder)
    return report


def _network(report: Report, options: Options, folder: Path) -> None:
    """A network of the size of a ResNet-18, 10 classes, with a detector."""
    size, num_rows = (32, 40) if options.small else (224, 120)
    images = torch.rand(num_rows, 3, size, size, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(num_rows) % 10
    backbone = bll.timm_backbone("resnet10t" if options.small else "resnet18", pretrained=False)
    fit = bll.fit(_layer(10), (images[:-20], labels[:-20]), backbone, bll.SVI(num_epochs=2))
    fit = fit.with_detector(bll.ood.Detector(ALARM, 0.1).calibrate(fit, images[-20:]))
    graphs = {
        PLAIN: _plain(
            nn.Sequential(fit.backbone, nn.Linear(fit.posterior.frame.num_features, 10)),
            images[:3],
            folder,
            options,
        ),
        "probabilities, uncertainties and verdict": _graph(fit, folder, options, inputs=images[:1]),
    }
    _table(report, options, "ResNet-18, 10 classes", graphs, images.numpy(), OF_NETWORK, "verdict")


def _head(report: Report, options: Options, folder: Path) -> None:
    """A head alone: with many classes nearly all of the work is of the last layer."""
    num_features, num_classes = (32, 20) if options.small else (2048, 1000)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3 * num_classes, num_features, generator=generator)
    labels = torch.arange(len(rows)) % num_classes
    guides = {
        "point": bll.guides.MAP(),
        "Diagonal, plain axes": bll.guides.Diagonal(principal_axes=False),
        "Diagonal": bll.guides.Diagonal(),
    }
    if options.small:
        del guides["Diagonal, plain axes"]
    graphs = {PLAIN: _plain(nn.Linear(num_features, num_classes), rows[:3], folder, options)}
    for name, guide in guides.items():
        fit = bll.fit(
            _layer(num_classes), (rows, labels), inference=bll.SVI(guide=guide, num_epochs=1, batch_size=500)
        )
        graphs[f"{name}, Probit()"] = _graph(fit, folder, options, integration=bll.Probit())
        if name == "Diagonal":
            graphs[f"{name}, 256 points"] = _graph(fit, folder, options)
            fit.save(folder / "head.bll")
            fit.save(folder / "head")
    title = f"A head alone, D = {num_features:,}, K = {num_classes:,}"
    _table(
        report, options, title, graphs, rows.numpy(), OF_HEAD, "point, Probit", "Diagonal, plain axes, Probit"
    )


def _layer(num_classes: int) -> bll.LastLayer:
    return bll.LastLayer(bll.likelihoods.Categorical(num_classes), bll.priors.Normal(1.0))


def _graph(fit: bll.Fit, folder: Path, options: Options, **given: Any) -> Predict:
    fit.export(folder / "m.onnx", **given)
    return runtime.load(folder / "m.onnx", threads=options.num_threads).predict


def _plain(network: nn.Module, rows: torch.Tensor, folder: Path, options: Options) -> Predict:
    """The same exporter, the same checks of the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.export.export(
            nn.Sequential(network, nn.Softmax(-1)).eval(),
            (rows,),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            strict=False,
        )
        program = torch.onnx.export(
            traced, dynamo=True, verbose=False, optimize=False, input_names=["inputs"]
        )
    assert program is not None
    program.save(folder / "plain.onnx")
    chosen = onnxruntime.SessionOptions()
    chosen.log_severity_level, chosen.intra_op_num_threads = 3, options.num_threads
    session = onnxruntime.InferenceSession(
        (folder / "plain.onnx").read_bytes(), chosen, providers=["CPUExecutionProvider"]
    )
    description = {"inputs": {"shape": list(rows.shape[1:]), "dtype": "float32", "names": None}}
    return runtime.Predictor(
        lambda given: {"probs": session.run(None, {"inputs": given})[0]}, description
    ).predict


def _table(
    report: Report,
    options: Options,
    title: str,
    graphs: dict[str, Predict],
    rows: np.ndarray,
    limit: float,
    *of: str,
) -> None:
    table = Table(title, COLUMNS)
    report.tables.append(table)
    kept = {name: graph for name, graph in graphs.items() if name == PLAIN or options.keeps(name)}
    for num_rows in (1, 64):
        part = rows[:num_rows]
        measures = {
            name: repeated_for(partial(graph, part), 0.01 if options.small else 0.3)
            for name, graph in kept.items()
        }
        timings = interleave(measures, options.num_runs)
        for name, timing in timings.items():
            found = ratio(timing, timings[PLAIN])
            table.rows.append(
                {
                    "method": name,
                    "rows": num_rows,
                    "milliseconds": 1e3 * timing.median,
                    "ratio": found,
                    "seconds": timing.seconds,
                }
            )
            if any(part in name for part in of):
                report.targets.append(
                    Target(f"{title}: {name}, {num_rows} rows, over the plain network", found.median, limit)
                )


def _sizes(report: Report, folder: Path) -> None:
    tensors = sum(file.stat().st_size for file in (folder / "head").glob("*.safetensors"))
    whole = (folder / "head.bll").stat().st_size
    report.targets.append(Target("file of a head over its tensors", whole / tensors, 1.1))
    code = (
        "import time; began = time.perf_counter(); import onnxruntime; from bll_pyro import runtime; "
        "print(time.perf_counter() - began, int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)"
    )
    for _ in range(2):  # the first run fills the disk cache
        said = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    report.targets.append(Target("import of bll_pyro.runtime and onnxruntime, s", float(said[0]), 0.5))
    report.targets.append(Target("memory after that, MB", float(said[1]), 150))
