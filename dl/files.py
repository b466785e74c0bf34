"""File access for data sets: file names, folder listings, bounded reads, and errors that name the file."""

import codecs
import errno
import json
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from config.checks import LONGEST_PATH, printable
from config.errors import UserError, reading
from config.fields import shown_value
from ops.text import escaped, size_text


def _suffixes(endings: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in endings.split())


# Pillow cannot read these, or needs a plugin. They are still listed as images, so that the data check reports them as
# unreadable. If they were ignored, their objects would be missing without any message.
RAW_SUFFIXES = _suffixes("3fr arw cr2 cr3 crw dng nef nrw orf pef raf rw2 srw")
UNREADABLE_SUFFIXES = RAW_SUFFIXES | _suffixes("heic heif hif heics jxl psd dcm exr")
IMAGE_SUFFIXES = UNREADABLE_SUFFIXES | _suffixes(
    "jpg jpeg jpe jfif png bmp dib tif tiff webp gif ppm pgm pbm pnm jp2 avif tga"
)
# System folders at the root of a disk. They often cannot be read.
_SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
XML_SUFFIXES = frozenset({".xml"})

# Larger files are refused. A sparse file, for example, uses no disk space but would fill the memory when read.
MAX_ANNOTATION_BYTES = 2**24  # one image's xml: 50,000 objects of 300 bytes; parsed objects take 7 times as much memory
MAX_YAML_BYTES = 2**20  # 20,000 classes (config.checks.MOST_CLASSES) with names of 25 letters take 700 KB
MAX_LIST_BYTES = 2**29  # 9,000,000 names of 50 bytes: the largest public data set with boxes
MAX_JSON_BYTES = 3 * 2**29  # COCO's json has 450 MB, LVIS's 1.1 GB; parsed boxes take 5 times as much memory
MAX_IMAGE_BYTES = 2**31  # an uncompressed image of 200 megapixels with four 16-bit channels has 1.6 GB


class DataError(UserError):
    """An image or annotation that cannot be used. The message starts with the path of the file."""


def name_error(name: str, max_length: int) -> str:
    """Why the name of a class or a file is invalid, as the end of an error message; "" for a valid name."""
    if len(name) > max_length:
        return f"'{excerpt(name)}' has {len(name)} characters, but at most {max_length} are allowed; use a shorter name"
    if problem := printable(name):
        return f"{shown_value(name)} {problem}"
    return ""


def excerpt(text: str) -> str:
    """Text of a file for an error message: one line, control characters escaped, at most 60 characters."""
    line = " ".join(text.split())
    return escaped(line if len(line) <= 60 else f"{line[:57]}...")


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key that puts A2 before A10."""
    parts = re.split(r"(\d+)", text.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def image_id(name: str, known: Container[str] = ()) -> str:
    """Convert a line of a split file to an image id: remove folders and the suffix of an image or xml file.

    A name in `known` (the ids of existing files) is not changed, so that "a.jpg" can be the id of "a.jpg.png".
    """
    base = re.split(r"[\\/]", name.strip())[-1]
    if base in known:
        return base
    stem, suffix = os.path.splitext(base)
    return stem if suffix.lower() in IMAGE_SUFFIXES | XML_SUFFIXES else base


def file_state(path: Path | str) -> tuple[int, int]:
    """Size in bytes and time of change; a file with another state has to be read again. (-1, -1) if unreadable."""
    try:
        status = os.stat(path)
    except OSError:  # reading the file reports it
        return -1, -1
    return status.st_size, status.st_mtime_ns


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Read a whole file. Raises `OSError`, also for a file of more than `max_bytes`, and for a pipe or a device.

    Reading a named pipe would block, and reading /dev/zero would never end.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    if status.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size_text(status.st_size)}, but the limit is {size_text(max_bytes)}")
    return path.read_bytes()


def read_text(path: Path, max_bytes: int = MAX_LIST_BYTES) -> str:
    """Read text in UTF-8 or UTF-16 (as PowerShell writes it), without its byte order mark. Raises `UserError`."""
    try:
        raw = read_bytes(path, max_bytes)
    except OSError as error:
        raise UserError(f"{path.absolute()}: {error.strerror or error}") from None
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path.absolute()}: the file is not UTF-8 text (at byte {error.start}); save it as UTF-8"
        ) from None


def read_json(path: Path, wanted: str) -> Any:
    """Read a JSON file. Raises `UserError` with the position of an error; `wanted` as in `config.errors.reading`."""
    text = read_text(path, MAX_JSON_BYTES)
    try:
        with reading(path, wanted):
            return json.loads(text)
    except UserError as error:
        if not isinstance(cause := error.__cause__, json.JSONDecodeError):
            raise
        raise UserError(
            f"{path}: the json is invalid at line {cause.lineno}, column {cause.colno} ({cause.msg})"
        ) from None


class _TextLoader(yaml.BaseLoader):
    """Keeps every value as text, so that classes may have names such as no, on, 007 or 2024-01-01.

    Duplicate keys at the top level and in `names` are errors. Other sections are not used.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if isinstance(node, yaml.MappingNode):
            names = [value for key, value in node.value if key.value == "names"]
            for section in (node, *(value for value in names if isinstance(value, yaml.MappingNode))):
                known = set()
                for key, _ in section.value:
                    if not isinstance(key, yaml.ScalarNode) or key.value == "<<":  # the merge key may be repeated
                        continue
                    if key.value in known:
                        problem = f"the key {key.value} occurs twice"
                        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
                    known.add(key.value)
        return node


