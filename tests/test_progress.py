"""The progress bar: when and where it is shown, what it says, and that nothing of it stays."""

import io
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

import bll_pyro as bll
from bll_pyro import progress
from bll_pyro.features.extraction import extract
from bll_pyro.observation import stage
from bll_pyro.progress import DISPLAY, Line, clock, is_drawn, is_wanted

SHORT = 0.02  # seconds in place of two


class Terminal(io.StringIO):
    """What is written to a terminal, and says that it is one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def wait_for(self, text: str) -> None:
        """Wait until some text has been written."""
        wait(lambda: text in self.getvalue())


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def at_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes standard error a terminal; called in the test, since pytest sets standard error between fixture and test."""

    def begin() -> Terminal:
        made = Terminal()
        monkeypatch.setattr(sys, "stderr", made)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr(progress, "DELAY", SHORT)
        return made

    return begin


@pytest.fixture(autouse=True)
def gone() -> Iterator[None]:
    """After each test the display is gone, and standard output and error are what they were."""
    yield
    assert (DISPLAY._live, DISPLAY._open, DISPLAY._shown) == (None, [], [])
    assert "FileProxy" not in (type(sys.stdout).__name__, type(sys.stderr).__name__)


def test_shows_what_takes_long(at_terminal: Callable[[], Terminal]) -> None:
    terminal = at_terminal()
    with stage("SVI", 1500, num_rows=10) as steps:
        steps.advance(elbo=torch.tensor(-25.0), learning_rate=0.02)
        time.sleep(0.11)  # the numbers are read again ten times a second
        steps.advance(299, elbo=torch.tensor(-20.0), nll=0.25)
        terminal.wait_for("NLL 0.25")
        shown = terminal.getvalue()
    for text in ("SVI", "300/1,500", "ELBO a row -2", "learning rate 0.02", "left"):
        assert text in shown
    assert terminal.getvalue().endswith("\r\x1b[2K\x1b[?25h\r")  # the line is gone, and the cursor is back


def test_shows_nothing_of_what_is_over_sooner(
    at_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = at_terminal()
    monkeypatch.setattr(progress, "DELAY", 60.0)
    extract(None, torch.zeros(3, 2))
    assert terminal.getvalue() == ""
    wait(lambda: not any(isinstance(each, threading.Timer) for each in threading.enumerate()))


def test_shows_one_step_that_takes_long(at_terminal: Callable[[], Terminal]) -> None:
    """No step has been counted: the call itself is shown, and what it is at."""
    terminal = at_terminal()
    with stage("Laplace"):
        terminal.wait_for("Laplace")


def test_stages_inside_of_stages_are_one_display(at_terminal: Callable[[], Terminal]) -> None:
    terminal = at_terminal()
    with stage("choose", 3) as done:
        done.advance()
        with stage("Gaussian"), stage("SVI", 10) as steps:
            steps.advance(5)
            terminal.wait_for("5/10")
            lines = re.split(r"[\r\n]+", terminal.getvalue())
            places = [
                next(i for i, line in enumerate(lines) if name in line)
                for name in ("choose", "Gaussian", "SVI")
            ]
            assert places == sorted(places)
            assert any("    SVI" in line for line in lines)


def test_calls_of_several_threads_are_one_display(at_terminal: Callable[[], Terminal]) -> None:
    terminal = at_terminal()
    go_on = threading.Event()

    def work(name: str) -> None:
        with stage(name, 10) as steps:
            steps.advance()
            assert go_on.wait(60)

    threads = [threading.Thread(target=work, args=(f"call {index}",)) for index in range(3)]
    for thread in threads:
        thread.start()
    wait(lambda: len(DISPLAY._shown) == 3)
    terminal.wait_for("call 2")
    go_on.set()
    for thread in threads:
        thread.join()
    assert terminal.getvalue().count("\x1b[?25l") == 1  # the cursor was hidden once: there was one display


def test_an_error_ends_the_display(at_terminal: Callable[[], Terminal]) -> None:
    terminal = at_terminal()

    def interrupted() -> None:
        with stage("SVI", 10):
            terminal.wait_for("SVI")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in terminal.getvalue()


def test_what_is_printed_meanwhile_stays_above(at_terminal: Callable[[], Terminal]) -> None:
    terminal = at_terminal()
    with stage("SVI", 10):
        terminal.wait_for("SVI")
        print("a line of the user's", file=sys.stderr)
    assert "a line of the user's\n" in terminal.getvalue()


@pytest.mark.parametrize("is_quiet", [True, False])
def test_quiet_if_asked(at_terminal: Callable[[], Terminal], is_quiet: bool) -> None:
    terminal = at_terminal()
    with bll.observe(progress=not is_quiet), stage("SVI", 10):
        if is_quiet:
            time.sleep(5 * SHORT)
        else:
            terminal.wait_for("SVI")
    assert (terminal.getvalue() == "") == is_quiet


def test_quiet_where_there_is_no_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY", SHORT)
    with stage("SVI", 10) as steps:
        assert not steps.observed
        time.sleep(5 * SHORT)
    assert capfd.readouterr() == ("", "")


def test_prints_lines_where_there_is_no_terminal_if_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "DELAY", SHORT)
    said: list[str] = []

    def has_said() -> bool:
        said.append(capsys.readouterr().err)
        return bool(said[-1])

    with bll.observe(progress=True), stage("features", 200, rows_per_step=1) as rows:
        rows.advance(50)
        wait(has_said)
    assert re.fullmatch(r"features: 50/200, [\d,.e+]+ rows/s, 0:00 left\n", said[-1])


