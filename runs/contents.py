"""What a checkpoint and the bundle of a bad step hold, part by part: anybody can write a file with a right seal."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from config.compare import config_from_text
from config.errors import UserError
from model.unpickle import refusing
from ops.precision import DTYPES
from runs.origin import checked_origin

LARGEST_COUNT = 10**9  # of epochs, steps and images: more than any training has, and far below what overflows
Check = Callable[[Any], bool]
_JSON = ("config", "history")  # the parts that are JSON


class Contents(dict[str, Any]):
    """The parts of a sealed file; one that is missing is the file's fault, not a mistake of ours."""

    def __init__(self, path: Path, parts: Mapping[str, Any]):
        super().__init__(parts)
        self.path = path

    def __missing__(self, part: str) -> Any:
        raise UserError(f"{self.path}: lacks the part '{part}'; take a file that this version of Mars wrote")


def check_contents(contents: Contents, checks: Mapping[str, Check]) -> None:
    """Raise `UserError` for the first part that is there and is not of its kind."""
    for part in [part for part in checks if part in contents]:
        place = f"{contents.path}: its part '{part}'"
        try:
            with refusing(place, "JSON" if part in _JSON else "what Mars writes there"):
                is_right = checks[part](contents[part])
        except UserError as error:
            raise error if str(error).startswith(place) else UserError(f"{place}: {error}") from error
        if not is_right:
            raise UserError(f"{place} is of another type or range than what Mars writes there; take a whole file")


# The kinds of parts. They may raise anything for what is of another kind; `check_contents` turns it into a message.
def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def dict_of(check: Check) -> Check:
    """With texts as keys."""
    return lambda value: isinstance(value, dict) and all(is_text(key) and check(part) for key, part in value.items())


def dict_with(**checks: Check) -> Check:
    """With these keys at least."""
    return lambda value: isinstance(value, dict) and all(key in value and checks[key](value[key]) for key in checks)


def is_origin(value: Any) -> bool:
    return isinstance(value, dict) and checked_origin(value) is not None


def is_config(value: Any) -> bool:
    return is_text(value) and config_from_text(value) is not None


_is_row = dict_with(epoch=is_count, is_best=lambda value: type(value) is bool)


def is_history(value: Any) -> bool:
    return is_text(value) and list_of(_is_row)(json.loads(value))


def is_precision(value: Any) -> bool:
    return is_text(value) and value in DTYPES


# What every weights file says of itself.
ABOUT: dict[str, Check] = {
    "epoch": is_count,
    "fitness": or_none(is_number),
    "config": is_config,
    "class_list": list_of(is_text),
    "phase": is_text,
    "weights_origin": is_origin,
    "data": dict_of(is_text),
    "commit": is_text,
}
# What else a checkpoint holds, that is not checked by what takes it back.
STATE: dict[str, Check] = {
    "model": dict_of(is_tensor),
    "ema": or_none(dict_of(is_tensor)),
    "ema_steps": is_count,
    "teacher": or_none(is_text),
    "learned": list_of(dict_of(is_tensor)),
    "precision": is_precision,
    "best": or_none(is_number),
    "history": is_history,
    "spikes": dict_with(
        logs=dict_of(list_of(is_number)), count=is_count, worst=or_none(lambda value: len(list(value)) == 4)
    ),
    "progress": or_none(
        dict_with(
            batches=is_count,
            images=is_count,
            seconds=is_number,
            sums=dict_of(lambda value: True),
            counts=dict_of(is_count),
        )
    ),
    "gradients": or_none(list_of(or_none(is_tensor))),
    "pending": is_count,
}
