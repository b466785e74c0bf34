"""How much work a function does, whatever the speed of the machine: calls that the interpreter makes in it."""

import sys
from collections.abc import Callable
from typing import Any


def num_calls(function: Callable, *args: Any) -> int:
    """Calls of Python functions and of built-in ones while `function(*args)` runs."""
    count = 0

    def note(_frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function(*args)
    finally:
        sys.setprofile(before)
    return count
