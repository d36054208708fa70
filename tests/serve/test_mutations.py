"""10,000 damaged bodies and images, and requests by the OpenAPI description: only 2xx and 4xx, and the service lives on."""

import io
import json
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from service_cases import ARROW, JSON, NPY, WIDTH, Client, light, npy, rows, softmax_of

from bll_pyro.serve import ServedModel, ServiceSettings, application

NUMBER = 10_000


def colours() -> ServedModel:
    def prepare(given: Any) -> np.ndarray:
        return np.asarray(given.resize((2, 2)), np.float32).transpose(2, 0, 1)

    def predict(given: np.ndarray) -> dict[str, np.ndarray]:
        return softmax_of(given.mean((2, 3)) / 255)

    return ServedModel(predict, (3, 2, 2), prepare=prepare)


def seeds() -> list[tuple[str, dict[str, str], bytes]]:
    """Path, headers and body of good requests of every kind."""
    import pyarrow as pa
    from PIL import Image

    given = rows(3)
    table = pa.table({f"c{k}": given[:, k] for k in range(WIDTH)})
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as out:
        out.write_table(table)
    found = [
        ("/predict", JSON, json.dumps({"rows": given.tolist()}).encode()),
        ("/models/named/predict", JSON, json.dumps({"rows": [dict.fromkeys("abcd", 0.5)] * 2}).encode()),
        ("/predict", NPY, npy(given)),
        ("/predict", ARROW, stream.getvalue()),
    ]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        content = io.BytesIO()
        picture.save(content, kind)
        found.append(
            ("/models/colours/predict", {"content-type": f"image/{kind.lower()}"}, content.getvalue())
        )
    form = (
        b'--x\r\nContent-Disposition: form-data; name="i"; filename="i"\r\n\r\n'
        + found[-5][2]
        + b"\r\n--x--\r\n"
    )
    found.append(("/models/colours/predict", {"content-type": "multipart/form-data; boundary=x"}, form))
    return found


def flipped(body: bytearray, random: np.random.Generator) -> None:
    for _ in range(random.integers(1, 5)):
        body[random.integers(len(body))] = random.integers(256)


def cut(body: bytearray, random: np.random.Generator) -> None:
    del body[random.integers(len(body)) :]


def taken_out(body: bytearray, random: np.random.Generator) -> None:
    start = random.integers(len(body))
    del body[start : start + random.integers(1, 20)]


def doubled(body: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(len(body)))
    body[start:start] = body[start : start + int(random.integers(1, 200))]


def filled(body: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(len(body)))
    body[start : start + 4] = bytes([random.choice([0, 127, 128, 255])] * 4)


def worded(body: bytearray, random: np.random.Generator) -> None:
    start = int(random.integers(len(body)))
    body[start:start] = WORDS[random.integers(len(WORDS))]


WORDS = [
    b"NaN",
    b"null",
    b"1e999",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"true",
    b"-",
    b",",
    b"\x00",
    b"\xff\xff\xff\xff",
    b"9" * 400,
]
MUTATIONS: list[Callable[[bytearray, np.random.Generator], None]] = [
    flipped,
    cut,
    taken_out,
    doubled,
    filled,
    worded,
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PIL, on odd metadata; in a service they are lines of the log
def test_mutated_bodies_and_images() -> None:
    named = ServedModel(softmax_of, (WIDTH,), columns=tuple("abcd"))
    settings = ServiceSettings(environment={}, image_pixels=10**6)
    good, random, counts = seeds(), np.random.default_rng(0), Counter[tuple[str, int]]()
    models = {"light": light, "named": lambda: named, "colours": colours}
    with Client(application(models, settings)) as client:
        for path, headers, body in good:
            assert client.post(path, body, headers).status == 200, headers
        made = []
        for number in range(NUMBER):
            path, headers, body = good[number % len(good)]
            changed = bytearray(body)
            for _ in range(random.integers(1, 3)):
                if changed:
                    MUTATIONS[random.integers(len(MUTATIONS))](changed, random)
            made.append((path, headers, bytes(changed)))
        for start in range(0, NUMBER, 100):
            some = made[start : start + 100]
            answers = client.together(
                *(client.send("POST", path, headers, [body]) for path, headers, body in some)
            )
            for (_, headers, body), answer in zip(some, answers, strict=True):
                counts[headers["content-type"], answer.status] += 1
                assert answer.status == 200 or 400 <= answer.status < 500, (headers, body, answer)
                if answer.status != 200:
                    assert answer.headers["content-type"] == "application/problem+json"
        assert client.get("/readyz").status == 200
        for path, headers, body in good:
            assert client.post(path, body, headers).status == 200
    for kind in {headers["content-type"] for _, headers, _ in good}:
        assert sum(n for (seen, status), n in counts.items() if seen == kind and status != 200) > 100, counts
    assert sum(n for (_, status), n in counts.items() if status == 200) > 500, counts


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_requests_by_the_description() -> None:
    """Schemathesis: what ``/openapi.json`` allows, and what it does not, on every path; no 5xx."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable

    seen: Counter[int] = Counter()
    with Client(application({"m": light}, ServiceSettings(environment={}))) as client:
        document = client.get("/openapi.json").json()
        schema = schemathesis.openapi.from_dict(document)
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) == 8
        limits = settings(
            max_examples=20, deadline=None, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        for operation in operations:
            modes = schemathesis.GenerationMode
            for mode in (modes.POSITIVE, modes.NEGATIVE):

                @limits
                @given(case=operation.as_strategy(generation_mode=mode))
                def call(case: Any) -> None:
                    sent = case.as_transport_kwargs(base_url="http://service")
                    answer = (
                        client.post(*prepared(sent))
                        if case.method == "POST"
                        else client.get(*prepared(sent)[:1])
                    )
                    seen[answer.status] += 1
                    assert answer.status < 500, (sent, answer)

                with suppress(Unsatisfiable):  # nothing can be wrong about a path without parameters
                    call()
    assert seen[200] > 8 and sum(seen.values()) - seen[200] > 20, seen


def prepared(sent: dict[str, Any]) -> tuple[str, bytes, dict[str, str]]:
    """A request of schemathesis as path, body and headers."""
    import httpx2

    known = ("method", "url", "params", "headers", "json", "data", "content", "files", "cookies")
    given = {name: value for name, value in sent.items() if name in known and value is not None}
    if isinstance(given.get("data"), bytes | str):
        given["content"] = given.pop("data")
    request = httpx2.Request(**given)
    path = request.url.raw_path.decode()
    return path, request.read(), dict(request.headers.items())
