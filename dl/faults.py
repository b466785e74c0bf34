"""What is wrong with one file of a data set, or with a name in it."""

import re

from config.errors import UserError
from ops.text import escaped

LONGEST_CLASS_NAME = 200  # letters: a name stands in tables, plots and painted images; ImageNet's longest has 121
LONGEST_PATH = 4096  # letters, as Linux counts bytes: no file has a longer path
# Control characters and Unicode's line separators, which could forge a line of a log; and the halves of characters that
# stand for bytes which are not UTF-8, and cannot be written into any file.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class DataFault(UserError):
    """An image or annotation that cannot be used; the message starts with the file's path."""


def name_fault(name: str, longest: int) -> str:
    """Why a name of a class or a file is refused, as the end of a message; "" for a name that is fit."""
    if len(name) > longest:
        return f"'{excerpt(name)}' has {len(name)} characters, and at most {longest} are allowed; write a shorter name"
    if _UNFIT.search(name):
        return f"'{excerpt(name)}' holds a control character or bytes that are no text; write it with plain letters"
    return ""


def excerpt(text: str) -> str:
    """Text of a file for one line of a message: control characters escaped, cut after 60 letters."""
    line = " ".join(text.split())
    return escaped(line if len(line) <= 60 else f"{line[:57]}...")
