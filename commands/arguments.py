"""The words after `python mars.py` -> a command and its arguments. A mistake raises one error message.

Options may stand before and after the command and the CFGNAME, and the command may be left out (`pipe`) or be written
as in the course assignment (`-train`). argparse knows none of this, so the command is found here, and the parser of
that command reads the other words.
"""

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

from commands.augment import AUGMENT
from commands.backbone import BACKBONE
from commands.doctor import DOCTOR
from commands.eval import EVAL
from commands.explain import EXPLAIN
from commands.export import EXPORT
from commands.incremental import INCREMENTAL
from commands.options import PROGRAM, Command, Parser, closing_text
from commands.predict import PREDICT
from commands.split import SPLIT
from commands.train import PIPE, TRAIN
from config.checks import printable, short
from config.errors import UserError
from config.fields import nearest, shown_value
from config.load import parse_settings
from config.mconfig import field_names

COMMANDS: dict[str, Command] = {
    "pipe": PIPE,
    "train": TRAIN,
    "eval": EVAL,
    "predict": PREDICT,
    "doctor": DOCTOR,
    "explain": EXPLAIN,
    "augment": AUGMENT,
    "export": EXPORT,
    "backbone": BACKBONE,
    "split": SPLIT,
    "incremental": INCREMENTAL,
}
DEFAULT_COMMAND = "pipe"

_MOST_OWNERS = 5  # commands that a message names
_SEED_ADVICE = "the seed of a training is written --set seed=N"


