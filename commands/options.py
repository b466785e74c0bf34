"""What all commands share on the command line: how a command is described, its parser, common options, and help."""

import argparse
import os
import platform
import textwrap
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from config import __version__
from config.errors import UserError
from config.fields import Check, describe, parse
from config.load import absolute
from config.mconfig import PHASES, field_default, field_doc, field_names, field_type
from config.recipes import RECIPE_DIR, VALUE_TAGS, describe_recipes

PROGRAM = "python mars.py"

_EXAMPLES = """examples:
  python mars.py demo.nano.full                 train and evaluate on generated images; needs no data
  python mars.py voc.nano.full --data ~/birds --set maxEpoch=60
  python mars.py doctor voc.nano.full --data ~/birds
  python mars.py c1.nano.full.cuda@0.batch@32 --data ~/MAR20
  python mars.py incremental voc.nano --data ~/birds --set baseClasses=4
  python mars.py eval voc.nano.full --data ~/birds --split validation
  python mars.py export voc.nano.full --format onnx --name voc.nano.full-birds
  python mars.py predict voc.nano.full ~/photos 'more/*.jpg' --name voc.nano.full-birds"""

_formatter = partial(argparse.RawDescriptionHelpFormatter, max_help_position=26, width=110)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` with one sentence where argparse prints a usage text and exits."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=_formatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.removeprefix('argument ')}; `{self.prog} --help` shows the options")


def accept(args: argparse.Namespace) -> None:
    """The check of a command that needs no check beyond that of the parser."""


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
        help="set config fields, with precedence over recipe and tags; several may follow: --set maxEpoch=60 seed=1",
    )  # fmt: skip


def add_console_options(parser: Parser) -> None:
    """The options of every command."""
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--quiet", action="store_true", help="print results only; the run's mars.log has all other lines"
    )
    group.add_argument("--fields", action="store_true", help="list all config fields with default and meaning")
    group.add_argument(
        "--version", action="version", version=version_text(), help="print the versions of Mars, Python and torch"
    )


@cache
def version_text() -> str:
    """`mars 1.2.3, Python 3.13.0, torch 2.9.0`; torch is not imported for this."""
    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "is not installed"
    return f"mars {__version__}, Python {platform.python_version()}, torch {torch}"


def add_weights(parser: Parser) -> None:
    """The option --weights."""
    parser.add_argument(
        "--weights", metavar="FILE",
        help="use the weights in this file, with their input size (default: the weights of the run)",
    )  # fmt: skip


def check_weights(args: argparse.Namespace) -> None:
    """Raise `UserError` when the file behind --weights is missing."""
    if args.weights and not os.path.isfile(absolute(args.weights)):
        raise UserError(f"{absolute(args.weights)}: no such weights file; correct --weights")


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


def closing_text(recipe_dir: Path = RECIPE_DIR) -> str:
    """The end of the general help: recipes with their tags, tags of all recipes, and commands to copy."""
    lines = ["A CFGNAME is a recipe and tags with dots between them: voc.nano.full, c1.small.teacher.cuda@0", ""]
    lines.append("recipes (cfgops/NAME.py; copy one to make your own):")
    for recipe in describe_recipes(recipe_dir):
        headline = recipe.doc.partition("\n")[0]
        lines += [f"  {recipe.name:<8}{headline}", *(f"    .{tag:<14}{doc}" for tag, doc in recipe.tags.items()), ""]
    common_tags = {" ".join(PHASES): f"size of the network ({PHASES[0]} is the default)"}
    common_tags.update({f"{name}@N": tag.doc for name, tag in VALUE_TAGS.items()})
    lines += ["tags of every recipe:", *(f"  {tag:<32}{doc}" for tag, doc in common_tags.items()), "", _EXAMPLES]
    return "\n".join(lines)


def fields_text() -> str:
    """Every config field: its default, its type and what it means."""
    lines = [
        "Config fields with default, meaning and [type]. A recipe sets them with mcfg.FIELD = VALUE; the command line",
        "sets them with --set FIELD=VALUE: lists with commas (a,b,c), none for no value, yes or no.",
        "'The assignment' is an exercise of the university course that Mars grew out of; its settings are the default.",
        "",
    ]
    for name in field_names():
        default = field_default(name)
        if isinstance(default, tuple):
            shown = ",".join(map(str, default)) or "empty"
        else:
            shown = "none" if default in (None, {}, "") else str(default)
        lines.append(f"{name} = {shown}")
        lines += textwrap.wrap(
            f"{field_doc(name)} [{describe(field_type(name))}]", 100, initial_indent="    ", subsequent_indent="    "
        )
    return "\n".join(lines)
