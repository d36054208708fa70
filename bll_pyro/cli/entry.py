"""``main``: from arguments to a command and its exit code.

====  ======================================================================================================
code  meaning
====  ======================================================================================================
0     done
1     the work failed: a full disk, a fit that broke, a check that does not hold
2     wrong use: of the command line, or a file of the user's that says what cannot be done (:class:`UsageError`)
130   interrupted
====  ======================================================================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bll_pyro.cli.commands import COMMANDS, command
from bll_pyro.cli.console import Console
from bll_pyro.cli.importing import importable
from bll_pyro.cli.options import CONSOLE, OVERRIDES, make_parser
from bll_pyro.cli.overrides import set_apart
from bll_pyro.cli.usage import UsageError

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name, by default those of the process, and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    overrides: dict[str, str] = {}
    try:
        name = next((argument for argument in given if not argument.startswith("-")), "")
        if name in COMMANDS and command(name).takes(OVERRIDES):
            given, overrides = set_apart(given)
        chosen = vars(make_parser().parse_args(given))
    except SystemExit as stop:  # argparse has said why
        return DONE if stop.code in (None, 0) else WRONG_USE
    except UsageError as error:
        Console(f"bll {name}").error(str(error))
        return WRONG_USE
    name, debug = chosen.pop("command"), chosen.pop("debug")
    console = Console(f"bll {name}", json=chosen.pop("json"), quiet=chosen.pop("quiet"))
    return _run(name, chosen, overrides, console, debug)


def _run(name: str, chosen: dict[str, Any], overrides: dict[str, str], console: Console, debug: bool) -> int:
    """Call the command; a mistake of the user's is one message, and a traceback only with ``debug``."""
    run = command(name)
    try:
        given = {OVERRIDES: overrides, CONSOLE: console}
        with console.watching(), importable(Path.cwd()):
            run.function(**chosen, **{name: value for name, value in given.items() if run.takes(name)})
    except KeyboardInterrupt:
        console.error("interrupted", kind="")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as head, has all that it wants
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        if debug:
            raise
        console.error(str(error) or type(error).__name__)
        return WRONG_USE if isinstance(error, UsageError) else FAILED
    return DONE
