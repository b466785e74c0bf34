"""From a CFGNAME to a checked, frozen config. Precedence: default < recipe < tags < overrides (`--set`).

A recipe may write `{root}`, `{resources}`, `{phase}` and `{data}` (the name of the data folder) in a path, and
`{cfgname}` (without machine tags) and `{data}` in `runName`. Here they are filled in and paths become absolute.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from config.checked import presets
from config.checks import LONGEST_CLASS_NAME, LONGEST_NAME, LONGEST_PATH, MOST_CLASSES, class_list, printable
from config.contradictions import refuse_contradictions
from config.errors import UserError, reading
from config.fields import parse, shown_value
from config.mconfig import ModelConfig, checked_value, field_type
from config.recipes import CODE_DIR, RECIPE_DIR, read_cfgname, run_recipe

DEFAULT_CFGNAME = "demo.nano.full"
LOCATION_FIELDS = ("imageDir", "annotationDir", "subsetMap")  # dataDir takes the place of all of them
PATH_FIELDS = ("dataDir", "imageDir", "annotationDir", "checkpointModelFile", "teacherModelFile")
FILE_SCHEME = "file://"
LARGEST_CLASS_LIST = MOST_CLASSES * LONGEST_CLASS_NAME * 4  # bytes; UTF-8 takes at most four for a letter


def load_config(
    cfgname: str = DEFAULT_CFGNAME,
    root: str | os.PathLike[str] | None = None,
    data: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    nobuf: bool = False,
    recipe_dir: Path = RECIPE_DIR,
) -> ModelConfig:
    """The checked, frozen config of `cfgname`. The only file that must exist is the recipe (and a class list file).

    `root`: the folder of all runs; `data`: the folder of the data set, with precedence over paths in the recipe;
    `overrides`: field -> value, with the highest precedence; `name`: the folder of the run below root. Raises
    `UserError` with one sentence.
    """
    parts = read_cfgname(cfgname)
    given = {"root": root, "dataDir": data, "runName": name, "nobuf": nobuf or None}
    options = {field: value for field, value in given.items() if value is not None}
    pinned = {**parts.values, "cfgname": cfgname, **_checked({**options, **(overrides or {})})}
    if isinstance(pinned.get("classList"), str) and "{" not in pinned["classList"]:
        pinned["classList"] = read_class_list(absolute(pinned["classList"]))  # recipes expect the names
    default_root = os.environ.get("MARS_ROOT") or str(CODE_DIR.parent / "mars-running")
    with presets({"root": default_root}, pinned):
        mcfg = run_recipe(parts, recipe_dir)
    # A recipe may return a config that was made before `presets`, for example by another module.
    mcfg.set_fields({"root": mcfg.root or default_root, **pinned})
    if pinned.get("dataDir"):
        mcfg.set_fields({field: None for field in LOCATION_FIELDS if field not in pinned})
    _fill_in(mcfg, parts.run_name)
    mcfg = mcfg.frozen()
    refuse_contradictions(mcfg)
    return mcfg


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """`FIELD=VALUE` texts -> field -> value in the field's type; of two values the later counts. Raises `UserError`."""
    values = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected FIELD=VALUE, e.g. --set maxEpoch=60")
        values[field.strip()] = checked_value(field.strip(), parse(field.strip(), text, field_type(field.strip())))
    return values


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options and overrides, checked."""
    if "cfgname" in given:
        raise UserError(f"cfgname={shown_value(given['cfgname'])}: is the name on the command line and cannot be set")
    values = {name: checked_value(name, value) for name, value in given.items()}
    for field, kind in (("root", "folder"), ("runName", "name")):
        if values.get(field) == "":
            raise UserError(f"{field}='': is empty; give a {kind} or leave it out")
    if values.get("dataDir"):
        values["dataDir"] = absolute(values["dataDir"])
    return values


def absolute(path: str | os.PathLike[str]) -> str:
    """The absolute path, from the working directory, with `~` expanded, without `..` and a final `/`.

    As for the operating system, `link/..` is the folder above the target of the link. Raises `UserError` for `~name` of
    an unknown user, and for a path that file systems or logs cannot hold: control characters, not UTF-8, too long.
    """
    text = os.fspath(path)
    if complaint := printable(text):
        raise UserError(f"{shown_value(text)}: {complaint}")
    expanded = os.path.expanduser(text)
    if re.match(r"~[^/\\]", expanded) and not os.path.exists(expanded):
        user = re.split(r"[/\\]", expanded[1:])[0]
        raise UserError(f"{text}: there is no user '{user}' here; write the folder in full, or ./{text} for that name")
    parts = Path(expanded).parts
    if ".." in parts:  # links are resolved up to the last `..`, because abspath ignores links
        start = len(parts) - parts[::-1].index("..")
        expanded = os.path.join(os.path.realpath(os.path.join(*parts[:start])), *parts[start:])
    place = os.path.abspath(expanded)
    if complaint := printable(place):
        raise UserError(f"{shown_value(place)}: the name of the working directory {complaint}")
    longest = max(len(part.encode()) for part in re.split(r"[/\\]", place))
    if longest > LONGEST_NAME or len(place.encode()) > LONGEST_PATH:
        raise UserError(
            f"{shown_value(text)}: is longer than a path of {LONGEST_PATH:,} bytes with names of {LONGEST_NAME} bytes; "
            "write a shorter one"
        )
    return place


def _fill_in(mcfg: ModelConfig, run_name: str) -> None:
    """Fill in words such as `{root}` in names and paths of `mcfg`, in place, and read a class list file.

    Raises `UserError` for a class list that cannot be read.
    """
    mcfg.root = absolute(mcfg.root)
    data = Path(mcfg.dataDir).name if mcfg.dataDir else ""
    words = {"{root}": mcfg.root, "{resources}": str(CODE_DIR / "resources"), "{phase}": mcfg.phase}
    words_of_data = {"-{data}": f"-{data}" if data else "", "{data}": data}

    def filled(text: str, words: dict[str, str]) -> str:
        for word, value in (words | words_of_data).items():
            text = text.replace(word, value)
        return text

    def place(path: str) -> str:
        return absolute(filled(path, words))

    for field in PATH_FIELDS:
        value = getattr(mcfg, field)
        if value is not None:
            setattr(mcfg, field, place(value))
    mcfg.subsetMap = {
        split: place(names) if isinstance(names, str) else names for split, names in mcfg.subsetMap.items()
    }
    if mcfg.pretrainedBackboneUrl is not None:
        mcfg.pretrainedBackboneUrl = FILE_SCHEME + place(mcfg.pretrainedBackboneUrl.removeprefix(FILE_SCHEME))
    if isinstance(mcfg.classList, str):
        mcfg.classList = read_class_list(place(mcfg.classList))
    mcfg.runName = filled(mcfg.runName or run_name, {"{cfgname}": run_name})


def read_class_list(file: str) -> tuple[str, ...]:
    """The names in `file`, one per line, without empty lines. Raises `UserError` for an unreadable or empty file."""
    if not os.path.isfile(file):  # reading a device might never end
        raise UserError(f"classList={file}: no such file; give a text file with one class name per line, or the names")
    with reading(file, "a class list (UTF-8 text with one class name per line)"):
        size = os.path.getsize(file)
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines() if size <= LARGEST_CLASS_LIST else None
    if lines is None:
        raise UserError(
            f"classList={file}: has {size:,} bytes, but a class list has at most {LARGEST_CLASS_LIST:,}; "
            "give a text file with one class name per line"
        )
    names = tuple(line.strip() for line in lines if line.strip())
    if complaint := class_list(names):
        raise UserError(f"classList={file}: {complaint}")
    return names
