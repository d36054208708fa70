"""Bodies of requests: what is read, and that everything else is a 4xx that says why."""

import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from service_cases import ARROW, JSON, NPY, WIDTH, Client, light, npy, rows, softmax_of

from bll_pyro.serve import ServedModel, ServiceSettings, application

NAMES = ("a", "b", "c", "d")


def named() -> ServedModel:
    return ServedModel(softmax_of, (WIDTH,), columns=NAMES)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    models = {"plain": light, "named": named}
    with Client(application(models, ServiceSettings(environment={}, request_rows=1000))) as made:
        yield made


def stream_of(table: Any, compression: str | None = None, chunk: int = 7) -> bytes:
    import pyarrow as pa

    stream = io.BytesIO()
    with pa.ipc.new_stream(
        stream, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as out:
        out.write_table(table, max_chunksize=chunk)
    return stream.getvalue()


def test_arrow_streams(client: Client) -> None:
    import pyarrow as pa

    given = rows(20)
    expected = softmax_of(given)["probs"]
    table = pa.table({name: given[:, k] for k, name in enumerate(NAMES)})
    for path, sent in (
        ("/models/plain/predict", table),
        ("/models/named/predict", table.select(["d", "b", "a", "c"])),
        ("/models/named/predict", table.append_column("other", pa.array(["x"] * 20))),
        ("/models/plain/predict", table.set_column(1, "b", table["b"].dictionary_encode())),
    ):
        answer = client.post(path, stream_of(sent), ARROW)
        assert answer.status == 200, answer.body
        np.testing.assert_allclose(answer.json()["probs"], expected, rtol=1e-6)


def test_rows_by_name(client: Client) -> None:
    given = rows(3)
    sent = [dict(zip(NAMES, row, strict=True)) for row in given.tolist()]
    answer = client.post("/models/named/predict", {"rows": [dict(reversed(row.items())) for row in sent]})
    np.testing.assert_allclose(answer.json()["probs"], softmax_of(given)["probs"], rtol=1e-6)


DEEP = b"[" * 100_000
ROW = "[0.1, 2, 3, 4]"
WRONG_JSON: list[tuple[bytes | str, int, str]] = [
    (b"", 400, "JSON"),
    (b"{", 400, "JSON"),
    (b"\xff\xfe\x00", 400, "JSON"),
    (DEEP, 400, "JSON"),
    ('{"rows": [[NaN, 1, 2, 3]]}', 400, "JSON"),
    ('{"rows": [[1, 2, 3, 4]]} x', 400, "JSON"),
    ("[]", 422, '"rows"'),
    ("null", 422, '"rows"'),
    ('{"rows": []}', 422, "one row"),
    ('{"rows": {}}', 422, "list"),
    (f'{{"rows": [{ROW}], "more": 1}}', 422, '"rows"'),
    ('{"rows": [[1, 2, 3]]}', 422, "[4], got [3]"),
    ('{"rows": [[1, 2, 3, 4], [1, 2, 3]]}', 422, "several shapes"),
    ('{"rows": [[]]}', 422, "[4], got [0]"),
    ('{"rows": [1, 2, 3, 4]}', 422, "rows[0]"),
    ('{"rows": [[[1], 2, 3, 4]]}', 422, "rows[0][0]"),
    ('{"rows": [[1, 2, 3, "4"]]}', 422, "rows[0][3]"),
    ('{"rows": [[1, 2, 3, true]]}', 422, "rows[0][3]"),
    ('{"rows": [[1, 2, 3, null]]}', 422, "rows[0][3]"),
    ('{"rows": [[1, 2, 3, 1e39]]}', 422, "row 0"),
    ('{"rows": [[1, 2, 3, 1e400]]}', 422, "rows[0][3]"),
    (f'{{"rows": [[1, 2, 3, {"9" * 300}]]}}', 422, ""),
    (f'{{"rows": [[1, 2, 3, {"9" * 5000}]]}}', 400, "JSON"),
    ('{"rows": [{"a": 1}]}', 422, "does not know names"),
    (json.dumps({"rows": [[0] * 4] * 1001}), 413, "1,000 rows"),
]


@pytest.mark.parametrize(("body", "status", "text"), WRONG_JSON, ids=range(len(WRONG_JSON)))
def test_wrong_json(client: Client, body: bytes | str, status: int, text: str) -> None:
    answer = client.post("/predict", body.encode() if isinstance(body, str) else body)
    assert answer.status == status and text in answer.json()["detail"], answer.body
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([{"a": 1}], "b, c, d"),
        ([dict.fromkeys("abcd", 1), dict.fromkeys("abc", 1)], "rows[1]"),
        ([dict.fromkeys("abcd", 1), [1, 2, 3, 4]], "rows[1]"),
        ([dict.fromkeys("abcd", "x")], "'a'"),
        ([dict.fromkeys("abcd")], "'a'"),
        ([dict.fromkeys("abcd", True)], "'a'"),
        ([dict.fromkeys("bcd", 1) | {"a": [1]}], "rows[0]"),
        ([dict.fromkeys("abcd", 10**310)], ""),
        ([dict.fromkeys("abcd", 1e39)], "row 0"),
    ],
)  # fmt: skip
def test_wrong_columns(client: Client, rows: list[Any], text: str) -> None:
    answer = client.post("/models/named/predict", {"rows": rows})
    assert answer.status in (400, 422) and text in answer.json()["detail"], answer.body


