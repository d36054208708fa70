"""The service over its paths, in the process of the test: answers, keys, limits, reload, numbers, logs."""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_cases import JSON, NPY, WIDTH, Answer, Client, fit, light, npy, rows, softmax_of

from bll_pyro.serve import ServedModel, ServiceSettings, application, of_fit, of_graph

KEY, OTHER = "k" * 20, "second-key-of-the-file"
OPEN = ServiceSettings(environment={})


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two models: a fit, and one that needs no library."""
    with Client(application({"digits": lambda: of_fit(fit()), "light": light}, OPEN)) as made:
        yield made


def problem(answer: Answer, status: int, text: str = "") -> dict[str, Any]:
    """The answer as a problem of RFC 9457."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["status"] == status and found["title"] and found["type"] == "about:blank"
    assert found["request_id"] == answer.headers["x-request-id"]
    assert text in found["detail"]
    return found


# ---- answers


def test_predictions_are_those_of_the_fit(client: Client) -> None:
    given = rows(300)
    expected = fit().predict(given)
    for answer in (
        client.post("/predict", {"rows": given.tolist()}),
        client.post("/models/digits/predict", npy(given), NPY),
        client.post("/predict", npy(np.asfortranarray(given.astype(">f8"))), NPY),
    ):
        assert answer.status == 200, answer.body
        found = answer.json()
        assert found["model"] == "digits" and found["num_rows"] == 300
        assert found["label"] == expected.label.tolist()
        for name in ("probs", "total", "aleatoric", "epistemic"):
            np.testing.assert_allclose(found[name], getattr(expected, name), atol=2e-6)
        for name in ("score", "p_value", "is_ood"):
            np.testing.assert_allclose(found[name], getattr(expected.ood, name), rtol=1e-5)


def test_intervals_are_those_of_draws(client: Client) -> None:
    given = rows(5)
    found = client.post("/predict?interval=0.8", {"rows": given.tolist()}).json()
    draws = fit().draw(given, 200).numpy()
    for name, q in (("lower", 0.1), ("upper", 0.9)):
        np.testing.assert_allclose(found[name], np.quantile(draws, q, axis=0), atol=1e-5)
    for wrong in ("0", "1", "nan", "x", "-1", "1e400"):
        problem(client.post(f"/predict?interval={wrong}", {"rows": given.tolist()}), 422, "interval")
    problem(client.post("/models/light/predict?interval=0.9", {"rows": given.tolist()}), 422, "no draws")


def test_several_models_by_name(client: Client) -> None:
    given = rows(2)
    found = client.post("/models/light/predict", {"rows": given.tolist()}).json()
    np.testing.assert_allclose(found["probs"], softmax_of(given)["probs"], rtol=1e-6)
    assert found["label"] == [["ant", "bee", "cat"][k] for k in np.argmax(given[:, :3], 1)]
    assert client.get("/models").json() == {"models": ["digits", "light"]}
    assert client.get("/model").json()["name"] == "digits"
    told = client.get("/models/light").json()
    assert told["classes"] == ["ant", "bee", "cat"] and told["input_shape"] == [WIDTH]
    for path in (
        "/models/none/predict",
        "/models/../predict",
        "/models/../../etc/passwd",
        "/models/%2e%2e/predict",
    ):
        problem(client.post(path, {"rows": [[0] * WIDTH]}), 404)
    problem(client.get("/predict"), 405)
    problem(client.get("/nowhere"), 404, "/openapi.json")


@pytest.mark.parametrize("kind", ["targets", "labels", "multilabel"])
def test_other_likelihoods(kind: str) -> None:
    """Numbers have quantiles, labels of 0 and 1 have one probability each."""
    import torch

    import bll_pyro as bll

    x = torch.from_numpy(rows(60))
    y = x[:, 0] + 0.1 * torch.from_numpy(rows(60, 1))[:, 0]
    likelihood, targets = {
        "targets": (bll.likelihoods.Gaussian(), torch.stack([y, -y], 1)),
        "labels": (bll.likelihoods.Bernoulli(), (y > 0).long()),
        "multilabel": (bll.likelihoods.Bernoulli(), torch.stack([y > 0, y > 1], 1).long()),
    }[kind]
    inference = bll.Exact() if kind == "targets" else bll.Laplace()
    made = bll.fit(bll.LastLayer(likelihood), (x, targets), inference=inference)
    expected = made.predict(x[:3])
    with Client(application({"m": lambda: of_fit(made)}, OPEN)) as client:
        found = client.post("/predict", {"rows": x[:3].tolist()}).json()
        np.testing.assert_allclose(found["epistemic"], expected.epistemic, rtol=1e-4, atol=1e-6)
        if kind in ("labels", "multilabel"):
            assert found["label"] == expected.label.tolist()
            intervals = client.post("/predict?interval=0.9", {"rows": x[:3].tolist()}).json()
            assert (np.asarray(intervals["lower"]) <= intervals["upper"]).all()
            assert np.shape(intervals["lower"]) == np.shape(found["probs"])
        else:
            np.testing.assert_allclose(found["mean"], expected.mean, rtol=1e-4, atol=1e-6)
            ends = torch.stack([expected.quantile(q) for q in (0.05, 0.5, 0.95)], -1)
            np.testing.assert_allclose(found["quantiles"], ends, rtol=1e-4, atol=1e-5)


