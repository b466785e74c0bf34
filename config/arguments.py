"""The words behind `python mars.py` -> a mode, a CFGNAME and options; whatever is not understood gets one sentence."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from config.checks import objects, printable, seed, short
from config.errors import UserError
from config.fields import at_most, both, nearest, parse, positive, shown_value
from config.help import help_text
from config.mconfig import field_names
from config.places import absolute
from config.recipes import recipe_names

MODES = ("pipe", "train", "eval", "predict", "doctor", "explain", "export", "backbone", "split", "incremental")
FORMATS = ("onnx", "torch", "ultralytics")
MOST_DRAWS = 1_000

_IMAGE = re.compile(r"\.(jpe?g|png|bmp|gif|tiff?|webp)$", re.IGNORECASE)


class Parser(argparse.ArgumentParser):
    """Complaints become one sentence instead of a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `python mars.py --help` shows what there is")

    def format_help(self) -> str:
        return help_text(MODES)


def without_line_breaks(word: str) -> str:
    """A word of the command; in a setting (FIELD=a,b) line breaks and tabs beside commas are left out."""
    if word.removeprefix("--set=").partition("=")[0].strip() not in field_names():
        return word
    return re.sub(r"(?<=[,=])\s*[\t\r\n]\s*|\s*[\t\r\n]\s*(?=,|$)", "", word)


