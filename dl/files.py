"""Names on disk: stems, natural order, lists in text files, the index of a folder."""

import codecs
import errno
import os
import re
import stat
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from config.checks import LONGEST_PATH
from config.errors import UserError
from dl.faults import excerpt, name_fault
from dl.memory import size_text
from ops.text import escaped


def _suffixes(endings: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in endings.split())


# Pillow reads these with a plugin only, or not at all. They are images of the data set all the same, and the check says
# that they cannot be read: if they were left out, their objects would be missing unnoticed.
RAW_SUFFIXES = _suffixes("3fr arw cr2 cr3 crw dng nef nrw orf pef raf rw2 srw")
UNREADABLE_SUFFIXES = RAW_SUFFIXES | _suffixes("heic heif hif heics jxl psd dcm exr")
IMAGE_SUFFIXES = UNREADABLE_SUFFIXES | _suffixes(
    "jpg jpeg jpe jfif png bmp dib tif tiff webp gif ppm pgm pbm pnm jp2 avif tga"
)
# Folders of the system at the top of a disk, which often cannot be read.
_SYSTEM_FOLDERS = ("lost+found", "System Volume Information", "$RECYCLE.BIN")
XML_SUFFIXES = frozenset({".xml"})

# The most bytes of a file that are read: a sparse file takes no room on the disk, and all of the memory.
MOST_OF_ANNOTATION = 2**24  # an xml of one image: 50,000 objects of 300 bytes; parsed, objects take 7 times as much
MOST_OF_YAML = 2**20  # 20,000 classes, the most that a network is made for, take 700 KB with names of 25 letters
MOST_OF_LIST = 2**29  # 9,000,000 names of 50 bytes: the largest public data set with boxes
MOST_OF_JSON = 3 * 2**29  # COCO's own has 450 MB, LVIS's 1.1 GB; parsed, boxes take 5 times as much
MOST_OF_IMAGE = 2**31  # 200 megapixels with four channels of 16 bits, not compressed, have 1.6 GB


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sort key that puts A2 before A10."""
    parts = re.split(r"(\d+)", text.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], text


def image_id(name: str, known: Container[str] = ()) -> str:
    """A line of a split file -> image id: folders and an image's or xml's suffix fall away.

    A name that is in `known` (ids of files that exist) stays as it is, so that "a.jpg" can be an id of "a.jpg.png".
    """
    base = re.split(r"[\\/]", name.strip())[-1]
    if base in known:
        return base
    stem, suffix = os.path.splitext(base)
    return stem if suffix.lower() in IMAGE_SUFFIXES | XML_SUFFIXES else base


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a file. Raises `OSError`, also for one of more than `most` bytes, and for a pipe or a device.

    A named pipe would keep its reader waiting, and /dev/zero has no end.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise OSError(errno.EINVAL, "a pipe or a device, not a file")
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {size_text(status.st_size)}, and at most {size_text(most)} are read")
    return path.read_bytes()


def read_text(path: Path, most: int = MOST_OF_LIST) -> str:
    """A text file in UTF-8 or UTF-16 (as PowerShell writes it), byte order mark removed. Raises `UserError`."""
    try:
        raw = read_bytes(path, most)
    except OSError as error:
        raise UserError(f"{path.absolute()}: {error.strerror or error}") from None
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.absolute()}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, stripped, blank ones left out.

    Raises `UserError`, also for a line that can be no name: too long, or with control characters.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    for number, line in enumerate(lines, start=1):
        if "\t" in line:
            raise UserError(
                f"{path}: line {number}: '{excerpt(line)}' holds a tab; write one name a line, without columns"
            )
        if fault := name_fault(line, LONGEST_PATH):
            raise UserError(f"{path}: line {number}: {fault}")
    return tuple(line for line in lines if line)


def index_by_stem(folder: Path, suffixes: Container[str]) -> dict[str, list[Path]]:
    """Stem -> files of `folder` with one of the suffixes in any case, sorted; hidden files left out.

    One listing instead of a look-up per image: it finds IMG.JPG for "IMG" on any file system.
    """
    index: dict[str, list[Path]] = {}
    for name in _chosen(folder, sorted(_entries(folder)), suffixes):
        index.setdefault(os.path.splitext(name)[0], []).append(folder / name)
    return index


def walk_files(folder: Path, suffixes: Container[str]) -> list[str]:
    """Files below `folder` with one of the suffixes, as paths relative to it with `/`, sorted; hidden ones left out.

    Links to folders are followed, but each folder is listed once, under its own name where it has one below `folder`:
    a link to a folder above would otherwise give every file many names. 100,000 images cost a fraction of a second.
    """
    found: list[str] = []
    for place, names in _walk(folder):
        front = "" if place == str(folder) else os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        chosen = list(_chosen(place, names, suffixes))
        if chosen:
            refuse_unfit_name(folder, front)
        found += [front + name for name in chosen]
    return sorted(found)


def linked_folders(folder: Path) -> dict[str, str]:
    """Links to folders that `walk_files` does not follow -> where their folder lies below `folder`, "" for outside.

    Sorted; both are relative and written with `/`.
    """
    links: list[str] = []
    for _ in _walk(folder, links):
        pass
    home = os.path.realpath(folder)
    targets = {os.path.relpath(link, folder): os.path.relpath(os.path.realpath(link), home) for link in sorted(links)}
    slashed = {link.replace(os.sep, "/"): target.replace(os.sep, "/") for link, target in targets.items()}
    return {link: "" if target.startswith("..") else target for link, target in slashed.items()}


def _walk(folder: Path, repeated: list[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """(folder, names of its visible files) for each folder once; links to folders come after the folders themselves.

    `repeated` receives the links to folders that are listed under another name, or that hold `folder` itself.
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
        for place, children, names in os.walk(start, onerror=_refuse):
            if (target := os.path.realpath(place)) in visited:  # below a link, and reached by an earlier link
                children.clear()
                continue
            visited.add(target)
            children[:] = sorted(name for name in children if not name.startswith(".") and name not in _SYSTEM_FOLDERS)
            waiting += [path for name in children if os.path.islink(path := os.path.join(place, name))]
            yield place, [name for name in names if not name.startswith(".")]