@pytest.mark.parametrize("is_coloured", [True, False])
def test_on_a_real_terminal(monkeypatch: pytest.MonkeyPatch, is_coloured: bool) -> None:
    """A pseudo-terminal, with colours and with NO_COLOR."""
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, os.fdopen(theirs, "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setattr(progress, "DELAY", SHORT)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("NO_COLOR", "" if is_coloured else "1")
        written = b""
        with stage("SVI", 10) as steps:
            steps.advance(5)
            while b"5/10" not in written:
                written += screen.read(4096)
        monkeypatch.undo()
    assert bool(re.search(rb"\x1b\[(3|9)\d", written)) == is_coloured  # a colour of the text


def test_not_on_a_terminal_without_a_cursor(
    at_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_terminal()
    assert is_drawn()
    monkeypatch.setenv("TERM", "dumb")
    assert not is_drawn() and not is_wanted(None) and is_wanted(True)


def test_not_in_processes_of_others(
    at_terminal: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_terminal()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: multiprocessing.current_process())
    assert not is_wanted(None) and not is_wanted(True)


def test_a_fork_forgets_the_display(at_terminal: Callable[[], Terminal]) -> None:
    """What it prints goes where it went; the parent's display goes on."""
    terminal = at_terminal()
    with stage("SVI", 10):
        terminal.wait_for("SVI")
        live, stderr = DISPLAY._live, sys.stderr
        kept = DISPLAY._lock, DISPLAY._open, DISPLAY._shown
        assert stderr is not terminal
        DISPLAY.after_fork()
        assert sys.stderr is terminal and DISPLAY._live is None
        (DISPLAY._lock, DISPLAY._open, DISPLAY._shown), DISPLAY._live, sys.stderr = kept, live, stderr


def test_words() -> None:
    line = Line(
        "joint training", 1, 120, 480, 60.0, {"elbo": -50.0, "nll": 0.5, "rows_per_second": 1234.0}, 100
    )
    assert str(line) == "  joint training: 120/480, ELBO a row -0.5, NLL 0.5, 1,234 rows/s, 3:00 left"
    assert str(Line("mode", 0, 3, None, 5.0, {"log_joint": -5.0})) == "mode: 3, log joint -5, 0:05"
    assert Line("SVI", 0, 110, 210, 20.0, {}, skipped=100).time == "3:20 left"  # of an earlier process
    assert (Line("SVI", 0, 0, 10, 1.0, {}).time, clock(59.6), clock(3661)) == ("", "1:00", "1:01:01")
