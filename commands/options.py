"""What all commands share on the command line: how a command is described, its parser, and common options."""

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from config.errors import UserError
from config.fields import Check, parse
from config.load import absolute

PROGRAM = "python mars.py"

_formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=110)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` with one sentence where argparse prints a usage text and exits."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=_formatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; `{self.prog} --help` shows the options")


def accept(args: argparse.Namespace) -> None:
    """The check of a command whose words need no check beyond that of the parser."""


class Command(NamedTuple):
    """One command of `python mars.py`, as its file in this package declares it.

    These files do not import torch at the top, so that help and mistakes are answered at once.
    """

    summary: str  # one line for `python mars.py --help`
    form: str  # the words behind the command's name, e.g. "CFGNAME PATH..."
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]  # the exit status; raises `UserError`
    check: Callable[[argparse.Namespace], None] = accept  # raises `UserError` for what the words alone show
    description: str = ""  # further lines of `python mars.py COMMAND --help`
    takes_paths: bool = False  # a word may be the name of a file or folder, also one that looks like a field
    prints_results_only: bool = False  # on the console, as with --quiet
    advice: Mapping[str, str] = MappingProxyType({})  # option of another command -> what to do instead


def add_run_options(parser: Parser) -> None:
    """CFGNAME, and the options of all commands that work on a run."""
    parser.add_argument(
        "cfgname", nargs="?", metavar="CFGNAME", help="recipe and tags with dots between them, e.g. voc.nano.full"
    )
    group = parser.add_argument_group("options of the run")
    group.add_argument(
        "--data", metavar="DIR", help="folder of the data set; images, annotations, splits and classes are found in it"
    )
    group.add_argument(
        "--root", metavar="DIR", help="folder that holds all runs (default: $MARS_ROOT, else ../mars-running)"
    )
    group.add_argument("--name", metavar="NAME", help="folder of this run below the root (default: the CFGNAME)")
    add_settings(group)
    parser.set_defaults(nobuf=False)
    add_console_options(parser)


def add_settings(group: argparse._ActionsContainer) -> None:
    """The option --set."""
    group.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="change config fields, above recipe and tags; several may follow: --set maxEpoch=60 inputShape=320",
    )  # fmt: skip


def add_console_options(parser: Parser) -> None:
    """The options of every command."""
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--quiet", action="store_true", help="print results only; the run's mars.log has all other lines"
    )
    group.add_argument("--fields", action="store_true", help="list all config fields with default and meaning")


def add_weights(parser: Parser) -> None:
    """The option --weights."""
    parser.add_argument(
        "--weights", metavar="FILE",
        help="use the weights in this file, with their input size (default: the weights of the run)",
    )  # fmt: skip


def check_weights(args: argparse.Namespace) -> None:
    """Raise `UserError` when the file behind --weights is missing."""
    if args.weights and not os.path.isfile(absolute(args.weights)):
        raise UserError(f"{absolute(args.weights)}: no such weights file")


def check_out_folder(out: str | None) -> None:
    """Raise `UserError` when --out, a folder for results, names a file."""
    if out and Path(absolute(out)).is_file():
        raise UserError(f"--out {absolute(out)}: is a file; name a folder for the results")


def check_out_file(out: str | None) -> None:
    """Raise `UserError` when --out, a file to write, names a folder."""
    if out and Path(absolute(out)).is_dir():
        raise UserError(f"--out {absolute(out)}: is a folder; name the file that is to be written")


def number(option: str, text: str, kind: type, check: Check) -> Any:
    """The number behind an option. Raises `UserError` with the option for other text and for what `check` refuses."""
    value = parse(option, text, kind)
    if complaint := check(value):
        raise UserError(f"{option} {text}: {complaint}")
    return value
