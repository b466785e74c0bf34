"""How a config field is declared, and how its value is read from Python or from text.

A field has an annotation, a default and a description. The annotation decides which types are accepted: `coerce` takes
Python values (recipes, overrides), `parse` takes text (`--set FIELD=VALUE`, value tags). Both raise `UserError`.
"""

import dataclasses
import difflib
import itertools
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from config.errors import UserError

Check = Callable[[Any], "str | None"]  # a value -> what is wrong with it, or None

# What a changed field means for a run that has begun: another training (resuming is refused), another schedule
# (resuming is allowed and logged), other data (the trainer compares image names and classes, not paths), or nothing.
Alters = Literal["training", "schedule", "data", "nothing"]

BOOL_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
# The history of all epochs is written again after each epoch, so a longer training would spend its time on writing. The
# longest published schedules of detectors have 1,000 epochs.
MOST_EPOCHS = 100_000
MOST_NAMES = 10_000_000  # in a list; no data set has more images
LONGEST_SHOWN = 120  # letters of a value in a message: enough to recognise the value, and still readable
MOST_LISTED = 50  # names in a message; a data set usually has fewer classes
TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "a dictionary",
    type(None): "none",
}


class Stored(str):
    """A text that stands for an object. The type of a field derives from it: see `config.parts.PartText`."""

    @classmethod
    def of(cls, value: Any) -> "Stored":
        """The text of an object. Raises `UserError` if it cannot be stored."""
        raise NotImplementedError

    @classmethod
    def list_of(cls, text: str) -> "tuple[Stored, ...]":
        """The texts in a list that was written on the command line."""
        raise NotImplementedError


def declare(
    default: Any,
    doc: str,
    check: Check | None = None,
    *,
    alters: Alters = "training",
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """A dataclass field: its default (or `dict`, for a fresh one), its meaning and unit, and a check of the value.

    `aliases`: earlier words for a value -> the word that is stored now.
    """
    metadata = {"doc": doc, "check": check, "alters": alters, "aliases": aliases}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def nearest(word: str, known: Iterable[str]) -> str:
    """A space and `(did you mean 'X'?)` for the closest known word, or the empty string."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""


def shown_value(value: Any) -> str:
    """A value for a message: as Python writes it, without control characters, and cut when it is very long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write such a number
        text = "a number of more than 4300 digits"
    return cut(text)


def cut(text: str) -> str:
    """A text for a message, cut when it is very long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} letters)"


def listed(names: Sequence[Any]) -> str:
    """Names with commas between them. Of a very long list: the first names, and how many more there are."""
    more = len(names) - MOST_LISTED
    return ", ".join(map(str, names[:MOST_LISTED])) + (f" and {more:,} more" if more > 0 else "")


def coerce(name: str, value: Any, annotation: Any) -> Any:
    """`value` in the type of the annotation: lists become tuples, ints become floats, devices and paths become text.

    Raises `UserError` with the field, the value and the expected type.
    """
    try:
        return _coerce(value, annotation)
    except UserError as error:  # it says what is wrong
        raise UserError(f"{name}={shown_value(value)}: {error}") from None
    except (TypeError, ValueError, OverflowError):
        kind = type(value).__name__
        raise UserError(f"{name}={shown_value(value)}: must be {describe(annotation)}, not {kind}") from None


def parse(name: str, text: str, annotation: Any) -> Any:
    """A value from text: `320`, `384,640`, `0-4,9`, `none`, `yes`, `a,b,c`. Raises `UserError` as `coerce` does."""
    shown = text if text.isprintable() and len(text) <= LONGEST_SHOWN else shown_value(text)
    try:
        return _coerce(_parse(text.strip(), annotation), annotation)
    except UserError as error:  # it says what is wrong
        raise UserError(f"{name}={shown}: {error}") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{name}={shown}: must be {describe(annotation)}") from None


def describe(annotation: Any) -> str:
    """The annotation in words for an error message."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is tuple and args[-1] is Ellipsis:
        numbers = f"a list of at most {MOST_EPOCHS:,} whole numbers, e.g. 0-4,9"
        return {int: numbers, str: "a list of names"}.get(args[0], "a list of classes, e.g. MixUp(probability=0.1)")
    if origin is tuple:
        return f"{len(args)} values ({', '.join(describe(arg) for arg in args)})"
    return TYPE_WORDS.get(origin or annotation, "a class and its values, e.g. DetectionHead()")


def _coerce(value: Any, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _first_that_fits(value, args, _coerce)
    if origin is tuple:
        return _coerce_tuple(value, args)
    if origin is dict:
        return {_coerce(key, args[0]): _coerce(entry, args[1]) for key, entry in dict(value).items()}
    if isinstance(annotation, type) and issubclass(annotation, Stored):
        return annotation.of(value)
    if annotation is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif annotation is str and type(value).__name__ == "device":
        value = str(value)  # recipes of the assignment write torch.device("cuda:0"); config does not import torch
    elif type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()
    if annotation is float and type(value) is int:
        value = float(value)
    if not isinstance(value, annotation) or (annotation is not bool and isinstance(value, bool)):
        raise TypeError
    if annotation is float and not math.isfinite(value):
        raise ValueError
    return value


def _coerce_tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, dict, set, frozenset)):
        raise TypeError  # a set has no order, and the order of classes is their numbering
    if args == (int, int) and type(value) is int:
        value = (value, value)  # inputShape=320 is square
    if args[-1] is not Ellipsis:
        return tuple(_coerce(item, arg) for item, arg in zip(itertools.islice(value, 100), args, strict=True))
    most = MOST_EPOCHS if args[0] is int else MOST_NAMES
    items = tuple(_coerce(item, args[0]) for item in itertools.islice(value, most + 1))  # no more: it may have no end
    if len(items) > most:
        raise UserError(f"holds more than {most:,} values, the most that a list may have; write a shorter one")
    return items


