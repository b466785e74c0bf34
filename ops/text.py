"""Plain text for a terminal: how wide it shows, and tables of it."""

import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def display_width(text: str) -> int:
    """Columns on a terminal: Chinese and other wide characters take two, combining ones none."""
    return sum(_columns(char) for char in text)


def escaped(text: str) -> str:
    """Text fit for any output: control characters become `\\x1b` and the like; line breaks and tabs stay.

    Escaped are the control characters of ASCII and Latin-1 (an escape sequence can hide or forge a line), characters
    that reverse the direction of writing, Unicode's line separators, and the halves of characters that stand for bytes
    of a file name that is not UTF-8.
    """
    return _COMMANDS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def shortened(value: Any) -> str:
    """A plain value as JSON, cut after 60 letters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images; 1 box, 2 boxes."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def shown(names: Sequence[str], most: int = 5) -> str:
    """The first names with commas between them, and how many more there are; "" for none."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def align_columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """One line a row, two spaces between columns: the first column left, all others right. No rows: no lines.

    The lines are for files, too: letters that the console cannot show are replaced only as they are written there.
    Raises `ValueError` when rows differ in length.
    """
    rows = [[escaped(cell) for cell in row] for row in rows]
    widths = [max(display_width(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(_pad(cell, widths[i], i > 0) for i, cell in enumerate(row)) for row in rows]


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _pad(cell: str, width: int, is_right: bool) -> str:
    space = " " * (width - display_width(cell))
    return space + cell if is_right else cell + space
