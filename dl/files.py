"""Names on disk: stems, natural order, lists in text files, the index of a folder."""

import codecs
import os
import re
from collections.abc import Container
from pathlib import Path

from config.errors import UserError

IMAGE_SUFFIXES = frozenset(
    f".{ending}"
    for ending in "jpg jpeg jpe jfif png bmp dib tif tiff webp gif ppm pgm pbm pnm jp2 avif".split()  # noqa: SIM905
)
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
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            index.setdefault(stem, []).append(folder / name)
    return index


def walk_files(folder: Path, suffixes: Container[str]) -> list[str]:
    """Files below `folder` with one of the suffixes, as paths relative to it with `/`, sorted; hidden ones left out.

    Each folder is listed once, so that 100,000 images cost a fraction of a second.
    """
    found: list[str] = []
    for place, children, names in os.walk(folder, followlinks=True):
        children[:] = [name for name in children if not name.startswith(".")]
        front = "" if place == str(folder) else os.path.relpath(place, folder).replace(os.sep, "/") + "/"
        visible = [name for name in names if not name.startswith(".")]
        found += [front + name for name in visible if os.path.splitext(name)[1].lower() in suffixes]
    return sorted(found)


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