def read_yaml(path: Path) -> Any:
    """Read YAML; every value stays text, see `_TextLoader`. Raises `UserError` with the position of an error."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        with reading(path, "a yaml"):
            return yaml.load(text, Loader=_TextLoader)
    except UserError as error:
        if not isinstance(cause := error.__cause__, yaml.YAMLError):
            raise
        mark = getattr(cause, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{path}: the yaml is invalid{place} ({excerpt(getattr(cause, 'problem', None) or str(cause))})"
        ) from None


def read_lines(path: Path) -> tuple[str, ...]:
    """Read the lines of a text file, stripped, without blank lines.

    Raises `UserError`, also for a line that cannot be a name because it is too long or has control characters.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            raise UserError(
                f"{path}: line {number}: '{excerpt(line)}' contains a tab; write one name per line, without columns"
            )
        if error := name_error(line, LONGEST_PATH):
            raise UserError(f"{path}: line {number}: {error}")
    return tuple(line for line in lines if line)


def index_by_stem(folder: Path, suffixes: Container[str]) -> dict[str, list[Path]]:
    """Map each file stem to the files of `folder` with one of the suffixes (any case), sorted, without hidden files.

    The folder is listed once instead of searched for each image. So "IMG" finds IMG.JPG on every file system.
    """
    index: dict[str, list[Path]] = {}
    for name in _chosen(folder, sorted(_entries(folder)), suffixes):
        index.setdefault(os.path.splitext(name)[0], []).append(folder / name)
    return index


def walk_files(folder: Path, suffixes: Container[str]) -> list[str]:
    """List the files below `folder` with one of the suffixes: sorted relative paths with `/`, without hidden files.

    Links to folders are followed, but each folder is listed once, under its real name if that is below `folder`.
    Otherwise a link to a parent folder would give every file many names. 100,000 images take a fraction of a second.
    """
    found: list[str] = []
    for place, names in _walk(folder):
        front = "" if place == str(folder) else os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        chosen = list(_chosen(place, names, suffixes))
        if chosen:
            check_file_name(folder, front)
        found += [front + name for name in chosen]
    return sorted(found)


def linked_folders(folder: Path) -> dict[str, str]:
    """Map each folder link that `walk_files` does not follow to its target below `folder`; "" for a target outside.

    Sorted. Both paths are relative to `folder` and use `/`.
    """
    links: list[str] = []
    for _ in _walk(folder, links):
        pass
    home = os.path.realpath(folder)
    targets = {os.path.relpath(link, folder): os.path.relpath(os.path.realpath(link), home) for link in sorted(links)}
    slashed = {link.replace(os.sep, "/"): target.replace(os.sep, "/") for link, target in targets.items()}
    return {link: "" if target.startswith("..") else target for link, target in slashed.items()}


