"""Run the fast tests with the lowest or the highest versions that pyproject.toml allows.

``python tools/check_versions.py lowest FOLDER [--python 3.12] [-- ARGUMENTS OF PYTEST]`` makes a new environment in FOLDER, which
must not exist, with all extras, and leaves it there. ``lowest`` takes the lower bounds of the package and its extras, all together,
the pins of what only tests need, and what all of these need in turn as new as it comes; bounds that do not go together are an error
of uv, which says which. ``highest`` takes the newest of all. Only wheels are taken.

Checks of the source (style, types, unused names) depend on the tool's own version, and run with the pins only: ``make lint``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FAST = "not slow and not nuts and not sbc and not browser and not ray"
SOURCE_ONLY = ("tests/test_project.py", "tests/test_house.py")
EXTRAS = ("dev", "docs")  # dev has all extras but docs and minilm


def uv(*arguments: str | Path) -> None:
    """Run uv; what it says goes to the terminal."""
    subprocess.run([sys.executable, "-m", "uv", *map(str, arguments)], cwd=ROOT, check=True)


def bounds() -> str:
    """The only version that is taken of each requirement, one a line: the lower bound, or the pin of what only tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    of_users = [
        *project["dependencies"],
        *(text for name in extras if name not in EXTRAS for text in extras[name]),
    ]
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pin = dict(line.split("==") for line in pins)
    lines = set()
    for text in of_users:
        requirement = Requirement(text)
        if requirement.name != project["name"]:
            (bound,) = (each.version for each in requirement.specifier if each.operator == ">=")
            pin.pop(requirement.name, None)
            lines.add(
                f"{requirement.name}=={bound}" + (f"; {requirement.marker}" if requirement.marker else "")
            )
    tools = {Requirement(text).name for extra in EXTRAS for text in extras[extra]}
    lines |= {f"{name}=={pin[name]}" for name in tools & pin.keys()}
    return "\n".join(sorted(lines)) + "\n"


def main() -> None:
    """Resolve, install, test; the exit code is that of pytest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("end", choices=["lowest", "highest"])
    parser.add_argument("folder", type=Path, help="of the new environment")
    parser.add_argument("--python", default=".".join(map(str, sys.version_info[:2])))
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    ours, for_pytest = sys.argv[1:end], sys.argv[end + 1 :]
    given = parser.parse_args(ours)
    if given.folder.exists():
        parser.error(f"{given.folder} is there already: name a new folder, or delete it")
    given.folder.mkdir(parents=True)
    versions, place = given.folder / "versions.txt", given.folder / "venv"
    options = [part for extra in EXTRAS for part in ("--extra", extra)]
    options += ["--quiet", "--no-annotate", "--no-header", "--only-binary", ":all:"]
    options += ["--python-version", given.python]
    if given.end == "lowest":  # together: a bound that does not go with the others was tested by nobody
        exact = given.folder / "bounds.txt"
        exact.write_text(bounds())
        options += ["--resolution", "lowest-direct", "--constraints", str(exact)]
        # old libraries call what newer ones below them deprecate, which is not ours to mend
        for_pytest = [
            "-W",
            "ignore::DeprecationWarning",
            "-W",
            "ignore::PendingDeprecationWarning",
            *for_pytest,
        ]
    uv("pip", "compile", *options, "-o", versions, "pyproject.toml")
    uv("venv", "--quiet", "--python", given.python, place)
    python = place / "bin" / "python"
    uv("pip", "sync", "--quiet", "--python", python, versions)
    uv("pip", "install", "--quiet", "--python", python, "--no-deps", "--editable", ".")
    skipped = [part for file in SOURCE_ONLY for part in ("--ignore", file)]
    settings = {"MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", FAST, *skipped, *for_pytest]
    sys.exit(subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=False).returncode)


if __name__ == "__main__":
    main()
