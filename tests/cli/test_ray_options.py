"""What ``bll serve --ray`` is told, without a Ray."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from bll_pyro.cli import main
from bll_pyro.cli.ray_options import build, defaults, given_on_ray
from bll_pyro.cli.usage import UsageError
from bll_pyro.serve import Binding, ServiceSettings

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLL_API_KEY", raising=False)
    for name in (
        "RAY_USAGE_STATS_ENABLED",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN",
    ):
        monkeypatch.setenv(name, "0")  # undone after the test, whatever the command sets
    for name in ("RAY_DEDUP_LOGS", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def deployments(application: Any) -> dict[str, Any]:
    """The deployments of an application by name."""
    found, waiting = {}, [application]
    while waiting:
        deployment = waiting.pop()._bound_deployment
        found[deployment.name] = deployment
        waiting += [one for one in deployment.init_args if type(one) is type(application)]
    return found


def test_options_and_a_file_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    (tmp_path / "a.yaml").write_text(
        f"models: {{m: {tmp_path}/m.onnx}}\nmax_rows: 7\ndrift_alpha: 0\n"
        "replicas: {autoscaling_config: {min_replicas: 2, max_replicas: 3}}\nfronts: 2\n"
    )
    binding = Binding(grace=3.0)
    limits = defaults() | {"max_rows": 7, "drift_alpha": 0.0}
    by_options, _ = given_on_ray([f"m={tmp_path}/m.onnx"], limits, 2, binding)
    by_file, is_locked = given_on_ray([str(tmp_path / "a.yaml")], defaults(), None, binding)
    assert not is_locked
    one, two = deployments(by_options), deployments(by_file)
    assert set(one) == set(two) == {"Front", "Models", "Numbers"}
    assert (
        one["Models"].num_replicas == 2 and one["Front"].num_replicas == 1 and two["Front"].num_replicas == 2
    )
    assert two["Models"]._deployment_config.autoscaling_config.max_replicas == 3
    for found in (one, two):
        loaders, settings, *_ = found["Models"].init_args
        assert list(loaders) == ["m"] and loaders["m"].path == tmp_path / "m.onnx"
        assert settings.request_rows == 7 and settings.alpha == 0
        assert found["Models"]._deployment_config.graceful_shutdown_timeout_s == 3


def test_neither_keys_nor_the_environment_go_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.cloudpickle

    monkeypatch.setenv("BLL_API_KEY", "a-key-of-the-tests")
    monkeypatch.setenv("ANOTHER_SECRET", "that-nobody-is-to-read")
    (tmp_path / "keys").write_text("another-key-of-the-tests\n")
    application = build({"models": {"m": str(tmp_path)}, "api_key_file": str(tmp_path / "keys")})
    for deployment in deployments(application).values():
        plain = [one for one in deployment.init_args if type(one) is not type(application)]
        sent = ray.cloudpickle.dumps(plain)
        assert not any(secret in sent for secret in (b"key-of-the-tests", b"nobody-is-to-read"))
    keys = deployments(application)["Front"].init_args[3]
    for key in (b"a-key-of-the-tests", b"another-key-of-the-tests"):
        assert keys.accept({b"x-api-key": key})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "got no models"),
        ({"models": {"m": "nowhere"}}, "does not exist"),
        ({"models": {"m": "."}, "max_row": 3}, "did you mean 'max_rows'"),
        ({"models": {"m": "."}, "workers": 3}, "got 'workers'"),
        ({"models": {"m": "."}, "max_rows": "many"}, "request_rows"),
        ({"models": {"m": "."}, "batch_delay": "long"}, "args: "),
        ({"models": {"m": "."}, "replicas": "two"}, "options of Ray Serve as replicas"),
        ({"models": {"m": "."}, "replicas": {"num_replica": 2}}, "num_replica"),
        ({"models": {"m": "."}, "replicas": 0}, "num_replicas"),
        ({"models": "m.onnx"}, "NAME: PATH"),
    ],
)
def test_a_file_that_says_what_cannot_be(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(args)


def test_wrong_use_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    monkeypatch.setattr("bll_pyro.serve.ray_running.serve_on_ray", lambda *_: pytest.fail("it was started"))
    (tmp_path / "a.yaml").write_text(f"models: {{m: {tmp_path}}}\n")
    for options, message in (
        ([str(tmp_path), "--replicas", "2"], "expected --ray with --replicas"),
        ([str(tmp_path), "--ray", "--workers", "2"], "expected --replicas with --ray"),
        ([str(tmp_path), "--ray", "--port", "0"], "expected a port"),
        ([str(tmp_path / "a.yaml"), "--ray", "--max-rows", "5"], "got --max-rows"),
        ([str(tmp_path / "a.yaml"), "--ray", "--replicas", "5"], "got --replicas"),
        (["nowhere.yaml", "--ray"], "can be read"),
        ([str(tmp_path), "--ray", "--replicas", "0"], "num_replicas"),
    ):
        assert main(["serve", *options]) == 2, options
        said = capsys.readouterr()
        assert message in said.err and "Traceback" not in said.err


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bll_pyro.cli.serving.find_spec", lambda name: None if name == "ray" else object())
    assert main(["serve", str(tmp_path), "--ray"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "pip install 'bll-pyro[ray]'" in line


def test_a_file_knows_the_limits_of_the_command_line() -> None:
    import inspect

    from bll_pyro.cli.commands.serve import serve_command

    given = inspect.signature(serve_command).parameters
    assert {name: given[name].default for name in defaults()} == defaults()
    assert len(defaults()) == len(fields(ServiceSettings)) - 1
