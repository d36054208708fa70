"""Files of arrays, stores of features, functions of the user's; and which of them a text means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bll_pyro as bll
from bll_pyro.cli.data import Arrays, BuiltIn, FeatureStore, Function, ImageFolder, Table
from bll_pyro.cli.data.resolve import resolve
from bll_pyro.cli.usage import UsageError

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
Y = np.array([2, 0, 1, 1, 0])
MODULE = """
import torch
X = torch.arange(8.).reshape(4, 2)
def pairs(): return X, ["no", "yes", "no", "no"]
def inputs(): return X
def items(): return torch.utils.data.TensorDataset(X, torch.tensor([1, 0, 1, 1]))
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    np.savez("both.npz", x=X, y=np.array(["c", "a", "b", "b", "a"]))
    save_file({"features": torch.from_numpy(X), "labels": torch.from_numpy(Y)}, "both.safetensors")
    (tmp_path / f"rows_of_{tmp_path.name}.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize(
    ("data", "classes"),
    [
        (Arrays("x.npy", targets="y.npy"), None),
        (Arrays("both.npz"), ("a", "b", "c")),
        (Arrays("both.safetensors"), None),
        (Arrays("both.npz", inputs="x", targets="y"), ("a", "b", "c")),
    ],
)
def test_arrays_are_those_of_the_file(folder: Path, data: Arrays, classes: tuple[str, ...] | None) -> None:
    opened = data.open()
    assert opened.targets.tolist() == Y.tolist() and opened.classes == classes
    assert np.array_equal(np.concatenate([np.asarray(inputs) for _, inputs in opened.blocks(2)]), X)
    assert [list(row_ids) for row_ids, _ in opened.blocks(3)] == [[0, 1, 2], [3, 4]]
    inputs, targets = opened.take(np.array([4, 1]))
    assert np.array_equal(inputs, X[[4, 1]]) and targets.tolist() == (
        [0, 0] if classes is None else ["a", "a"]
    )


def test_an_array_stays_on_disk(folder: Path) -> None:
    opened = Arrays("x.npy").open()
    assert isinstance(opened.inputs, np.memmap) and opened.targets is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Arrays("both.npz", inputs="z"), "expected an array 'z' for inputs"),
        (Arrays("both.npz", targets="z"), "expected an array 'z' for targets"),
        (Arrays("odd.npz"), "with a usual name"),
        (Arrays("short.npz"), "one target for each of 5 rows"),
        (Arrays("cut.npz"), "cannot be read"),
        (Arrays("cut.safetensors"), "cannot be read"),
        (Arrays("cut.npy"), "cannot be read"),
        (Arrays("objects.npy"), "cannot be read"),
        (Arrays("none.npy"), "does not exist"),
        (FeatureStore("."), "manifest"),
        (Function("nowhere:f"), "nowhere"),
    ],
)
def test_files_that_cannot_be_used(folder: Path, data: Arrays, said: str) -> None:
    np.savez("odd.npz", one=X, two=X)
    np.savez("short.npz", x=X, y=Y[:3])
    for name in ("both.npz", "both.safetensors", "x.npy"):
        path = Path(name)
        path.with_stem("cut").write_bytes(path.read_bytes()[:40])
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UsageError, match=said):
        data.open()


def test_a_store_of_features(folder: Path) -> None:
    bll.extract(torch.nn.Identity(), (X, Y), store="store")
    data = resolve("store")
    assert isinstance(data, FeatureStore)
    opened = data.open()
    assert opened.targets.tolist() == Y.tolist()
    assert np.array_equal(np.concatenate([np.asarray(part) for _, part in opened.blocks(2)]), X)
    assert np.array_equal(opened.inputs_of(np.array([3, 0])), X[[3, 0]])
    bll.extract(torch.nn.Identity(), (X[1:], Y[1:]), store="store")
    with pytest.raises(UsageError, match="got 2 in store"):
        resolve("store")


@pytest.mark.parametrize(
    ("name", "targets", "classes"),
    [("pairs", [0, 1, 0, 0], ("no", "yes")), ("inputs", None, None), ("items", [1, 0, 1, 1], None)],
)
def test_a_function_of_the_users(
    folder: Path, name: str, targets: list[int] | None, classes: tuple[str, ...] | None
) -> None:
    opened = Function(f"rows_of_{folder.name}:{name}").open()
    assert opened.classes == classes and len(opened) == 4
    assert (opened.targets if targets is None else opened.targets.tolist()) == targets
    ((_, inputs),) = opened.blocks(8)
    first = inputs[0][0] if name == "items" and isinstance(inputs[0], tuple) else inputs[0]
    assert first.tolist() == [0.0, 1.0]


def test_a_function_is_one(folder: Path) -> None:
    with pytest.raises(UsageError, match="expected a class or function, got int"):
        Function(f"rows_of_{folder.name}:number").open()
    with pytest.raises(ValueError, match="module:function"):
        Function("pairs")


def test_what_a_text_means(folder: Path) -> None:
    (folder / "t.csv").write_text("a,b\n1,2\n")
    (folder / "images").mkdir()
    kinds = {
        "t.csv": Table,
        "x.npy": Arrays,
        "both.npz": Arrays,
        "images": ImageFolder,
        "iris": BuiltIn,
        "m:f": Function,
    }
    assert {name: type(resolve(name)) for name in kinds} == kinds
    assert resolve("t.csv", Table("old.csv", target="b", index="a")) == Table("t.csv", target="b", index="a")
    assert resolve("x.npy", Table("old.csv", target="b")) == Arrays("x.npy")
    for name, said in {
        "t.tsv": "did you mean 't.csv'",
        "iri": "one of breast_cancer",
        "none/x.csv": "there is no folder",
        f"rows_of_{folder.name}.py": "got .*py; write it",
    }.items():
        with pytest.raises(UsageError, match=said):
            resolve(name)
