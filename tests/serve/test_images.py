"""Images: rows as the command line makes them, many at once, and bytes that lie."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from service_cases import Client, softmax_of

import bll_pyro as bll
from bll_pyro.serve import ServedModel, ServiceSettings, application, of_fit
from bll_pyro.serve.preparing import preparation

PNG = {"content-type": "image/png"}
FORM = {"content-type": "multipart/form-data; boundary=edge"}
PIXELS = 10_000


def encoded(array: np.ndarray, kind: str = "PNG", **more: Any) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **more)
    return stream.getvalue()


def pictures(number: int, size: int = 20, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (number, size, size, 3), dtype=np.uint8))


def form(*contents: bytes, name: str = "a.png") -> bytes:
    head = f'--edge\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode()
    return b"".join(head + content + b"\r\n" for content in contents) + b"--edge--\r\n"


@pytest.fixture(scope="module")
def fit() -> Any:
    """A small network of timm that resizes and normalises."""
    backbone = bll.timm_backbone("test_resnet")
    inputs = torch.stack([backbone.transform(image(one)) for one in pictures(12)])
    return bll.fit(
        bll.LastLayer(bll.likelihoods.Categorical(2)), (inputs, torch.arange(12) % 2), backbone, bll.Laplace()
    )


def image(array: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(array)


def mean_colour() -> ServedModel:
    def prepare(given: Any) -> np.ndarray:
        return np.asarray(given, np.float32).transpose(2, 0, 1) / 255

    def predict(rows: np.ndarray) -> dict[str, np.ndarray]:
        return softmax_of(rows.mean((2, 3)))

    return ServedModel(predict, None, ["r", "g", "b"], prepare=prepare)


@pytest.fixture(scope="module")
def client(fit: Any) -> Iterator[Client]:
    settings = ServiceSettings(environment={}, image_pixels=PIXELS)
    with Client(application({"net": lambda: of_fit(fit), "colour": mean_colour}, settings)) as made:
        yield made


def test_images_become_the_rows_of_the_backbone(client: Client, fit: Any) -> None:
    given = pictures(35)
    expected = fit.predict(torch.stack([fit.backbone.transform(image(one)) for one in given])).probs
    several = client.post("/predict", form(*map(encoded, given)), FORM)
    assert several.status == 200, several.body
    np.testing.assert_allclose(several.json()["probs"], expected, atol=1e-5)
    one = client.post("/predict?interval=0.9", encoded(given[3]), PNG).json()
    np.testing.assert_allclose(one["probs"][0], expected[3], atol=1e-5)
    assert one["lower"][0][0] <= one["upper"][0][0]
    stream = io.BytesIO()
    np.save(stream, torch.stack([fit.backbone.transform(image(one)) for one in given]).numpy())
    arrays = client.post("/predict", stream.getvalue(), {"content-type": "application/x-npy"})
    np.testing.assert_allclose(arrays.json()["probs"], expected, atol=1e-5)
    told = client.get("/model").json()
    assert told["takes_images"] and told["input_shape"] == list(fit.backbone.config["images"]["input_size"])


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_images_of_graphs_are_prepared_as_by_timm(mode: str, interpolation: str) -> None:
    """Of every shape, larger and smaller than the model's."""
    from timm.data import create_transform

    images = {
        "input_size": (3, 32, 32), "interpolation": interpolation, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3),
        "crop_pct": 0.875, "crop_mode": mode,
    }  # fmt: skip
    prepare, transform = preparation(images), create_transform(**images, is_training=False)
    assert prepare is not None
    random = np.random.default_rng(0)
    for shape in ((32, 32), (36, 36), (20, 20), (51, 100), (100, 51), (37, 36), (7, 90), (33, 45)):
        picture = image(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
        np.testing.assert_allclose(prepare(picture), transform(picture).numpy(), atol=1e-6)
    for other in (None, {}, {**images, "crop_mode": "border"}, {**images, "input_size": (3, 32, 48)}):
        assert preparation(other) is None


def test_kinds_of_images(client: Client) -> None:
    """Grey, with a palette, with transparency, turned by their metadata: all are looked at as a person sees them."""
    red = np.zeros((10, 20, 3), np.uint8)
    red[..., 0] = 255
    red[:, :10] = 90
    expected = softmax_of(red.reshape(-1, 3).mean(0, keepdims=True) / 255)["probs"]
    picture = image(red)
    turned = picture.getexif()
    turned[0x0112] = 6
    cases = [
        encoded(red), encoded(red, "BMP"), encoded(red, "WEBP", lossless=True), encoded(red, "JPEG", quality=95, exif=turned),
        encoded(np.asarray(picture.convert("RGBA"))),
    ]  # fmt: skip
    stream = io.BytesIO()
    picture.convert("P", colors=16).save(stream, "GIF")
    for content in (*cases, stream.getvalue()):
        answer = client.post("/models/colour/predict", content, PNG)
        assert answer.status == 200, answer.body
        np.testing.assert_allclose(answer.json()["probs"], expected, atol=0.01)
    # names of files are never paths, whatever they say
    for name in ("../../etc/passwd", "/etc/passwd", "a\\..\\b", "x" * 3000):
        assert client.post("/models/colour/predict", form(encoded(red), name=name), FORM).status == 200


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, *more: bytes, bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_images_that_lie(client: Client) -> None:
    good = encoded(pictures(1)[0])
    jpeg = encoded(pictures(1)[0], "JPEG")
    zeros = zlib.compress(bytes(10**7), 9)
    cases: list[tuple[bytes, int, str]] = [
        (b"", 422, "cannot be read"),
        (b"no image", 422, "cannot be read"),
        (good[:100], 422, "cannot be read"),
        (good[:-60], 422, "cannot be read"),
        (jpeg[:300], 422, "cannot be read"),
        (b"GIF89a" + bytes(50), 422, "cannot be read"),
        (encoded(np.zeros((101, 100, 3), np.uint8)), 413, "10,000 pixels"),
        (png(2**31 - 1, 2**31 - 1, zeros), 413, "pixels"),
        (png(60_000, 60_000, zeros), 413, "pixels"),
        (png(50, 50, zlib.compress(b"x")), 422, "cannot be read"),
        (png(0, 5, zlib.compress(b"x")), 422, "cannot be read"),
        (png(10, 10, zlib.compress(bytes(310)), chunk(b"zTXt", b"a\0\0" + zeros)), 422, "cannot be read"),
        (encoded(np.zeros((5, 5), np.uint16)), 422, "8 bits"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "cannot be read"),
    ]
    for content, status, text in cases:
        for body, headers in ((content, PNG), (form(content), FORM)):
            answer = client.post("/models/net/predict", body, headers)
            assert answer.status == status and text in answer.json()["detail"], (content[:60], answer)
    assert client.post("/predict", form(good, b"x", good), FORM).json()["image"] == 1
    mixed = form(encoded(pictures(1)[0]), encoded(pictures(1, 30)[0]))
    assert "several" in client.post("/models/colour/predict", mixed, FORM).json()["detail"]


@pytest.mark.filterwarnings(
    "ignore:Exception ignored.*SpooledTemporaryFile"
)  # starlette leaves one that is cut to Python
def test_wrong_forms(client: Client) -> None:
    good = form(encoded(pictures(1)[0]))
    fields = b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n'
    for body, headers in (
        (b"", FORM),
        (good[:-20], FORM),
        (good, {"content-type": "multipart/form-data"}),
        (good, {"content-type": "multipart/form-data; boundary=other"}),
        (fields * 11 + b"--edge--\r\n", FORM),
        (fields + b"--edge--\r\n", FORM),
        (b"--edge\r\n\r\nx\r\n--edge--\r\n", FORM),
        (
            b'--edge\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
            + b"x" * 2_000_000
            + b"\r\n--edge--\r\n",
            FORM,
        ),
    ):
        answer = client.post("/predict", body, headers)
        assert 400 <= answer.status < 500, (body[:60], answer)
        assert answer.headers["content-type"] == "application/problem+json"
