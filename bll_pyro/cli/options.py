"""The parser: the options of each command are the arguments of its function, described in its docstring.

Written over argparse, which is there after 20 milliseconds; the rules:

================================ ==============================================================
argument of the function         option
================================ ==============================================================
without a default                positional
``name: bool = False``           flag ``--name``
``name: Sequence[str] = ()``     ``--name``, any number of times; positional: one or more
other defaults                   ``--name VALUE``; ``out`` is also ``-o``
``overrides``, ``console``       none: what :func:`bll_pyro.cli.main` gives
================================ ==============================================================
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, NoReturn

import docstring_parser

from bll_pyro import __version__
from bll_pyro.cli.commands import COMMANDS, Command, command
from bll_pyro.cli.usage import nearest

OVERRIDES, CONSOLE = "overrides", "console"
SHELLS = ("bash", "zsh", "tcsh")
REQUIRED = inspect.Parameter.empty
COMMON = {
    "json": "Print the result as JSON.",
    "quiet": "Say nothing of what goes on.",
    "debug": "Show the traceback of an error.",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors name what was perhaps meant."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with exit code 2."""
        if wrong := re.search(r"COMMAND: invalid choice: '(.*?)' ", message):
            message = f"expected a command, got {wrong[1]!r}; {nearest(wrong[1], COMMANDS)}"
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As of argparse, but an option that is not known comes with the nearest one."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._chosen(found)
            options = [option for action in parser._actions for option in action.option_strings]
            remedy = nearest(unknown[0], options) if unknown[0].startswith("-") else "it is one too many"
            parser.error(f"unrecognised argument {unknown[0]}; {remedy}")
        return found

    def _chosen(self, found: argparse.Namespace) -> argparse.ArgumentParser:
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices[found.command]
        return self


class _Completion(argparse.Action):
    """Prints the script of a shell by which it completes what is typed."""

    def __call__(self, parser: argparse.ArgumentParser, *given: Any, **_: Any) -> None:
        import shtab

        print(shtab.complete(parser, given[1]))
        parser.exit()


def make_parser() -> Parser:
    """The parser of ``bll`` with all commands."""
    parser = Parser(
        prog="bll",
        description="Bayesian last layers for torch networks.",
        epilog="bll COMMAND --help says more of one of them, with examples.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    text = "Print the completion of commands and options for a shell, for its configuration."
    parser.add_argument(
        "--print-completion",
        action=_Completion,
        choices=SHELLS,
        metavar="SHELL",
        default=argparse.SUPPRESS,
        help=text,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name in COMMANDS:
        add_command(commands, command(name))
    return parser


def add_command(commands: Any, run: Command) -> None:
    """Add a command with its options."""
    doc = docstring_parser.parse(run.help)
    parser = commands.add_parser(
        run.name,
        help=(doc.short_description or "").rstrip("."),
        description=filled(
            "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["examples:", *examples_of(run.help)]) if examples_of(run.help) else None,
        allow_abbrev=False,
    )
    described = {param.arg_name: param.description or "" for param in doc.params}
    hints = typing.get_type_hints(run.function)
    for name, option in run.options.items():
        if name not in (OVERRIDES, CONSOLE):
            add_option(parser, name, hints[name], option, " ".join(described[name].split()))
    for name, text in COMMON.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)


def add_option(
    parser: argparse.ArgumentParser, name: str, hint: Any, option: inspect.Parameter, text: str
) -> None:
    """Add one argument of a function as an option."""
    hint = without_none(hint)
    is_list = typing.get_origin(hint) in (list, Sequence)
    kind = typing.get_args(hint)[0] if is_list else hint
    kind = str if typing.get_origin(kind) in (types.UnionType, typing.Union) else kind  # str | Path
    text = text.replace("%", "%%")
    if option.default is REQUIRED:
        metavar = name.upper()
        parser.add_argument(name, type=kind, nargs="+" if is_list else None, metavar=metavar, help=text)
        return
    flags = [*(["-o"] if name == "out" else []), f"--{name.replace('_', '-')}"]
    if option.default is False:
        parser.add_argument(*flags, action="store_true", help=text)
    elif is_list:
        parser.add_argument(*flags, action="append", default=[], type=kind, metavar="VALUE", help=text)
    else:
        if option.default is not None:
            text += f" (default: {option.default})"
        parser.add_argument(*flags, default=option.default, type=kind, metavar="VALUE", help=text)


def without_none(hint: Any) -> Any:
    """The type of a value that is given: ``T`` of ``T | None``."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if len(kinds) == 1 else typing.Union[tuple(kinds)]  # noqa: UP007


def examples_of(help: str) -> list[str]:
    """The lines of the section Examples of a docstring."""
    _, found, rest = help.partition("Examples\n--------\n")
    return [f"  {line}" for line in rest.strip().splitlines()] if found else []


def filled(text: str) -> str:
    """Paragraphs wrapped to the width of the terminal; lines that are indented stay as they are."""
    width = min(shutil.get_terminal_size().columns, 100) - 2
    return "\n\n".join(
        paragraph if paragraph.startswith(" ") else textwrap.fill(paragraph, width)
        for paragraph in text.split("\n\n")
    )