def _chosen(folder: Path | str, names: Iterable[str], suffixes: Container[str]) -> Iterator[str]:
    """Names of one folder with one of the suffixes; IMG_1.HEIC is left out where its copy IMG_1.jpg lies beside it.

    Raises `UserError` for a name that `refuse_unfit_name` refuses.
    """
    split = [(name, *os.path.splitext(name)) for name in names]
    chosen = [(name, stem, suffix.lower()) for name, stem, suffix in split if suffix.lower() in suffixes]
    for name, _, _ in chosen:
        refuse_unfit_name(folder, name)
    readable = {stem for _, stem, suffix in chosen if suffix not in UNREADABLE_SUFFIXES}
    return (name for name, stem, suffix in chosen if suffix not in UNREADABLE_SUFFIXES or stem not in readable)


def refuse_unfit_name(folder: Path | str, name: str) -> None:
    """Raise `UserError` for the name of a file that can be written into no list: not UTF-8, or control characters."""
    if any("\udc80" <= char <= "\udcff" for char in name):
        raise UserError(
            f"{escaped(str(folder))}: the file name {os.fsencode(name)!r} is not UTF-8; rename it (names from a "
            "Chinese Windows: convmv -f gbk -t utf8 -r --notest FOLDER)"
        )
    if fault := name_fault(name, LONGEST_PATH):
        raise UserError(f"{escaped(str(folder))}: the file name {fault}")


def _entries(folder: Path) -> dict[str, bool]:
    """Visible name -> whether it is a folder. Raises `UserError` for a folder that cannot be read."""
    try:
        with os.scandir(folder) as entries:  # ._x.jpg is macOS's litter
            return {entry.name: _is_folder(entry) for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        _refuse(error)
        raise


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read ({error.strerror}); make it readable for this user")


def subfolders(folder: Path) -> dict[str, Path]:
    """Lower-case name -> visible folder, in natural order. Raises `UserError` for a folder that cannot be read."""
    names = [name for name, is_folder in _entries(folder).items() if is_folder and name not in _SYSTEM_FOLDERS]
    return {name.lower(): folder / name for name in sorted(names, key=natural_key)}


def holds_file(folder: Path, suffixes: Container[str]) -> bool:
    """Whether a visible file with one of the suffixes lies in the folder itself."""
    return any(os.path.splitext(name)[1].lower() in suffixes for name in _entries(folder))


def file_named(folder: Path, name: str) -> Path | None:
    """The visible file of this name in the folder, in any case (Classes.TXT); None where there is none."""
    names = sorted(
        entry for entry, is_folder in _entries(folder).items() if entry.lower() == name.lower() and not is_folder
    )
    return folder / (name if name in names else names[0]) if names else None


def file_suffixes(folder: Path) -> Iterator[str]:
    """The suffix of every visible file in the folder itself, in lower case; "" for a name without one."""
    return (os.path.splitext(name)[1].lower() for name, is_folder in _entries(folder).items() if not is_folder)
