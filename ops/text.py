"""Plain text for the terminal and for log files: display width, escaping, lists, tables."""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def display_width(text: str) -> int:
    """Columns that the text takes on a terminal: 2 for Chinese and other wide characters, 0 for combining marks."""
    combining, wide = ("Mn", "Me", "Cf"), "WF"
    visible = (char for char in text if unicodedata.category(char) not in combining)
    return sum(2 if unicodedata.east_asian_width(char) in wide else 1 for char in visible)


def escaped(text: str) -> str:
    """Replace control characters by escapes such as `\\x1b`, so that text is safe to print. Line breaks and tabs stay.

    Escaped are the control characters of ASCII and Latin-1 (an escape sequence can hide or forge a line), characters
    that reverse the writing direction, the line separators of Unicode, and lone surrogates, by which Python represents
    bytes of a file name that is not UTF-8.
    """
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shortened(value: Any) -> str:
    """A plain value as JSON, cut to 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images; 1 box, 2 boxes."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first `most` names, separated by commas, and the number of the others: "a, b and 3 more". Empty: ""."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def size_text(num_bytes: int) -> str:
    """A number of bytes for people: 512 KiB, 3.4 MiB, 1.2 GiB."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.0f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.1f} GiB"


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line per row with two spaces between columns. The first column is aligned left, all others right.

    Without rows there are no lines. Raises `ValueError` when rows differ in length.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(display_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        cells: list[str] = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - display_width(cell))  # not str.ljust: a wide character takes two columns
            cells.append(space + cell if number else cell + space)
        lines.append("  ".join(cells))
    return lines
