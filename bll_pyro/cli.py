"""The command line ``bll``: each command is a function, and its options are the function's arguments.

Exit codes: 0 done, 1 the work failed, 2 the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence

import docstring_parser  # comes with jsonargparse[signatures]
from jsonargparse import ArgumentParser, DefaultHelpFormatter

import bll_pyro
from bll_pyro.demo import demo

# commands import heavy libraries when they run, so that ``bll --help`` is fast
COMMANDS: dict[str, Callable[..., None]] = {"demo": demo}

FAILED, INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that ``arguments`` name, by default those of the process, and return the exit code."""
    options = make_parser().parse_args(None if arguments is None else list(arguments))
    name = options.command
    chosen = vars(options[name])
    debug = chosen.pop("debug")
    try:
        COMMANDS[name](**chosen)
    except KeyboardInterrupt:
        print(f"bll {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError) as error:
        if debug:
            raise
        print(f"bll {name}: error: {error}", file=sys.stderr)
        return FAILED
    return 0


class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help that keeps the paragraphs of descriptions and shows defaults."""


def make_parser() -> ArgumentParser:
    """Build the parser from the commands' signatures and docstrings."""
    parser = ArgumentParser(
        prog="bll", description="Bayesian last layers for torch networks.", version=bll_pyro.__version__
    )
    commands = parser.add_subcommands(dest="command", required=True, title="commands")
    for name, function in COMMANDS.items():
        doc = docstring_parser.parse(inspect.getdoc(function) or "")
        command = ArgumentParser(description=filled(doc.description or ""), formatter_class=Help)
        described = {param.arg_name: param.description for param in doc.params}
        # an argument with the default False becomes a flag without a value
        options = inspect.signature(function).parameters
        flags = [key for key, option in options.items() if option.default is False]
        command.add_function_arguments(function, as_group=False, skip=set(flags))
        for flag in flags:
            command.add_argument(f"--{flag.replace('_', '-')}", action="store_true", help=described[flag])
        command.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
        commands.add_subcommand(name, command, help=doc.short_description)
    return parser


def filled(text: str) -> str:
    """Paragraphs wrapped to the width of the terminal."""
    width = min(shutil.get_terminal_size().columns, 100) - 2
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.split("\n\n"))