def _parse(text: str, annotation: Any) -> Any:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in args:
            return None
        if str in args and ("/" in text or "\\" in text or text.endswith(".txt")):
            return text  # the field takes names or a file that lists them: this is a file
        return _first_that_fits(text, [arg for arg in args if arg is not type(None)], _parse)
    if origin is tuple:
        return _parse_tuple(text, args)
    if origin is dict:
        return {key.strip(): _parse(entry, args[1]) for key, entry in (p.split(":", 1) for p in text.split(","))}
    if annotation is bool:
        if text.lower() not in BOOL_WORDS:
            raise ValueError
        return BOOL_WORDS[text.lower()]
    return annotation.of(text) if issubclass(annotation, Stored) else annotation(text)


def _parse_tuple(text: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if issubclass(args[0], Stored):
        return args[0].list_of(text)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if args == (int, ...):
        ranges = []
        for part in parts if text.lower() != "none" else ():
            first, dash, last = part.partition("-")  # `0-4` is 0, 1, 2, 3, 4
            ranges.append(range(int(first), int(last if dash else first) + 1))
            if not ranges[-1]:  # it would name no number, without a warning
                raise UserError(f"the range {cut(part)} runs backwards; write {cut(last)}-{cut(first)}")
        return tuple(itertools.islice(itertools.chain(*ranges), MOST_EPOCHS + 1))  # a longer list is refused afterwards
    if args == (int, int) and len(parts) == 1:
        parts = parts * 2
    wanted = [args[0]] * len(parts) if args[-1] is Ellipsis else list(args)
    return tuple(_parse(part, arg) for part, arg in zip(parts, wanted, strict=True))


def _first_that_fits(value: Any, options: Iterable[Any], convert: Callable[[Any, Any], Any]) -> Any:
    for option in options:
        try:
            return convert(value, option)
        except UserError:  # it says what is wrong
            raise
        except (TypeError, ValueError):
            continue
    raise TypeError
