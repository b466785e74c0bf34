"""Where things lie: root, the run's name, and the paths that a recipe only names.

A recipe may write `{root}`, `{resources}`, `{phase}` and `{data}` (the data folder's name) in a path, and `{cfgname}`
(without machine tags) and `{data}` in `runName`. Here they are filled in, `~` is expanded and every path becomes
absolute.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from config.errors import UserError, reading
from config.mconfig import ModelConfig

PATH_FIELDS = ("dataDir", "imageDir", "annotationDir", "checkpointModelFile", "teacherModelFile")
FILE_SCHEME = "file://"
_MOST_OF_CLASS_LIST = 2**23  # bytes: 30,000 names of 200 letters have 6 MB


def default_root(code_dir: Path) -> str:
    """$MARS_ROOT, else `mars-running` beside the code folder."""
    return os.environ.get("MARS_ROOT") or str(code_dir.parent / "mars-running")


def absolute(path: str | os.PathLike[str]) -> str:
    """`~` expanded, relative paths taken from the working directory; a last `/` and `..` are resolved.

    Raises `UserError` for `~name` of an unknown user, and for a path that no file can have.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)
    if re.match(r"~[^/\\]", expanded) and not os.path.exists(expanded):
        user = re.split(r"[/\\]", expanded[1:])[0]
        raise UserError(f"{text}: there is no user '{user}' here; write the folder in full, or ./{text} for that name")
    if "\0" in text:
        raise UserError(f"{text!r}: holds a zero byte, which no path can; write the path again")
    return os.path.abspath(expanded)


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
    try:
        with reading(file, "a text file"):
            lines = _class_list_text(Path(file)).splitlines()
    except UserError as error:
        cause = error.__cause__
        reason = "no such file" if isinstance(cause, FileNotFoundError) else f"cannot be read ({cause})"
        raise UserError(
            f"classList={file}: {reason}; give a text file with one class name a line, or the names"
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise UserError(f"classList={file}: the file names no class; write one class name a line")
    return names


def _class_list_text(path: Path) -> str:
    """Raises `OSError` for a pipe or a device, which may have no end, and for a file that is too large."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_OF_CLASS_LIST:
        raise OSError(f"no file of at most {_MOST_OF_CLASS_LIST} bytes")
    return path.read_text(encoding="utf-8-sig")


def _place(path: str, words: Mapping[str, str]) -> str:
    return absolute(_fill(path, words))


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