def header(shape: str, descr: str = "'<f4'", version: int = 1) -> bytes:
    """The header of an array that claims something."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H", len(text)) + text.encode()


def test_wrong_arrays(client: Client) -> None:
    good = npy(rows(3))
    import pickle

    cases: list[tuple[bytes, int, str]] = [
        (b"", 400, "np.save"),
        (good[:20], 400, "np.save"),
        (good[:-1], 400, "bytes of data"),
        (good + b"x", 400, "bytes of data"),
        (header("(1000000000000, 4)") + b"x", 400, "bytes of data"),
        (header(f"({2**62}, {2**62})"), 400, "bytes of data"),
        (header("(-1, 4)"), 400, ""),
        (header("(3, True)") + bytes(12), 400, ""),
        (header("('3', 4)"), 400, ""),
        (header("(3, 4)", "'|O'") + pickle.dumps([1]), 422, "numbers"),
        (header("(3, 4)", "'<U4'") + bytes(192), 422, "numbers"),
        (header("(3, 4)", "'<c8'") + bytes(96), 422, "numbers"),
        (header("(3,)", "[('a', '<f4'), ('b', 'O')]") + bytes(12), 422, "numbers"),
        (header("__import__('os').system('true')"), 400, "np.save"),
        (header("(3, 4)", version=9) + bytes(48), 400, "np.save"),
        (header("(" * 500), 400, "np.save"),
        (npy(np.float32(3)), 422, "empty"),
        (npy(np.empty((0, 4), np.float32)), 422, "empty"),
        (npy(np.empty((4, 0), np.float32)), 422, "empty"),
        (npy(rows(3)[:, :3]), 422, "[4], got [3]"),
        (npy(rows(3)[:, :, None]), 422, "[4], got [4, 1]"),
        (npy(np.full((2, 4), np.nan)), 422, "row 0"),
        (npy(np.full((2, 4), 1e300)), 422, "row 0"),
        (npy(np.zeros((1001, 4), np.int8)), 413, "1,000 rows"),
    ]
    for body, status, text in cases:
        answer = client.post("/predict", body, NPY)
        assert answer.status == status and text in answer.json()["detail"], (body[:100], answer)
    assert client.post("/predict", npy(np.ones((2, 4), np.uint8)), NPY).status == 200


def test_wrong_arrow(client: Client) -> None:
    import pyarrow as pa

    given = rows(8)
    table = pa.table({name: given[:, k] for k, name in enumerate(NAMES)})
    good = stream_of(table)
    bomb = pa.table({name: np.zeros(1_000_000, np.float32) for name in NAMES})
    many = pa.table({"n": pa.nulls(10)})
    cases: list[tuple[bytes, int, str]] = [
        (b"", 400, ""),
        (good[:60], 400, ""),
        (good[:-200], 400, ""),
        (stream_of(table, "zstd"), 422, "without compression"),
        (stream_of(table, "lz4"), 422, "without compression"),
        (
            stream_of(table.set_column(0, "a", table["a"].cast("string").dictionary_encode()), "zstd"),
            422,
            "without",
        ),
        (stream_of(bomb, "zstd", 10**6), 422, "without compression"),
        (stream_of(bomb, chunk=10**6), 413, "1,000 rows"),
        (stream_of(many), 422, "null"),
        (stream_of(pa.table({"l": [[1.0], [2.0]]})), 422, "list"),
        (stream_of(table.slice(0, 0)), 422, "empty"),
        (stream_of(table.set_column(0, "b", table["a"])), 422, "different names"),
        (stream_of(table.set_column(0, "a", pa.array([None] * 8, pa.float32()))), 422, "missing"),
        (stream_of(table.set_column(0, "a", pa.array(["x"] * 8))), 422, "numbers"),
        (stream_of(table.select(["a", "b"])), 422, "[4], got [2]"),
    ]
    for body, status, text in cases:
        answer = client.post("/models/plain/predict", body, ARROW)
        assert answer.status == status and text in answer.json()["detail"], (body[:60], answer)


def test_content_types(client: Client) -> None:
    for kind in (
        "",
        "text/plain",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "a" * 1000,
    ):
        answer = client.post("/predict", {"rows": [[0] * 4]}, {"content-type": kind})
        assert answer.status == 415 and "application/json" in answer.json()["detail"]
    assert (
        client.post(
            "/predict", {"rows": [[0] * 4]}, {"content-type": "Application/JSON; charset=utf-8"}
        ).status
        == 200
    )
    for kind in ("image/png", "multipart/form-data; boundary=x"):
        form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nx\r\n--x--\r\n'
        answer = client.post("/predict", form, {"content-type": kind})
        assert answer.status == 415 and "does not take them" in answer.json()["detail"]


def test_large_bodies_are_read_beside_other_requests() -> None:
    """While a large JSON is read in a thread, the event loop answers."""
    given = rows(20_000)
    body = [json.dumps({"rows": given.tolist()}).encode()]
    order: list[str] = []
    with Client(
        application({"m": light}, ServiceSettings(environment={}, request_rows=20_000, queued_rows=20_000))
    ) as client:

        async def large() -> None:
            answer = await client.send("POST", "/predict", JSON, list(body))
            np.testing.assert_allclose(answer.json()["probs"], softmax_of(given)["probs"], rtol=1e-5)
            order.append("large")

        async def small() -> None:
            await client.send("GET", "/healthz", {}, [b""])
            order.append("small")

        client.together(large(), small(), small())
    assert order == ["small", "small", "large"]
