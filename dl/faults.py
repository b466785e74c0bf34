"""What is wrong with one file of a data set, or with a name in it."""

from config.checks import printable
from config.errors import UserError
from config.fields import shown_value
from ops.text import escaped


class DataFault(UserError):
    """An image or annotation that cannot be used; the message starts with the file's path."""


def name_fault(name: str, longest: int) -> str:
    """Why a name of a class or a file is refused, as the end of a message; "" for a name that is fit."""
    if len(name) > longest:
        return f"'{excerpt(name)}' has {len(name)} characters, and at most {longest} are allowed; write a shorter name"
    if complaint := printable(name):
        return f"{shown_value(name)} {complaint}"
    return ""


def excerpt(text: str) -> str:
    """Text of a file on one line of a message: line breaks as blanks, control characters escaped; cut at 60 letters."""
    line = " ".join(text.split())
    return escaped(line if len(line) <= 60 else f"{line[:57]}...")
