"""The project keeps its own rules: floors, style, types, pins. The documentation is built in test_docs_pages.py."""

import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def run(tool: str, *arguments: str) -> None:
    """Run a tool of the environment in the root of the repository; what it says is the message of a failure."""
    command = [str(Path(sys.executable).parent / tool), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{tool} ended with exit code {done.returncode}\n{done.stdout}"


def test_floors() -> None:
    run("lint-imports", "--no-logo", "--no-cache")


def test_ruff_check() -> None:
    run("ruff", "check", ".")


def test_ruff_format() -> None:
    run("ruff", "format", "--check", ".")


def test_types() -> None:
    run("mypy")


def test_constraints_pin_every_requirement() -> None:
    """Each requirement, with all extras, has one exact version in constraints.txt, inside the range declared."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    for text in requires("bll-pyro") or []:
        requirement = Requirement(text)
        if requirement.name == "bll-pyro":
            continue
        assert requirement.name in pins, f"{requirement.name} is not pinned; see CONTRIBUTING.md"
        assert requirement.specifier.contains(pins[requirement.name]), text


def test_oldest_python_is_the_same_everywhere() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["project"]["requires-python"] == ">=3.12"
    assert settings["tool"]["ruff"]["target-version"] == "py312"
    assert settings["tool"]["mypy"]["python_version"] == "3.12"
    assert (ROOT / ".python-version").read_text().strip() == "3.12"


@pytest.mark.parametrize("versions", [{}, {"python3": "3.11.9", "python3.13": None}])
def test_make_without_a_suitable_python(tmp_path: Path, versions: dict[str, str | None]) -> None:
    """Without a Python that will do, the set-up names each command, what it was, and what to do."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, version in versions.items():
        script = (
            f'#!/bin/sh\necho "{version}, too old"\n'
            if version
            else "#!/bin/sh\necho nothing behind it >&2\nexit 127\n"
        )
        (commands / name).write_text(script)
        (commands / name).chmod(0o755)
    for name in ("sh", "head"):
        (commands / name).symlink_to(
            Path("/bin") / name if (Path("/bin") / name).exists() else f"/usr/bin/{name}"
        )
    done = subprocess.run(
        ["/bin/sh", str(ROOT / "tools" / "make_venv")],
        cwd=tmp_path,
        env={"PATH": str(commands)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    for name in ("python3", "python3.12", "python3.13", "python3.14", "python"):
        expected = (
            {"python3": "3.11.9, too old", "python3.13": "does not run: nothing behind it"}
            if versions
            else {}
        )
        assert f"  {name}: {expected.get(name, 'not found')}\n" in done.stderr
    assert "Install Python 3.12 or newer" in done.stderr
    assert not (tmp_path / ".venv").exists()