def _walk(folder: Path, repeated: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its visible files) once for each folder; real folders come before linked folders.

    `repeated` receives the links whose target was listed under another name, or contains `folder` itself.
    """
    home = os.path.join(os.path.realpath(folder), "")
    waiting, visited = [str(folder)], set()
    while waiting:
        start = waiting.pop(0)
        target = os.path.realpath(start)
        if target in visited or (visited and home.startswith(os.path.join(target, ""))):
            if repeated is not None:
                repeated.append(start)
            continue
        for place, children, names in os.walk(start, onerror=_raise_unreadable):
            if (target := os.path.realpath(place)) in visited:  # below a link; reached before through another link
                children.clear()
                continue
            visited.add(target)
            children[:] = sorted(name for name in children if not name.startswith(".") and name not in _SYSTEM_FOLDERS)
            waiting += [path for name in children if os.path.islink(path := os.path.join(place, name))]
            yield place, [name for name in names if not name.startswith(".")]


def _chosen(folder: Path | str, names: Iterable[str], suffixes: Container[str]) -> Iterator[str]:
    """Names of one folder with one of the suffixes. IMG_1.HEIC is left out if a readable IMG_1.jpg is beside it.

    Raises `UserError` for an invalid name, see `check_file_name`.
    """
    split = [(name, *os.path.splitext(name)) for name in names]
    chosen = [(name, stem, suffix.lower()) for name, stem, suffix in split if suffix.lower() in suffixes]
    for name, _, _ in chosen:
        check_file_name(folder, name)
    readable = {stem for _, stem, suffix in chosen if suffix not in UNREADABLE_SUFFIXES}
    return (name for name, stem, suffix in chosen if suffix not in UNREADABLE_SUFFIXES or stem not in readable)


def check_file_name(folder: Path | str, name: str) -> None:
    """Raise `UserError` for a file name that no list can contain: not UTF-8, or with control characters."""
    if any("\udc80" <= char <= "\udcff" for char in name):
        raise UserError(
            f"{escaped(str(folder))}: the file name {os.fsencode(name)!r} is not UTF-8; rename the file (names from a "
            "Chinese Windows: convmv -f gbk -t utf8 -r --notest FOLDER)"
        )
    if error := name_error(name, LONGEST_PATH):
        raise UserError(f"{escaped(str(folder))}: the file name {error}")


def _entries(folder: Path) -> dict[str, bool]:
    """Map each visible name to whether it is a folder. Raises `UserError` for an unreadable folder."""
    try:
        with os.scandir(folder) as entries:  # macOS writes hidden files such as ._x.jpg
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        _raise_unreadable(error)
    # A link that points to itself is no folder; `is_dir` raises an error for it.
    return {entry.name: os.path.isdir(entry) if entry.is_symlink() else entry.is_dir() for entry in visible}


def _raise_unreadable(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename}: cannot read the folder ({error.strerror}); give this user read permission")


def subfolders(folder: Path) -> dict[str, Path]:
    """Map lower-case names to visible subfolders, in natural order. Raises `UserError` for an unreadable folder."""
    names = [name for name, is_folder in _entries(folder).items() if is_folder and name not in _SYSTEM_FOLDERS]
    return {name.lower(): folder / name for name in sorted(names, key=natural_key)}


def has_file(folder: Path, suffixes: Container[str]) -> bool:
    """Whether the folder itself (not its subfolders) has a visible file with one of the suffixes."""
    return any(os.path.splitext(name)[1].lower() in suffixes for name in _entries(folder))


def find_file(folder: Path, name: str) -> Path | None:
    """Find a visible file by its name in any case (Classes.TXT); None if there is none."""
    names = sorted(
        entry for entry, is_folder in _entries(folder).items() if entry.lower() == name.lower() and not is_folder
    )
    return folder / (name if name in names else names[0]) if names else None


def file_suffixes(folder: Path) -> Iterator[str]:
    """The suffix of every visible file in the folder itself, in lower case; "" for a name without a suffix."""
    return (os.path.splitext(name)[1].lower() for name, is_folder in _entries(folder).items() if not is_folder)
