"""``load``: a graph from a file, checked byte by byte, in an onnxruntime session."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from bll_pyro.runtime import seal
from bll_pyro.runtime.predictor import NumpyArray, Predictor

FORMAT, VERSION = "bll_pyro.graph", 1
METADATA = "bll_pyro"  # key of the metadata of a graph
MANIFEST, GRAPH = "manifest.json", "graph"


def load(path: str | os.PathLike[str], *, threads: int | None = None) -> Predictor:
    """Load an exported model for prediction.

    Parameters
    ----------
    path
        A graph (``.onnx``) that ``fit.export`` wrote; or a saved fit, one file (``.bll``) or a folder, that holds a graph
        (``fit.save(path, graph=True)``).
    threads
        Threads of one prediction; None takes as many as there are cores.

    Raises
    ------
    ValueError
        When the file is missing, cut or altered, holds no graph, or is of a later format. :class:`Altered` is one.
    ImportError
        Without onnxruntime.
    """
    place = Path(path).expanduser()
    if not place.exists():
        raise ValueError(
            f"load: expected a model, got {place}, where nothing is; pass the path of fit.export or fit.save"
        )
    graph: Path | bytes = place
    if place.is_dir():
        graph = _of_folder(place)
    elif zipfile.is_zipfile(place):
        graph = _of_one_file(place)
    return _predictor(graph, threads)


def _of_folder(folder: Path) -> Path:
    """The graph of a saved fit, whose sha256 the manifest has."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ValueError(
            f"load: expected a saved fit in {folder}, got no {MANIFEST} there; pass the path of fit.save"
        )
    entry = _entry(manifest.read_bytes(), str(folder))
    found = folder / Path(entry["file"]).name
    seal.check_file(found, entry["sha256"], entry["bytes"])
    return found


def _of_one_file(path: Path) -> bytes:
    """The graph of a saved fit that is one file."""
    with path.open("rb") as file:
        seal.check_end(file, str(path))
        with zipfile.ZipFile(file) as archive:
            entry = _entry(archive.read(MANIFEST), str(path))
            return archive.read(entry["file"])


def _entry(manifest: bytes, name: str) -> dict[str, Any]:
    """What a manifest says of the graph."""
    try:
        body: dict[str, Any] = json.loads(text := manifest.decode())
        files = body["files"]
        whole = seal.is_written(text, body)
    except (ValueError, KeyError, TypeError) as error:
        raise seal.Altered(
            f"load: expected the manifest of a fit in {name}, got something else; {seal.REMEDY}"
        ) from error
    if not whole:
        raise seal.Altered(
            f"load: expected the manifest in {name} as it was written, got an altered one; {seal.REMEDY}"
        )
    if GRAPH not in files:
        raise ValueError(
            f"load: expected a fit with a graph in {name}, got one without; save it by fit.save(path, graph=True), or take "
            "bll.load(path), which needs torch and Pyro"
        )
    found: dict[str, Any] = files[GRAPH]
    return found


def _predictor(graph: Path | bytes, threads: int | None) -> Predictor:
    data = graph if isinstance(graph, bytes) else graph.read_bytes()
    name = "the graph" if isinstance(graph, bytes) else str(graph)
    seal.check_graph(data, name)
    metadata = _metadata(data, name)
    outside = metadata.get("external")  # weights of more than 2 GB lie beside it
    if outside is not None:
        assert isinstance(graph, Path)
        seal.check_file(graph.with_name(Path(outside["file"]).name), outside["sha256"], outside["bytes"])
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "bll_pyro.runtime: expected onnxruntime, which is not installed: pip install onnxruntime"
        ) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        data if outside is None else str(graph), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    (given,) = (one.name for one in session.get_inputs())

    def run(rows: NumpyArray) -> dict[str, NumpyArray]:
        return dict(zip(names, session.run(names, {given: rows}), strict=True))

    return Predictor(run, metadata)


def _metadata(data: bytes, name: str) -> dict[str, Any]:
    """What a graph says of itself, read before anything is made of it."""
    metadata: dict[str, Any] = json.loads(seal.note(data, METADATA))
    if metadata["version"] > VERSION:
        raise ValueError(
            f"load: expected a graph of format {VERSION} or earlier in {name}, got {metadata['version']}; update bll_pyro"
        )
    return metadata
