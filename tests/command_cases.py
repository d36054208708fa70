"""Experiments for the tests of the command line: data of every kind, written into a folder, and how they are fitted."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import pytest

NUM_ROWS = 240
EXPERIMENT = """data: {{class: {data}}}
splits: {{calibration: 0.25, test: 0.2}}
inference: Laplace
detector: {{class: Detector, alpha: 0.1}}
{more}"""
NETS = """
from torch import nn

def small():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
"""
ROWS = """
import torch

def rows():
    random = torch.Generator().manual_seed(0)
    x = torch.randn(240, 3, generator=random)
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
"""


def table_frame(num_rows: int = NUM_ROWS) -> pd.DataFrame:
    """A table with numbers, categories, names of the rows, and a target of texts."""
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "customer": [f"c{number:04}" for number in range(num_rows)],
            "age": random.normal(40, 10, num_rows).round(2),
            "colour": random.choice(["blue", "green", "red"], num_rows),
            "visits": random.integers(0, 9, num_rows),
        }
    )
    score = (frame["age"] - 40) / 10 + (frame["colour"] == "red") + random.normal(0, 0.5, num_rows)
    return frame.assign(buys=np.where(score > 0.3, "yes", "no"))


def arrays(num_rows: int = NUM_ROWS) -> tuple[np.ndarray, np.ndarray]:
    """Features and class numbers."""
    x = np.random.default_rng(1).normal(size=(num_rows, 3)).astype(np.float32)
    return x, (x[:, 0] + 0.3 * x[:, 1] > 0).astype(np.int64)


def write_images(folder: Path, num_rows: int = 120) -> None:
    """Dark and bright images in folders of their class."""
    from PIL import Image

    random = np.random.default_rng(2)
    for number in range(num_rows):
        name, top = ("dark", 120) if number % 2 else ("bright", 240)
        path = folder / name / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(top - 119, top, (8, 8, 3), dtype=np.uint8)).save(path)


def write_data(folder: Path, kind: str) -> tuple[str, str]:
    """Write data of one kind; return what stands in the YAML, and on the command line."""
    more = "layer: {likelihood: Categorical}"  # of class numbers, which could be values
    x, y = arrays()
    if kind in ("csv", "parquet"):
        given, more = f"t.{kind}", ""
        frame = table_frame()
        frame.to_csv(folder / given, index=False) if kind == "csv" else frame.to_parquet(folder / given)
        data = f"Table, path: {given}, target: buys, index: customer"
    elif kind == "npz":
        np.savez(folder / "a.npz", x=x, y=y)
        data, given = "Arrays, path: a.npz", "a.npz"
    elif kind == "npy":
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", y)
        data, given = "Arrays, path: x.npy, targets: y.npy", "x.npy"
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        save_file({"features": x, "labels": y}, folder / "a.safetensors")
        data, given = "Arrays, path: a.safetensors", "a.safetensors"
    elif kind == "store":
        import torch

        import bll_pyro as bll

        bll.extract(torch.nn.Identity(), (x, y), store=folder / "store")
        (made,) = (one for one in (folder / "store").iterdir() if one.is_dir())
        data, given = f"FeatureStore, path: store/{made.name}", "store"
    elif kind == "images":
        write_images(folder / "images")
        (folder / "nets.py").write_text(NETS)
        data, given, more = "ImageFolder, path: images", "images", "backbone: nets.small"
    elif kind == "function":
        (folder / "own_rows.py").write_text(ROWS)
        data, given = 'Function, function: "own_rows:rows"', "own_rows:rows"
    else:
        data, given, more = f"BuiltIn, name: {kind}", kind, ""
    (folder / "e.yaml").write_text(EXPERIMENT.format(data=data, more=more))
    return data, given


def chain(given: str) -> tuple[list[str], ...]:
    """The command lines from data to a report."""
    return (
        ["fit", "e.yaml", "-o", "run", "--no-tree"],
        ["predict", "run", given, "-o", "p.csv"],
        ["evaluate", "run", "run:test", "--json"],
        ["ood", "run", given, "--alpha", "0.1", "-o", "ood.csv"],
        ["report", "run", "-o", "report.html", "--json"],
    )


def exit_code_of(arguments: list[str], out: TextIO) -> int:
    """Of a command: called in this process, or with ``BLL_WHOLE=1`` the program ``bll``, which starts in four seconds."""
    if "BLL_WHOLE" in os.environ:
        program = Path(sys.executable).with_name("bll")
        return subprocess.run([program, *arguments], stdout=out, check=False).returncode
    from bll_pyro.cli import main

    with redirect_stdout(out):
        return main(arguments)


def all_commands(folder: str, kinds: tuple[str, ...]) -> None:
    """Run the chain of each kind of data, in a process of its own; what goes wrong is its exit code."""
    for kind in kinds:
        place = Path(folder, kind)
        place.mkdir()
        os.chdir(place)
        for arguments in chain(write_data(place, kind)[1]):
            with Path(f"{arguments[0]}.txt").open("w") as out:
                code = exit_code_of(arguments, out)
            if code:
                sys.exit(code)


def check_outcome(folder: Path) -> None:
    """What :func:`chain` wrote is what it should be."""
    table, verdicts = pd.read_csv(folder / "p.csv"), pd.read_csv(folder / "ood.csv")
    assert (table["row_id"] == verdicts["row_id"]).all() and table["row_id"].is_unique
    probs = table.filter(regex="^p_|^p[0-9]").to_numpy()
    assert np.allclose(probs.sum(1), 1, atol=1e-4)
    assert np.allclose(table["total"], table["aleatoric"] + table["epistemic"], atol=1e-4)
    assert verdicts["is_ood"].mean() < 0.3
    scores = json.loads((folder / "evaluate.txt").read_text())["scores"]
    stored = json.loads((folder / "run" / "metrics.json").read_text())["quality"]
    assert scores == stored and scores["Bayesian"]["accuracy"] > 0.7 and "plain head" in scores
    numbers = json.loads((folder / "report.json").read_text())["metrics"]
    assert json.loads((folder / "report.txt").read_text())["metrics"] == numbers
    assert numbers["nll"] == pytest.approx(scores["Bayesian"]["NLL"], rel=1e-5)
    assert (folder / "report.html").read_text().rstrip().endswith("</html>")
