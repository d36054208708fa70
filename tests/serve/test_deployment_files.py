"""The container file, the systemd unit and the Kubernetes objects of the how-to: they parse, and what they name exists."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from service_cases import light

from bll_pyro.cli.options import make_parser
from bll_pyro.serve import ServiceSettings, application

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def options(command: list[str]) -> dict[str, Any]:
    """The options of a command line, by the parser of the command."""
    name, *given = command
    assert Path(name).name == "bll"
    return vars(make_parser().parse_args(given))


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLL_API_KEY", raising=False)


def objects() -> list[dict[str, Any]]:
    return [one for block in blocks("yaml") for one in yaml.safe_load_all(block)]


def test_container_file() -> None:
    (text,) = blocks("dockerfile")
    lines = dict(line.split(" ", 1) for line in text.splitlines())
    assert set(lines) <= {"FROM", "RUN", "COPY", "USER", "EXPOSE", "STOPSIGNAL", "CMD"}
    given = options(json.loads(lines["CMD"]))
    assert given["port"] == int(lines["EXPOSE"]) and given["host"] == "0.0.0.0"
    assert given["models"] == [lines["COPY"].split()[1]]
    (seconds,) = re.findall(r"--stop-timeout (\d+)", PAGE)
    assert int(seconds) > given["grace"]


def test_systemd_unit() -> None:
    (text,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    service = unit["Service"]
    given = options(shlex.split(service["ExecStart"]))
    credential, _ = service["LoadCredential"].split(":")
    assert str(given["api_key_file"]).endswith(f"/{credential}")
    assert "HUP" in service["ExecReload"] and int(service["TimeoutStopSec"]) > given["grace"]
    assert service["KillMode"] == "mixed"  # SIGTERM to the parent alone, which tells its workers


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (text,) = blocks("ini")
    program = Path(sys.executable).parent / "bll"
    (tmp_path / "flowers.service").write_text(text.replace("/opt/bll/bin/bll", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "flowers.service")],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_kubernetes_objects() -> None:
    deployment, balancer, inference = (one for one in objects() if "kind" in one)
    paths = {route.path for route in application({"m": light}, ServiceSettings(environment={})).routes}  # type: ignore[attr-defined]
    pod = deployment["spec"]["template"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert balancer["spec"]["selector"] == pod["metadata"]["labels"]
    assert pod["metadata"]["annotations"]["prometheus.io/path"] in paths
    assert (inference["kind"], inference["apiVersion"]) == ("InferenceService", "serving.kserve.io/v1beta1")
    for spec in (pod["spec"], inference["spec"]["predictor"]):
        (container,) = spec["containers"]
        given = options(container["args"])
        (port,) = container["ports"]
        assert given["port"] == port["containerPort"] and given["host"] == "0.0.0.0"
        for name, probe in container.items():
            if name.endswith("Probe"):
                assert probe["httpGet"]["path"] in paths and probe["httpGet"]["port"] in (
                    port["containerPort"],
                    port.get("name"),
                )
    sleep = int(pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > sleep + options(["bll", "serve", "m"])["grace"]


@pytest.mark.ray
def test_files_of_ray(tmp_path: Path) -> None:
    """Each is read by what reads it: the first by ``bll serve --ray``, the second by Ray Serve."""
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    own, of_ray = (one for one in objects() if "kind" not in one)
    deployed = ServeDeploySchema.model_validate(of_ray)
    (application,) = deployed.applications
    (tmp_path / "flowers.onnx").touch()
    build = import_attr(application.import_path)
    for args in (own, application.args):
        args["models"] = {"flowers": str(tmp_path / "flowers.onnx")}
        front = build(args)
    (held,) = [one for one in front._bound_deployment.init_args if type(one) is type(front)][:1]
    names = {front._bound_deployment.name, held._bound_deployment.name}
    assert names == {deployment.name for deployment in application.deployments}


@pytest.mark.parametrize(
    "line", re.findall(r"^(?:[A-Z_]+=\S+ )?(bll serve .*)$", "\n".join(blocks("console")), re.MULTILINE)
)
def test_command_lines(line: str) -> None:
    assert options(shlex.split(line, comments=True))["models"]