# ---- keys


def locked(tmp_path: Path) -> ServiceSettings:
    (tmp_path / "keys").write_text(f"# of the laboratory\n{OTHER}\n")
    return replace(OPEN, environment={"BLL_API_KEY": KEY}, key_file=tmp_path / "keys")


def test_keys(tmp_path: Path) -> None:
    body = {"rows": [[0.0] * WIDTH]}
    with Client(application({"m": light}, locked(tmp_path))) as client:
        for headers in (
            {"authorization": f"Bearer {KEY}"},
            {"Authorization": f"bearer {OTHER}"},
            {"X-API-Key": KEY},
        ):
            assert client.post("/predict", body, {**JSON, **headers}).status == 200
        for headers in (
            {},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": f"Bearer {KEY[:-1]}"},
            {"authorization": f"Basic {KEY}"},
            {"authorization": "Bearer "},
            {"x-api-key": "\xe9" * 20},
        ):
            for path in ("/predict", "/models/m/predict"):
                answer = client.post(path, body, {**JSON, **headers})
                problem(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
            for path in ("/metrics", "/model", "/models", "/openapi.json", "/nowhere"):
                problem(client.get(path, headers), 401)
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status == 200


def test_keys_are_compared_whole_and_all_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a function whose time does not depend on the contents, on digests of one length, for every key."""
    import hmac

    from bll_pyro.serve import keys

    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac_compare(a, b)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    known = keys.Keys.read(locked(tmp_path))
    for given in (KEY, OTHER, "wrong", "w" * 1000, ""):
        compared.clear()
        assert known.accept({b"x-api-key": given.encode()}) == (given in (KEY, OTHER))
        assert compared == [(32, 32), (32, 32)]


def test_a_service_that_was_to_be_locked_is_not_left_open(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("# none yet\n")
    for settings in (
        replace(OPEN, key_file=tmp_path / "empty"),
        replace(OPEN, environment={"BLL_API_KEY": ""}),
        replace(OPEN, environment={"BLL_API_KEY": "short"}),
    ):
        with pytest.raises(ValueError, match="expected"):
            application({"m": light}, settings)
    with pytest.raises(OSError, match="none"):
        application({"m": light}, replace(OPEN, key_file=tmp_path / "none"))


# ---- limits


def test_limits_of_a_request() -> None:
    settings = replace(OPEN, request_rows=10, request_bytes=2000, queued_rows=100, body_time_limit=0.2)
    with Client(application({"m": light}, settings)) as client:
        assert client.post("/predict", npy(rows(10)), NPY).status == 200
        problem(client.post("/predict", npy(rows(11)), NPY), 413, "at most 10 rows")
        problem(client.post("/predict", {"rows": rows(11).tolist()}), 413, "at most 10 rows")
        answer = client.post("/predict", b"", {**JSON, "content-length": "2001"})
        problem(answer, 413, "2,000 bytes")
        assert answer.headers["connection"] == "close"
        problem(client.post("/predict", (b"x" * 1000 for _ in range(1000)), JSON), 413, "2,000 bytes")
        slow = client.together(client.send("POST", "/predict", JSON, [b"{"] * 20, pause=0.05))
        problem(slow[0], 408, "0.2 s")


def test_time_limit_and_concurrency() -> None:
    settings = replace(OPEN, time_limit=0.15, concurrency=3)
    body = [json.dumps({"rows": [[0.0] * WIDTH]}).encode()]
    with Client(application({"m": lambda: light(0.03), "slow": lambda: light(0.4)}, settings)) as client:
        problem(client.post("/models/slow/predict", body), 504, "0.15 s")
        calls = [client.send("POST", "/predict", JSON, list(body)) for _ in range(8)]
        found = client.together(*calls, client.send("GET", "/healthz", {}, [b""]))
        assert sorted(answer.status for answer in found) == [200] * 4 + [503] * 5
        refused = [answer for answer in found if answer.status == 503]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        problem(refused[0], 503, "at most 3 requests")
        assert client.post("/predict", body).status == 200


def test_a_full_queue_is_told() -> None:
    settings = replace(OPEN, queued_rows=40, request_rows=40, batch_rows=8)
    body = [npy(rows(30))]
    with Client(application({"m": lambda: light(0.01)}, settings)) as client:
        found = client.together(*(client.send("POST", "/predict", NPY, list(body)) for _ in range(3)))
        assert [answer.status for answer in found] == [200, 503, 503]
        problem(found[1], 503, "40 rows")


def test_an_error_of_the_model_is_answered_and_logged_without_its_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def breaks(given: np.ndarray) -> dict[str, np.ndarray]:
        if given[0, 0] > 0:
            raise RuntimeError(f"secret {given[0, 0]}")
        return softmax_of(given)

    with Client(application({"m": lambda: ServedModel(breaks, (WIDTH,))}, OPEN)) as client:
        with caplog.at_level(logging.INFO, "bll_pyro.serve"):
            answer = client.post("/predict", {"rows": [[77.25] * WIDTH]})
        problem(answer, 500)
        assert b"77.25" not in answer.body and b"secret" not in answer.body
        told = [vars(record).get("fields", {}) for record in caplog.records]
        assert "77.25" not in str(told) and "secret" not in str(told)
        assert any(fields.get("error") == "RuntimeError" and fields["trace"] for fields in told)
        assert client.post("/predict", {"rows": [[-1.0] * WIDTH]}).status == 200


def test_predictions_that_are_not_finite_are_refused() -> None:
    def overflows(given: np.ndarray) -> dict[str, np.ndarray]:
        found = softmax_of(given)
        found["total"][given[:, 0] > 1e20] = np.nan
        return found

    with Client(application({"m": lambda: ServedModel(overflows, (WIDTH,))}, OPEN)) as client:
        given = rows(3)
        given[1, 0] = 1e30
        assert problem(client.post("/predict", npy(given), NPY), 422, "row 1")["row"] == 1


# ---- reload


def test_reload_takes_over_between_requests_and_keeps_the_old_model_if_the_new_one_is_broken() -> None:
    number = 0

    def load() -> ServedModel:
        nonlocal number
        number += 1
        if number == 3:
            raise ValueError("damaged")
        own = number

        def predict(given: np.ndarray) -> dict[str, np.ndarray]:
            return {**softmax_of(given), "score": np.full(len(given), float(own))}

        return ServedModel(predict, (WIDTH if own < 4 else WIDTH + 1,))

    with Client(application({"m": load}, OPEN)) as client:
        service = client.app.state.service

        def scores(width: int = WIDTH) -> set[float]:
            body = [json.dumps({"rows": [[0.0] * width]}).encode()]
            calls = [client.send("POST", "/predict", JSON, list(body)) for _ in range(20)]
            found = client.together(*calls)
            assert {answer.status for answer in found} == {200}
            return {answer.json()["score"][0] for answer in found}

        assert scores() == {1.0}
        assert client.loop.run_until_complete(service.reload()) and scores() == {2.0}
        assert not client.loop.run_until_complete(service.reload()) and scores() == {2.0}
        # a request that has begun ends with the model that it began with, also if the next one takes other rows
        served = service.find("m")
        late = service.predict(served, rows(2))
        assert client.loop.run_until_complete(service.reload())
        np.testing.assert_array_equal(client.loop.run_until_complete(late)["score"], 2.0)
        assert scores(WIDTH + 1) == {4.0}
        text = client.get("/metrics").body.decode()
        assert 'bll_reloads_total{model="m",outcome="done"} 2.0' in text
        assert 'bll_reloads_total{model="m",outcome="failed"} 1.0' in text


def test_a_model_that_cannot_predict_does_not_start() -> None:
    def broken(given: np.ndarray) -> dict[str, np.ndarray]:
        raise RuntimeError("no such operator")

    with pytest.raises(RuntimeError, match="no such operator"):
        Client(application({"m": lambda: ServedModel(broken, (WIDTH,))}, OPEN)).__enter__()
    for names in ({}, {"../x": light}, {"": light}):
        with pytest.raises(ValueError, match="expected models by names"):
            application(names, OPEN)


# ---- numbers and logs


def test_numbers_for_prometheus() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    with Client(application({"m": light}, OPEN)) as client:
        given = np.concatenate([rows(6), np.full((2, WIDTH), 3, np.float32)])
        client.post("/predict", npy(given), NPY)
        client.post("/models/m/predict", b"{")
        client.post("/models/other/predict", b"{")
        families = text_string_to_metric_families(client.get("/metrics").body.decode())
        found = {(one.name, *sorted(one.labels.values())): one.value for f in families for one in f.samples}
    outputs = softmax_of(given)
    assert found["bll_rows_total", "m"] == 8
    assert found["bll_ood_alarms_total", "m"] == outputs["is_ood"].sum() >= 2
    np.testing.assert_allclose(found["bll_epistemic_total", "m"], outputs["epistemic"].sum(), rtol=1e-6)
    assert found["bll_requests_total", "/predict", "200"] == 1
    assert found["bll_requests_total", "/models/{name}/predict", "400"] == 1
    assert found["bll_requests_total", "/models/{name}/predict", "404"] == 1
    assert found["bll_queued_rows", "m"] == 0 and found["bll_requests_running",] == 1
    assert found["bll_batch_rows_sum", "m"] == 8


def test_drift_is_watched_and_its_evidence_survives_a_reload(caplog: pytest.LogCaptureFixture) -> None:
    """Rows as in the calibration raise no alarm; strange ones do, and the alarm stays."""
    many = rows(4000, 5)
    is_ood = fit().predict(many).ood.p_value.numpy() < 0.3

    def number(client: Client, name: str) -> float:
        (line,) = re.findall(
            rf'^bll_drift_{name}{{model="m"}} (.*)$', client.get("/metrics").body.decode(), re.MULTILINE
        )
        return float(line)

    with Client(application({"m": lambda: of_fit(fit())}, OPEN)) as client:
        assert number(client, "alarm") == 0
        assert client.post("/predict", npy(many[:1000]), NPY).status == 200
        assert number(client, "alarm") == 0 and number(client, "log_value") < 5
        with caplog.at_level(logging.WARNING, "bll_pyro.serve"):
            client.post("/predict", npy(many[is_ood]), NPY)
        value = number(client, "log_value")
        assert number(client, "alarm") == 1 and value > 5
        assert [record.message for record in caplog.records] == ["drift"]
        client.loop.run_until_complete(client.app.state.service.reload())
        assert number(client, "alarm") == 1 and number(client, "log_value") == value


def test_drift_is_not_watched_at_alpha_0() -> None:
    with Client(application({"m": lambda: of_fit(fit())}, replace(OPEN, alpha=0.0))) as client:
        assert client.post("/predict", npy(rows(50)), NPY).status == 200
        assert b"bll_drift_alarm{" not in client.get("/metrics").body


def test_a_graph_is_a_model() -> None:
    """What :mod:`bll_pyro.runtime` loads; its own tests compare it with the fit."""
    from bll_pyro.runtime import Predictor

    told = {
        "classes": ["ant", "bee", "cat"], "inputs": {"shape": [WIDTH], "dtype": "float32", "names": list("abcd")},
        "outputs": dict.fromkeys(softmax_of(rows(1)), ""), "likelihood": "Categorical", "fingerprint": "f", "alpha": 0.1,
    }  # fmt: skip
    with Client(application({"m": lambda: of_graph(Predictor(softmax_of, told))}, OPEN)) as client:
        found = client.post("/predict", {"rows": [dict.fromkeys("dcba", 0.5)]}).json()
        assert found["probs"] == softmax_of(np.full((1, WIDTH), 0.5, np.float32))["probs"].tolist()
        described = client.get("/model").json()
        assert described["columns"] == list("abcd") and described["has_detector"]
        assert described["metadata"]["fingerprint"] == "f" and not described["has_intervals"]


def test_logs_are_json_with_ids_and_without_inputs(capsys: pytest.CaptureFixture) -> None:
    from bll_pyro.serve.logs import JsonLines

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("bll_pyro.serve")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with Client(application({"m": light}, replace(OPEN, environment={"BLL_API_KEY": KEY}))) as client:
            own = {**JSON, "x-api-key": KEY, "x-request-id": "mine-1"}
            answer = client.post("/predict?interval=%0a", {"rows": [[0.12345, 2, 3, 4]]}, own)
            client.post("/models/secret%0apath/predict", {"rows": [[0.12345, 2, 3, 4]]}, own)
            client.post("/predict", {"rows": [[0.12345, 2, 3, 4]]}, own)
            wrong = client.post("/predict", {"rows": [["0.12345"]]}, {**own, "x-request-id": 'x"\n'})
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    said = capsys.readouterr().err
    lines = [json.loads(line) for line in said.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["status"] for line in requests] == [422, 404, 200, 422]
    assert answer.headers["x-request-id"] == "mine-1" == requests[0]["request_id"]
    assert re.fullmatch("[0-9a-f]{32}", wrong.headers["x-request-id"])
    assert requests[2]["num_rows"] == 1 and requests[2]["model"] == "m" and requests[2]["seconds"] > 0
    for secret in ("12345", KEY, "secret", "interval"):
        assert secret not in said


def test_other_hosts_are_told_nothing(client: Client) -> None:
    """No headers for pages of other origins."""
    answer = client.post("/predict", {"rows": [[0.0] * WIDTH]}, {**JSON, "origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert answer.headers["x-content-type-options"] == "nosniff"
    (preflight,) = client.together(
        client.send("OPTIONS", "/predict", {"origin": "https://evil.example"}, [b""])
    )
    problem(preflight, 405)
    assert not [name for name in preflight.headers if name.startswith("access-control")]
