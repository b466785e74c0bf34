"""Names on disk: stems, natural order, lists in text files, the index of a folder."""

import codecs
import os
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from config.errors import UserError


def _suffixes(endings: str) -> frozenset[str]:
    return frozenset(f".{ending}" for ending in endings.split())


# Pillow reads these with a plugin only (pillow-heif, ...). They are images of the data set all the same, and the check
# says that they cannot be read: if they were left out, their objects would be lost without a word.
PLUGIN_SUFFIXES = _suffixes("heic heif hif heics jxl dng cr2 cr3 nef arw orf rw2 raf")
IMAGE_SUFFIXES = PLUGIN_SUFFIXES | _suffixes("jpg jpeg jpe jfif png bmp dib tif tiff webp gif ppm pgm pbm pnm jp2 avif")
XML_SUFFIXES = frozenset({".xml"})


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


def read_text(path: Path) -> str:
    """A text file in UTF-8 or UTF-16 (as PowerShell writes it), byte order mark removed. Raises `UserError`."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.absolute()}: {error.strerror or error}") from None
    is_wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path.absolute()}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file, stripped, blank ones left out. Raises `UserError`."""
    lines = (line.strip() for line in read_text(path).splitlines())
    return tuple(line for line in lines if line)


def index_by_stem(folder: Path, suffixes: Container[str]) -> dict[str, list[Path]]:
    """Stem -> files of `folder` with one of the suffixes in any case, sorted; hidden files left out.

    One listing instead of a look-up per image: it finds IMG.JPG for "IMG" on any file system.
    """
    index: dict[str, list[Path]] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))  # ._x.jpg is macOS's litter
    for name in _without_originals(names, suffixes):
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
        found += [front + name for name in _without_originals(names, suffixes)]
    return sorted(found)


def repeated_links(folder: Path) -> list[str]:
    """Links to folders that `walk_files` does not follow, because the folder is listed under another name: sorted."""
    links: list[str] = []
    for _ in _walk(folder, links):
        pass
    return sorted(os.path.relpath(link, folder).replace(os.sep, "/") for link in links)


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
        for place, children, names in os.walk(start):
            if (target := os.path.realpath(place)) in visited:  # below a link, and reached by an earlier link
                children.clear()
                continue
            visited.add(target)
            children[:] = sorted(name for name in children if not name.startswith("."))
            waiting += [path for name in children if os.path.islink(path := os.path.join(place, name))]
            yield place, [name for name in names if not name.startswith(".")]


def _without_originals(names: Iterable[str], suffixes: Container[str]) -> Iterator[str]:
    """Names of one folder with one of the suffixes; IMG_1.HEIC is left out where its copy IMG_1.jpg lies beside it."""
    split = [(name, *os.path.splitext(name)) for name in names]
    chosen = [(name, stem, suffix.lower()) for name, stem, suffix in split if suffix.lower() in suffixes]
    readable = {stem for _, stem, suffix in chosen if suffix not in PLUGIN_SUFFIXES}
    return (name for name, stem, suffix in chosen if suffix not in PLUGIN_SUFFIXES or stem not in readable)


def subfolders(folder: Path) -> dict[str, Path]:
    """Lower-case name -> visible folder, in natural order."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    return {name.lower(): folder / name for name in sorted(names, key=natural_key)}


def holds_file(folder: Path, suffixes: Container[str]) -> bool:
    """Whether a visible file with one of the suffixes lies in the folder; no further than the first is looked."""
    with os.scandir(folder) as entries:
        return any(
            os.path.splitext(entry.name)[1].lower() in suffixes and not entry.name.startswith(".") for entry in entries
        )


def file_named(folder: Path, name: str) -> Path | None:
    """The visible file of this name in the folder, in any case (Classes.TXT); None where there is none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.lower() == name.lower() and entry.is_file())
    return folder / (name if name in names else names[0]) if names else None
