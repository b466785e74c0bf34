"""Where things lie: root, the run's name, and the paths that a recipe only names.

A recipe may write `{root}`, `{resources}`, `{phase}` and `{data}` (the data folder's name) in a path, and `{cfgname}`
(without machine tags) and `{data}` in `runName`. Here they are filled in, `~` is expanded and every path becomes
absolute.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from config.checks import LONGEST_CLASS_NAME, LONGEST_NAME, LONGEST_PATH, MOST_CLASSES, class_names, printable
from config.errors import UserError, reading
from config.fields import shown_value
from config.mconfig import ModelConfig

PATH_FIELDS = ("dataDir", "imageDir", "annotationDir", "checkpointModelFile", "teacherModelFile")
FILE_SCHEME = "file://"
LARGEST_CLASS_LIST = MOST_CLASSES * LONGEST_CLASS_NAME * 4  # bytes; UTF-8 takes at most four for a letter


def default_root(code_dir: Path) -> str:
    """$MARS_ROOT, else `mars-running` beside the code folder."""
    return os.environ.get("MARS_ROOT") or str(code_dir.parent / "mars-running")


def absolute(path: str | os.PathLike[str]) -> str:
    """`~` expanded, relative paths taken from the working directory, without `..` and a last `/`.

    `link/..` is what it is for the system: the folder above the one that the link leads to.
    Raises `UserError` for `~name` of an unknown user, and for a path that no file can have or no log can show: with
    control characters, not UTF-8, or longer than file systems take.
    """
    text = os.fspath(path)
    if complaint := printable(text):
        raise UserError(f"{shown_value(text)}: {complaint}")
    expanded = os.path.expanduser(text)
    if re.match(r"~[^/\\]", expanded) and not os.path.exists(expanded):
        user = re.split(r"[/\\]", expanded[1:])[0]
        raise UserError(f"{text}: there is no user '{user}' here; write the folder in full, or ./{text} for that name")
    parts = Path(expanded).parts
    if ".." in parts:  # links are followed up to the last `..`, which abspath would take away as text
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


def settle(mcfg: ModelConfig, run_name: str, code_dir: Path) -> None:
    """Fill in names and paths of `mcfg`, in place, and read a class list that is given as a file.

    Raises `UserError` when that file cannot be read.
    """
    mcfg.root = absolute(mcfg.root)
    data = Path(mcfg.dataDir).name if mcfg.dataDir else ""
    of_data = {"-{data}": f"-{data}" if data else "", "{data}": data}
    words = {"{root}": mcfg.root, "{resources}": str(code_dir / "resources"), "{phase}": mcfg.phase, **of_data}
    for field in PATH_FIELDS:
        value = getattr(mcfg, field)
        if value is not None:
            setattr(mcfg, field, _place(value, words))
    mcfg.subsetMap = {
        split: _place(names, words) if isinstance(names, str) else names for split, names in mcfg.subsetMap.items()
    }
    if mcfg.pretrainedBackboneUrl is not None:
        file = mcfg.pretrainedBackboneUrl.removeprefix(FILE_SCHEME)
        mcfg.pretrainedBackboneUrl = FILE_SCHEME + _place(file, words)
    if isinstance(mcfg.classList, str):
        mcfg.classList = read_class_list(_place(mcfg.classList, words))
    names = {"{cfgname}": run_name, **of_data}
    mcfg.runName = _fill(mcfg.runName or run_name, names)


def read_class_list(file: str) -> tuple[str, ...]:
    """The names in `file`, one a line, blank lines left out. Raises `UserError` when it cannot be read or is empty."""
    if not os.path.isfile(file):  # a device may have no end
        raise UserError(f"classList={file}: no such file; give a text file with one class name a line, or the names")
    with reading(file, "a class list (UTF-8 text with one class name a line)"):
        size = os.path.getsize(file)
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines() if size <= LARGEST_CLASS_LIST else None
    if lines is None:
        raise UserError(
            f"classList={file}: has {size:,} bytes, and a class list has at most {LARGEST_CLASS_LIST:,}; "
            "give a text file with one class name a line"
        )
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"classList={file}: the file names no class; write one class name a line")
    if complaint := class_names(names) or next(filter(None, map(printable, names)), None):
        raise UserError(f"classList={file}: {complaint}")
    return names


def _place(path: str, words: Mapping[str, str]) -> str:
    return absolute(_fill(path, words))


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
