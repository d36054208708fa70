"""``bll``: exit codes, messages, help, and what the help imports. Commands have tests of their own."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bll_pyro as bll
from bll_pyro import cli
from bll_pyro.cli import commands
from bll_pyro.cli.commands import COMMANDS, command
from bll_pyro.cli.console import Console
from bll_pyro.cli.usage import UsageError, nearest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND; see bll --help"),
        (["dmeo"], "expected a command, got 'dmeo'; did you mean 'demo'?"),
        (["xyz"], "expected a command, got 'xyz'; known are "),
        (["demo", "--seed", "many"], "bll demo: error: argument --seed: invalid int value: 'many'"),
        (["demo", "--quik"], "unrecognised argument --quik; did you mean '--quick'?"),
        (["demo", "--speed.x", "3"], "unrecognised argument --speed.x"),
        (["demo", "more"], "unrecognised argument more; it is one too many"),
    ],
)  # fmt: skip
def test_wrong_command_lines(capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "bll demo: interrupted\n"),
        (UsageError("not so"), 2, "bll demo: error: not so\n"),
        (ValueError("broken"), 1, "bll demo: error: broken\n"),
        (OSError(28, "No space left on device", "a"), 1, "bll demo: error: [Errno 28] No space left on device: 'a'\n"),
        (ZeroDivisionError(), 1, "bll demo: error: ZeroDivisionError\n"),
        (BrokenPipeError(), 0, ""),
    ],
)  # fmt: skip
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def ends() -> None:
        """End."""
        raise error

    monkeypatch.setattr(commands.demo, "demo_command", ends)
    output = os.dup(1)  # after a broken pipe standard output leads nowhere
    try:
        assert cli.main(["demo"]) == code
    finally:
        os.dup2(output, 1)
        os.close(output)
    assert capfd.readouterr().err == message
    if code in (1, 2):
        with pytest.raises(type(error)):
            cli.main(["demo", "--debug"])


def test_warnings_are_messages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def warns() -> None:
        """Warn."""
        import warnings

        warnings.warn("look here", bll.FitWarning, stacklevel=1)

    monkeypatch.setattr(commands.demo, "demo_command", warns)
    assert cli.main(["demo"]) == 0
    assert capsys.readouterr().err == "bll demo: warning: look here\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "red"), [("", True), ("1", False)])
def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch, no_color: str, red: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", no_color)
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        monkeypatch.setattr(sys, "stderr", stream)
        Console("bll x").error("no")
        Console("bll x").status("at work")
        Console("bll x", quiet=True).status("not said")
    assert pipe.getvalue() == "bll x: error: no\n"
    label = "\033[31merror: \033[0m" if red else "error: "
    assert terminal.getvalue() == f"bll x: {label}no\nat work\n"


def test_results_are_text_or_json(capsys: pytest.CaptureFixture) -> None:
    Console("bll x").result("two rows", {"rows": 2})
    assert capsys.readouterr().out == "two rows\n"
    Console("bll x", json=True).result("two rows", {"rows": 2})
    assert json.loads(capsys.readouterr().out) == {"rows": 2}


def test_nearest() -> None:
    assert nearest("horsesho", ["Horseshoe", "Normal"]) == "did you mean 'Horseshoe'?"
    assert nearest("zzz", ["b", "a"]) == "known are a, b"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert "examples:\n  bll " in text
    for option in ("debug", "json", "quiet", *command(name).options):
        if option in ("overrides", "console"):
            continue
        # Python 3.13 names the value once for both forms
        shown = rf"(^  (-o( VALUE)?, )?--{option.replace('_', '-')}\b|^  {option.upper()}\b).*?[A-Z]\w+ "
        assert re.search(shown, text, re.MULTILINE | re.DOTALL), option


def test_help_lists_every_command(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^    (\w+) ", text, re.MULTILINE) == list(COMMANDS)


def test_every_file_of_a_command_is_listed() -> None:
    folder = Path(commands.__file__).parent
    assert sorted(COMMANDS) == sorted(path.stem for path in folder.glob("[!_]*.py"))


def test_help_needs_no_heavy_library() -> None:
    """All helps in one process: what they import is what makes them slow."""
    script = (
        "import sys\n"
        "from bll_pyro.cli import main\n"
        "from bll_pyro.cli.commands import COMMANDS\n"
        "for arguments in (['--version'], ['--help'], *([name, '--help'] for name in COMMANDS)):\n"
        "    assert main(arguments) == 0\n"
        "heavy = {'torch', 'pyro', 'timm', 'matplotlib', 'arviz', 'sklearn', 'pandas', 'numpy', 'yaml', 'jinja2'}\n"
        "print(len(sys.modules), heavy & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{bll.__version__}\n")
    number, heavy = re.fullmatch(r"(\d+) (.*)", done.stdout.splitlines()[-1]).groups()
    assert heavy == "set()" and int(number) < 250
