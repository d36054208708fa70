"""The runtime alone: no torch, no Pyro; every byte counts; what rows it takes."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fickling.fickle import Pickled, PickleDecodeError

import bll_pyro as bll
from bll_pyro import ood, runtime
from bll_pyro.export import graph
from bll_pyro.scope import generator

ROWS = torch.randn(300, 3, generator=generator(1))
LABELS = torch.bucketize(ROWS[:, 0].contiguous(), torch.tensor([-0.5, 0.5]))
ARRAY = ROWS.numpy()
ASIDE = ("torch", "pyro", "arviz", "timm", "sklearn", "scipy", "pandas")


@pytest.fixture(scope="module")
def fit() -> bll.Fit:
    plain = bll.fit(
        bll.LastLayer(bll.likelihoods.Categorical(3)),
        (ROWS[:100], LABELS[:100]),
        inference=bll.SVI(num_epochs=5),
    )
    return plain.with_detector(ood.Detector(ood.Leverage(), 0.1).calibrate(plain, ROWS[100:200]))


@pytest.fixture(scope="module")
def folder(fit: bll.Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same graph as a file, with weights beside it, in a saved fit, and in one that is one file."""
    made = tmp_path_factory.mktemp("models")
    fit.export(made / "m.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bll.export, "graph_bytes", lambda *_, **__: (made / "m.onnx").read_bytes())
        fit.save(made / "m.bll", graph=True)
        fit.save(made / "saved", graph=True)
    fit.save(made / "plain.bll")
    return made


@pytest.fixture(scope="module")
def outside(fit: bll.Fit, folder: Path) -> None:
    """The same graph with its weights beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "MOST_BYTES", 0)
        fit.export(folder / "large.onnx")


MODELS = ("m.onnx", "large.onnx", "m.bll", "saved")


@pytest.mark.parametrize("name", MODELS)
def test_what_it_says(fit: bll.Fit, folder: Path, outside: None, name: str) -> None:
    predictor, native = runtime.load(folder / name, threads=1), fit.predict(ROWS[200:])
    assert native.ood is not None
    found = predictor.predict(ARRAY[200:])
    for key in ("probs", "total", "aleatoric", "epistemic"):
        np.testing.assert_allclose(found[key], getattr(native, key), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["score"], native.ood.score, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found["p_value"], native.ood.p_value) and np.array_equal(
        found["is_ood"], native.ood.is_ood
    )
    assert (
        predictor.classes == [0, 1, 2]
        and predictor.input_shape == (3,)
        and predictor.metadata["alpha"] == 0.1
    )
    assert (
        "Categorical" in repr(predictor)
        and predictor.quantiles == ()
        and predictor.inputs["dtype"] == "float32"
    )


def test_without_torch(folder: Path) -> None:
    code = (
        "import sys, time, json\n"
        f"for name in {ASIDE!r}: sys.modules[name] = None\n"
        "began = time.process_time()\n"
        "from bll_pyro import runtime\nimport numpy as np, onnxruntime\n"
        "seconds = time.process_time() - began\n"
        f"found = runtime.load({str(folder / 'm.onnx')!r}, threads=1).predict(np.ones((2, 3), 'float32'))\n"
        "memory = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024\n"
        "own = [name for name in sys.modules if name.startswith('bll_pyro.') and 'runtime' not in name]\n"
        "print(json.dumps([sorted(found), seconds, memory, own]))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, seconds, memory, own = json.loads(said.stdout)
    assert names == sorted(["probs", "total", "aleatoric", "epistemic", "score", "p_value", "is_ood"])
    assert not own and memory < 150 and seconds < 0.5


@pytest.mark.parametrize("name", [*MODELS, "plain.bll"])
def test_any_byte_that_changed_is_refused(folder: Path, outside: None, name: str, tmp_path: Path) -> None:
    copied = tmp_path / name
    if (folder / name).is_dir():
        shutil.copytree(folder / name, copied)
        files = [file for file in copied.iterdir() if not file.name.startswith("posterior")]
    else:
        files = [Path(shutil.copy(part, tmp_path)) for part in folder.glob(f"{name}*")]
    load = bll.load if name == "plain.bll" else runtime.load
    random = np.random.default_rng(0)
    for _ in range(40):
        file = files[random.integers(len(files))]
        content = file.read_bytes()
        place, bit = random.integers(len(content)), 1 << random.integers(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        with pytest.raises(ValueError, match=r"expected|Altered"):
            load(copied)
        file.write_bytes(content)
    load(copied)
    files[0].write_bytes(files[0].read_bytes()[:-7])
    with pytest.raises(ValueError, match="expected"):
        load(copied)


def test_one_file(fit: bll.Fit, folder: Path, tmp_path: Path) -> None:
    """The same fit comes back; no pickle, no training row; little more than its tensors; an earlier file stays or is replaced."""
    again = bll.load(folder / "m.bll")
    assert again.fingerprint == fit.fingerprint and again.detector is not None
    for path in (folder / "m.bll", folder / "m.onnx"):
        data = path.read_bytes()
        assert not any(row.tobytes() in data for row in ARRAY[:200])
        with pytest.raises(PickleDecodeError):
            Pickled.load(data)
    wide = torch.randn(60, 600, generator=generator(2))
    large = bll.fit(
        bll.LastLayer(bll.likelihoods.Categorical(3)),
        (wide, LABELS[:60]),
        inference=bll.SVI(guide=bll.guides.MatrixNormal(), num_epochs=1),
    )
    large.save(tmp_path / "m.bll")
    large.save(tmp_path / "folder")
    tensors = sum(file.stat().st_size for file in (tmp_path / "folder").glob("*.safetensors"))
    assert (tmp_path / "m.bll").stat().st_size <= 1.1 * tensors
    fit.save(tmp_path / "m.bll")
    assert bll.load(tmp_path / "m.bll").fingerprint == fit.fingerprint
    (tmp_path / "notes.bll").write_text("mine")
    with pytest.raises(ValueError, match="which is something else"):
        fit.save(tmp_path / "notes.bll")
    assert (tmp_path / "notes.bll").read_text() == "mine"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "m.bll", "notes.bll"]


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        (np.ones((2, 4)), ValueError, r"expected shape \[N, 3\], got \[2, 4\]"),
        (np.ones(3), ValueError, r"a single row is rows\[None\]"),
        (np.ones((0, 3)), ValueError, "one row or more"),
        (1.0, ValueError, "expected shape"),
        ([[1.0, 2.0, 3.0], [1.0]], ValueError, "different lengths"),
        (np.array([["a", "b", "c"]]), TypeError, "expected real numbers"),
        (np.ones((1, 3), complex), TypeError, "expected real numbers"),
        (np.array([[1.0, np.nan, 0.0]]), ValueError, r"first: row 0"),
        (np.array([[1.0, 1.0, 0.0], [1.0, 1e60, 0.0]]), ValueError, r"first: row 1"),
    ],
)
def test_rows_that_it_refuses(folder: Path, rows: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        runtime.load(folder / "m.onnx", threads=1).predict(rows)


def test_models_that_it_refuses(folder: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, folder / "plain.bll"):
        with pytest.raises(ValueError, match=r"expected (a model|a saved fit|a fit with a graph)"):
            runtime.load(path)
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(runtime.Altered, match=r"expected a graph that fit.export wrote"):
        runtime.load(tmp_path / "text.onnx")


def test_several_threads(folder: Path) -> None:
    predictor, found = runtime.load(folder / "m.onnx", threads=1), {}
    said = predictor.predict(ARRAY)["probs"]

    def work(which: int) -> None:
        found[which] = [predictor.predict(ARRAY[which::4])["probs"] for _ in range(5)]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(4):
        assert all(np.allclose(one, said[which::4], atol=1e-6) for one in found[which])