def read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """mode, cfgname and options. Raises `UserError` for anything that is not understood."""
    _refuse_unusable(arguments)
    parser = Parser(prog="mars.py", allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    places = ("root", "data", "name", "split", "weights", "out", "format")
    for name in (*places, "shots", "share", "seed", "from", "draws", "ways", "replay"):
        parser.add_argument(f"--{name}")
    for name in ("quiet", "fields", "nms", "novel-only", "trace"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--nobuf", "-nobuf", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    for mode in MODES:
        parser.add_argument(f"-{mode}", dest="mode", action="append_const", const=mode)  # the assignment's spelling
    args, unknown = parser.parse_known_intermixed_args(_one_set_each(arguments))
    if unknown:
        raise UserError(_unknown_option(unknown[0], parser))
    for word in args.set:
        if word in field_names():
            raise UserError(f"{word}: settings are written --set {word}=VALUE")
    args = _understand_words(args)
    if not args.fields:
        _refuse_misplaced(args)
    return args


def _refuse_unusable(arguments: Sequence[str]) -> None:
    """Raise `UserError` for a word that could forge a line of the log, that no UTF-8 file can hold, or that is empty.

    An empty word is a shell variable without a value; taken as "not given" it would choose another run or other
    weights.
    """
    for number, word in enumerate(arguments, 1):
        if complaint := printable(word) or ("" if "=" in word else short(word)):  # a setting may list many names
            raise UserError(f"word {number} of the command, {shown_value(word)}: {complaint}")
        if re.fullmatch(r"(--[a-z-]+=)?\s*", word):
            raise UserError(f"word {number} of the command, '{word}', is empty; give a value, or leave the option out")


def _one_set_each(arguments: Sequence[str]) -> list[str]:
    """`--set A=1 B=2 voc.nano.full` -> `--set A=1 --set B=2 voc.nano.full`: the words behind keep their places."""
    expanded: list[str] = []
    is_open = False  # may the next word be one more setting?
    for word in arguments:
        if expanded[-1:] == ["--set"]:  # whatever it is, it is meant as the value
            expanded.append(word)
            is_open = True
        elif is_open and _is_setting(word, bool({"predict", "explain", "split"} & set(arguments))):
            expanded += ["--set", word]
        else:
            expanded.append(word)
            is_open = word.startswith("--set=")
    return expanded


def _is_setting(word: str, has_paths: bool) -> bool:
    """FIELD=VALUE; among paths only with a name that is a field's, or nearly."""
    name, equals, _ = word.partition("=")
    is_field = not has_paths or name in field_names() or bool(nearest(name, field_names()))
    return bool(equals) and not word.startswith("-") and is_field


def _understand_words(args: argparse.Namespace) -> argparse.Namespace:
    """Mode and CFGNAME out of the words that belong to no option."""
    words, modes = list(args.words), list(args.mode or [])
    while words and words[0] in MODES:
        modes.append(words.pop(0))
    if len(set(modes)) > 1:
        raise UserError(f"{' and '.join(dict.fromkeys(modes))}: one mode at a time; pipe trains and evaluates")
    args.mode = modes[0] if modes else "pipe"
    for word in words:
        is_path = args.mode in ("predict", "explain", "split") and "=" not in word  # a folder may bear a field's name
        if word.partition("=")[0] in field_names() and not is_path:
            raise UserError(f"{word}: settings are written --set {word if '=' in word else word + '=VALUE'}")
    if args.mode == "predict":
        args.cfgname, *args.paths = _cfgname_and_paths(words)
        return args
    if args.mode == "explain":
        args.cfgname, args.paths = _cfgname_and_image(words)
        return args
    if args.mode == "backbone":
        args.cfgname, args.paths = None, [_weights_file(words)]
        return args
    if args.mode == "split":
        args.cfgname, args.paths = None, words
        return args
    if len(words) > 1:
        raise UserError(
            f"{' '.join(words)}: one CFGNAME, please, and before it a mode ({', '.join(MODES)}) or none"
            f"{nearest(words[0], MODES)}"
        )
    args.cfgname = words[0] if words else None
    return args


def _cfgname_and_paths(words: list[str]) -> list[str]:
    """The words behind `predict`, when they are a CFGNAME and at least one path. Raises `UserError`."""
    if not words:
        raise UserError("predict: whose weights, and on which images? Write python mars.py predict CFGNAME PATH...")
    first = words[0]
    looks_like_path = re.search(r"[/\\*?\[]", first) or _IMAGE.search(first) or os.path.exists(first)
    if looks_like_path and words[0].partition(".")[0] not in recipe_names():
        raise UserError(f"{first}: a path, but first comes the CFGNAME: python mars.py predict CFGNAME {first}")
    if len(words) == 1:
        raise UserError(
            f"predict {first}: on which images? Write python mars.py predict {first} PATH... (files, folders, patterns)"
        )
    return words


def _cfgname_and_image(words: list[str]) -> tuple[str, list[str]]:
    """The words behind `explain`: a CFGNAME and one image. Raises `UserError`."""
    if len(words) != 2:
        raise UserError(
            "explain: of which run, and which image? Write python mars.py explain CFGNAME IMAGE (its file, or its name "
            "in the data set)"
        )
    return words[0], words[1:]


def _weights_file(words: list[str]) -> str:
    """The one word behind `backbone`. Raises `UserError`."""
    if len(words) != 1:
        raise UserError(
            "backbone: of which weights? Write python mars.py backbone FILE.pt, and --out for another place"
        )
    return words[0]


def _refuse_place(args: argparse.Namespace) -> None:
    """Raise `UserError` when `--out` names what its mode cannot write to."""
    if not args.out:
        return
    out = Path(absolute(args.out))
    if args.mode in ("predict", "split"):
        if out.is_file():
            raise UserError(f"--out {out}: is a file; name a folder for the results")
        return
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder; name the file that is to be written")
    if args.mode == "export" and out.exists():
        raise UserError(f"--out {out}: is there already; name another file, or remove it")


def _unknown_option(word: str, parser: argparse.ArgumentParser) -> str:
    name = word.split("=")[0]
    field = nearest(name.lstrip("-"), field_names())
    options = [option for action in parser._actions for option in action.option_strings]
    hint = nearest(name, options) or (f"; config fields are written --set FIELD=VALUE{field}" if field else "")
    return f"{name}: no such option{hint}; `python mars.py --help` shows what there is"


def _refuse_misplaced(args: argparse.Namespace) -> None:
    """Raise `UserError` for an option that the mode knows nothing to do with."""
    if args.mode == "split":
        _understand_draw(args)
        return
    if foreign := [name for name in ("shots", "share", "seed", "from") if getattr(args, name) is not None]:
        hint = f", and a training's seed --set seed={args.seed}" if foreign[0] == "seed" else ""
        raise UserError(f"--{foreign[0]}: belongs to split; write python mars.py split DIR --out DIR --shots K{hint}")
    _understand_study(args)
    _refuse_health(args)
    if args.mode == "incremental" and args.nobuf:
        raise UserError(
            "--nobuf: incremental goes on with the runs that are there; remove those that are to be trained again, "
            "or give others a --name"
        )
    if args.mode not in ("pipe", "train") and args.nobuf:
        raise UserError(f"--nobuf: starts a training afresh, and {args.mode} trains nothing; leave it out")
    if args.mode == "predict" and args.split:
        raise UserError("--split: predict takes files and folders; splits belong to python mars.py eval CFGNAME")
    if args.mode != "eval" and args.split:
        raise UserError("--split: belongs to eval; write python mars.py eval CFGNAME --split NAME")
    if args.mode not in ("eval", "predict", "explain", "export") and args.weights:
        raise UserError(f"--weights: {args.mode} does not take it; write python mars.py eval CFGNAME --weights FILE")
    if args.mode not in ("predict", "export", "backbone") and args.out:
        raise UserError("--out: belongs to predict; write python mars.py predict CFGNAME PATH... --out DIR")
    if args.mode == "backbone" and (
        unheard := [name for name in ("data", "name", "root", "set") if getattr(args, name)]
    ):
        raise UserError(f"--{unheard[0]}: backbone takes a file, and --out for the place of the new one; leave it out")
    _refuse_formats(args)
    if args.weights and not os.path.isfile(absolute(args.weights)):
        raise UserError(f"{absolute(args.weights)}: no such weights file")
    _refuse_place(args)


def _refuse_health(args: argparse.Namespace) -> None:
    """Raise `UserError` for `--trace` and `--replay` in modes that have nothing to trace or replay."""
    if args.trace and args.mode not in ("pipe", "train"):
        raise UserError(f"--trace: traces the first step of a training, and {args.mode} trains nothing; leave it out")
    if args.replay is None:
        return
    if args.mode != "doctor":
        raise UserError("--replay: belongs to doctor; write python mars.py doctor CFGNAME --replay FILE")
    if unheard := [name for name in ("data", "name") if getattr(args, name)]:
        raise UserError(f"--{unheard[0]}: --replay takes data and config from the bundle; leave it out")
    if unheard := [word for word in args.set if word.partition("=")[0].strip() != "device"]:
        raise UserError(
            f"--set {unheard[0]}: --replay takes the config from the bundle; only the device may be another "
            "(--set device=cpu)"
        )
    if not os.path.isfile(absolute(args.replay)):
        raise UserError(f"{absolute(args.replay)}: no such bundle; a bad step writes it into RUN/health")


def _refuse_formats(args: argparse.Namespace) -> None:
    """Raise `UserError` when it does not say what to export to, or says so of another mode."""
    if args.mode != "export":
        if args.format or args.nms:
            raise UserError("--format, --nms: belong to export; write python mars.py export CFGNAME --format onnx")
        return
    if args.format not in FORMATS:
        given = f"--format {args.format}: no such format{nearest(args.format, FORMATS)}; " if args.format else ""
        raise UserError(f"{given}export: to which format? Add --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if args.nms and args.format != "onnx":
        raise UserError(f"--nms: only --format onnx can hold it; leave it out, or take onnx instead of {args.format}")


def _understand_study(args: argparse.Namespace) -> None:
    """`--draws` of `incremental` as a number. Raises `UserError`."""
    if args.mode != "incremental":
        if foreign := [name for name in ("draws", "ways", "novel_only") if getattr(args, name)]:
            option = foreign[0].replace("_", "-")
            raise UserError(f"--{option}: belongs to incremental; write python mars.py incremental CFGNAME")
        return
    draws = parse("--draws", args.draws or "1", int)
    if complaint := both(positive, at_most(MOST_DRAWS, "each is a training for every way"))(draws):
        raise UserError(f"--draws {draws}: {complaint}")
    args.draws = draws


def _understand_draw(args: argparse.Namespace) -> None:
    """What `split` is to draw, as numbers in place of words. Raises `UserError`."""
    taken = (
        "data",
        "root",
        "nobuf",
        "split",
        "weights",
        "format",
        "nms",
        "draws",
        "ways",
        "novel_only",
        "trace",
        "replay",
    )
    if unheard := [name for name in taken if getattr(args, name)]:
        hint = "; --from NAME draws from another split" if unheard[0] == "split" else ""
        option = unheard[0].replace("_", "-")
        raise UserError(f"--{option}: split takes the data set's folder as DIR, and has no use for this{hint}")
    if len(args.paths) != 1:
        raise UserError(
            "split: which data? Write python mars.py split DIR --out DIR --shots K, with one folder of data"
        )
    if not os.path.isdir(absolute(args.paths[0])):
        raise UserError(f"{absolute(args.paths[0])}: no such folder; split takes a data set's folder")
    if not args.out:
        raise UserError("split: where to? Add --out DIR, a folder for the lists")
    if (args.shots is None) == (args.share is None):
        raise UserError(
            "split: how many? Add one of --shots K (objects of each class) and --share PERCENT (of the images)"
        )
    for name, kind, check in (("shots", int, objects), ("share", float, _percentage), ("seed", int, seed)):
        if (text := getattr(args, name)) is not None:
            value = parse(f"--{name}", text, kind)
            if complaint := check(value):
                raise UserError(f"--{name} {text}: {complaint}")
            setattr(args, name, value)
    _refuse_place(args)


def _percentage(value: float) -> str | None:
    return None if 0 < value <= 100 else "must be above 0 and at most 100, per cent of the images"