class _Words(NamedTuple):
    """The words of a command line."""

    commands: list[str]  # those that name a command; more than one is a mistake
    plain: list[str]  # neither commands nor options nor the values of options
    others: list[str]  # all words but the commands, in their order, and --set before each setting


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one command, checked as far as they can be without data.

    Besides the options, the namespace has `command`, `words` (what was typed, for log and hints) and `settings` (the
    values of --set). Raises `UserError` for what is not understood, and `SystemExit` after printing a help.
    """
    words = _clean(arguments)
    main, parsers = _build_parsers()
    split = _split_words(words, parsers)
    if not split.commands and {"-h", "--help"} & set(split.others):
        main.epilog = closing_text()
        main.print_help()
        raise SystemExit(0)
    name = split.commands[0] if split.commands else DEFAULT_COMMAND
    args, unread = parsers[name].parse_known_intermixed_args(split.others)
    args.command, args.words = name, words
    if options := [word for word in unread if word.startswith("-")]:
        raise UserError(_unknown_option(options[0].partition("=")[0], name, parsers))
    if len(set(split.commands)) > 1:
        listed = " and ".join(dict.fromkeys(split.commands))
        raise UserError(f"{listed}: only one command at a time; pipe trains and evaluates")
    # FIELD=VALUE without --set, and a field after --set without a value; a path may have the name of a field.
    fields = (word for word in split.plain if "=" in word or not COMMANDS[name].takes_paths)
    for word in (*(word for word in args.set if "=" not in word), *fields):
        if word.partition("=")[0] in field_names():
            raise UserError(f"{word}: settings are written --set {word if '=' in word else word + '=VALUE'}")
    if unread:
        form = f"{name} {COMMANDS[name].form}" if split.commands else "[COMMAND] CFGNAME"
        guess = "" if split.commands else nearest(split.plain[0], COMMANDS)
        raise UserError(f"{' '.join(split.plain)}: too many words{guess}; write {PROGRAM} {form}")
    if not args.fields:
        COMMANDS[name].check(args)
        args.settings = parse_settings(args.set)
    return args


def _clean(arguments: Sequence[str]) -> list[str]:
    """The words without line breaks and tabs beside the commas of a setting (FIELD=a,b).

    Raises `UserError` for a word that could forge a line of the log, that no UTF-8 file can hold, or that is empty. An
    empty word is a shell variable without a value. Read as "not given", it would choose another run or other weights.
    """
    words = []
    for number, word in enumerate(arguments, 1):
        if word.removeprefix("--set=").partition("=")[0].strip() in field_names():
            word = re.sub(r"(?<=[,=])\s*[\t\r\n]\s*|\s*[\t\r\n]\s*(?=,|$)", "", word)
        if complaint := printable(word) or ("" if "=" in word else short(word)):  # a setting may list many names
            raise UserError(f"word {number} of the command, {shown_value(word)}: {complaint}")
        if re.fullmatch(r"(--[a-z-]+=)?\s*", word):
            raise UserError(f"word {number} of the command, '{word}', is empty; give a value, or leave the option out")
        words.append(word)
    return words


def _split_words(words: Sequence[str], parsers: dict[str, Parser]) -> _Words:
    """Find the command: the first plain words that name one, and `-NAME` anywhere.

    Several settings may follow one --set; each gets a --set of its own: `--set A=1 B=2` -> `--set A=1 --set B=2`.
    """
    actions = [action for parser in parsers.values() for action in parser._actions if action.nargs != 0]
    takes_value = {option for action in actions for option in action.option_strings}
    has_paths = any(command.takes_paths and name in words for name, command in COMMANDS.items())
    split = _Words([], [], [])
    option, after_setting = "", False
    for word in words:
        field, equals, _ = word.partition("=")
        if option:  # this word is its value, whatever it looks like
            split.others.append(word)
            option, after_setting = "", option == "--set"
        elif word.startswith("-") and word[1:] in COMMANDS:
            split.commands.append(word[1:])
            after_setting = False
        elif word.startswith("-"):
            split.others.append(word)
            option, after_setting = word if word in takes_value else "", word.startswith("--set=")
        elif after_setting and equals and (not has_paths or field in field_names() or nearest(field, field_names())):
            split.others.extend(["--set", word])  # where paths are expected, only with the name of a field, or nearly
        elif not split.plain and word in COMMANDS:
            split.commands.append(word)
            after_setting = False
        else:
            split.plain.append(word)
            split.others.append(word)
            after_setting = False
    return split


def _build_parsers() -> tuple[Parser, dict[str, Parser]]:
    """The parser that prints the general help, and the parser of each command."""
    main = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [COMMAND] CFGNAME [options]",
        description="Mars trains YOLOv8 detectors. `python mars.py COMMAND --help` shows what a command accepts.",
    )
    PIPE.add_arguments(main)
    choices = main.add_subparsers(title="commands", metavar="COMMAND", prog=PROGRAM)
    parsers = {}
    for name, command in COMMANDS.items():
        description = f"{command.summary[0].upper()}{command.summary[1:]}.\n{command.description}"
        usage = f"{PROGRAM} {name} {command.form} [options]"
        parsers[name] = choices.add_parser(name, help=command.summary, description=description, usage=usage)
        command.add_arguments(parsers[name])
    return main, parsers


def _unknown_option(option: str, name: str, parsers: dict[str, Parser]) -> str:
    """The sentence for an option that the command `name` does not have."""
    owners = [owner for owner, parser in parsers.items() if option in parser._option_string_actions]
    if not owners:
        field = nearest(option.lstrip("-"), field_names())
        known = {known for parser in parsers.values() for known in parser._option_string_actions}
        hint = nearest(option, sorted(known)) or (
            f"; config fields are written --set FIELD=VALUE{field}" if field else ""
        )
        return f"{option}: no such option{hint}; `{PROGRAM} {name} --help` shows the options"
    advice = COMMANDS[name].advice.get(option) or (_SEED_ADVICE if option == "--seed" else None)
    if len(owners) > _MOST_OWNERS:
        return f"{option}: does not belong to {name}; {advice or 'leave it out'}"
    owner, form = owners[0], COMMANDS[owners[0]].form
    metavar = parsers[owner]._option_string_actions[option].metavar
    example = form if option in form else f"{form} {option} {metavar or ''}".rstrip()
    return (
        f"{option}: belongs to {', '.join(owners)}, not to {name}; "
        f"{advice or f'leave it out, or write {PROGRAM} {owner} {example}'}"
    )
