"""``bll serve``: what it is told, and the models of runs, whose rows come as those of ``bll predict``."""

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_cases import table_frame, write_data
from service_cases import ARROW, Client, fit, rows

import bll_pyro as bll
from bll_pyro.cli import main
from bll_pyro.cli.served_model import load_served
from bll_pyro.cli.serving import folders_by_name
from bll_pyro.cli.usage import UsageError
from bll_pyro.serve import ServiceSettings, application
from bll_pyro.serve.models import holds_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a table and of images."""
    folder, before = tmp_path_factory.mktemp("serve"), Path.cwd()
    for kind in ("csv", "images"):
        (folder / kind).mkdir()
        write_data(folder / kind, kind)
        os.chdir(folder / kind)
        try:
            assert main(["fit", "e.yaml", "-o", "run", "--no-tree", "--quiet"]) == 0
        finally:
            os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    models = {kind: (lambda kind=kind: load_served(folder / kind / "run")) for kind in ("csv", "images")}
    with Client(application(models, ServiceSettings(environment={}))) as made:
        yield made


def by_hand(folder: Path, frame: pd.DataFrame) -> bll.prediction.ClassPrediction:
    colours = pd.get_dummies(frame["colour"])[["blue", "green", "red"]]
    features = pd.concat([frame["age"], colours, frame["visits"]], axis=1).to_numpy(np.float32)
    return bll.load(folder / "csv" / "run" / "model").predict(features)


def test_rows_of_a_table_come_by_the_names_of_its_columns(client: Client, folder: Path) -> None:
    import pyarrow as pa

    frame = table_frame(40)
    expected = by_hand(folder, frame)
    sent = frame[["visits", "colour", "age"]]
    stream = io.BytesIO()
    table = pa.Table.from_pandas(sent, preserve_index=False)
    with pa.ipc.new_stream(stream, table.schema) as out:
        out.write_table(table)
    for answer in (
        client.post("/predict", {"rows": sent.to_dict("records")}),
        client.post("/predict", stream.getvalue(), ARROW),
    ):
        found = answer.json()
        assert answer.status == 200 and set(found["label"]) == {"yes", "no"}, found
        np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-5)
        assert found["is_ood"] == expected.ood.is_ood.tolist()
    assert client.get("/model").json()["columns"] == ["age", "colour", "visits"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"age": "old"}, 422),
        ({"age": None}, 422),
        ({"age": 1e300}, 422),
        ({"age": 10**60}, 422),
        ({"colour": "violet"}, 200),  # none of the known ones, as on the command line
        ({"colour": 3}, 200),
        ({"colour": None}, 422),
        ({"colour": 0.5, "age": "4e1"}, 200),
        ({"visits": ""}, 422),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_wrong_values_of_a_table(client: Client, change: dict[str, object], status: int) -> None:
    row = {"age": 40.5, "colour": "red", "visits": 3, "more": "x"}
    answer = client.post("/predict", {"rows": [row, {**row, **change}]})
    assert answer.status == status, answer.body
    assert "violet" not in answer.body.decode() and "'old'" not in answer.body.decode()


def test_images_of_a_run(client: Client, folder: Path) -> None:
    paths = sorted((folder / "images" / "images").rglob("*.png"))[:6]
    head = b'--x\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'
    form = b"".join(head + path.read_bytes() + b"\r\n" for path in paths) + b"--x--\r\n"
    found = client.post(
        "/models/images/predict", form, {"content-type": "multipart/form-data; boundary=x"}
    ).json()
    assert found["label"] == [path.parent.name for path in paths]
    model = load_served(folder / "images" / "run")
    assert model.classes == ["bright", "dark"] and model.input_shape is None


def test_a_fit_that_is_one_file(tmp_path: Path) -> None:
    """Without a graph torch computes it; with one, or if it is one, onnxruntime does."""
    fit().save(tmp_path / "m.bll")
    given = rows(3)
    expected = fit().predict(given)
    found = load_served(tmp_path / "m.bll").predict(given)
    np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-6)
    np.testing.assert_allclose(found["p_value"], expected.ood.p_value, atol=1e-6)
    with zipfile.ZipFile(tmp_path / "graph.bll", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"files": {"graph": {}}}))
    (tmp_path / "damaged").write_bytes(b"PK\x03\x04 and no more")
    kinds = {"m.bll": False, "graph.bll": True, "m.onnx": True, "damaged": False, "none": False}
    assert {name: holds_graph(tmp_path / name) for name in kinds} == kinds
    for name in ("graph.bll", "damaged"):
        with pytest.raises(ValueError, match="expected"):
            load_served(tmp_path / name)


def test_names_of_models(tmp_path: Path) -> None:
    for name in ("a", "b c", "run/model"):
        (tmp_path / name).mkdir(parents=True)
    found = folders_by_name(
        [str(tmp_path / "a"), str(tmp_path / "b c"), str(tmp_path / "run" / "model"), f"x-1={tmp_path}/a"]
    )
    assert list(found) == ["a", "b_c", "run", "x-1"] and found["x-1"].path == tmp_path / "a"
    for given, message in (
        (["nowhere"], "does not exist"),
        ([f"../x={tmp_path}"], "letters, digits"),
        ([f"a={tmp_path}", f"a={tmp_path}"], "different names"),
    ):
        with pytest.raises(UsageError, match=message):
            folders_by_name(given)


def test_wrong_use_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    for options, message in (
        (["nowhere"], "does not exist"),
        ([str(tmp_path), "--workers", "0"], "workers"),
        ([str(tmp_path), "--tls-certificate", "c.pem"], "TLS needs both"),
        ([str(tmp_path), "--queued-rows", "5"], "at least request_rows"),
        ([str(tmp_path), "--drift-alpha", "2"], "alpha"),
    ):
        assert main(["serve", *options]) == 2
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err


def test_the_command_starts_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bll_pyro import serve

    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(serve, "serve", lambda *given: started.append(given))
    monkeypatch.delenv("BLL_API_KEY", raising=False)
    assert main(["serve", f"m={tmp_path}", "--host", "0.0.0.0", "--max-rows", "7", "--workers", "3"]) == 0
    models, settings, binding = started[0]
    assert list(models) == ["m"] and settings.request_rows == 7 and binding.workers == 3
    assert "everyone who reaches 0.0.0.0:8000 is served" in capsys.readouterr().err
    monkeypatch.setenv("BLL_API_KEY", "a-key-of-the-tests")
    assert main(["serve", f"m={tmp_path}", "--host", "0.0.0.0"]) == 0
    assert capsys.readouterr().err == ""
    assert json.dumps(settings.batch_rows) == "256"
