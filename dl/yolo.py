"""YOLO labels, `class cx cy w h` as shares of the image, and the `data.yaml` that names the classes.

A line may also be a polygon (class and three or more points): its box is taken. A label file that is empty or missing
is an image without objects.

Shares come rounded, to six digits by most writers, so x1 = (cx - w/2) W is known to .75e-6 W pixels. Of all pixel
coordinates within that distance the one with the fewest decimals is taken: whole numbers come back exactly from six
digits in any image up to 60,000 pixels, one decimal up to 66,000, two to 6,600, three to 660; with eight digits a
hundred times as much. No coordinate moves further than its own rounding has moved it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from config.checks import LONGEST_CLASS_NAME, LONGEST_PATH
from config.errors import UserError, reading
from dl.annotations import SHARE_TOLERANCE, Written, WrittenObject, number_hint, refuse_too_many, to_number
from dl.faults import DataFault, excerpt, name_fault
from dl.files import MOST_OF_ANNOTATION, MOST_OF_YAML, read_text

LABEL_SUFFIXES = frozenset({".txt"})
YAML_SUFFIXES = frozenset({".yaml", ".yml"})
_FEWEST_DIGITS, _MOST_DIGITS = 6, 12  # fewer are a writer's stripped zeros, more are float64's own noise
_NOTHING = ("", "null", "Null", "NULL", "~")


@dataclass(frozen=True)
class DataYaml:
    """What a `data.yaml` says. `splits`: name as written -> folders and lists, as written."""

    path: Path
    names: dict[int, str]
    root: str = ""  # its `path:`
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    has_keypoints: bool = False  # lines go on behind the box


def read_data_yaml(path: Path) -> DataYaml:
    """Read a `data.yaml`. Raises `UserError` with the path: no yaml, no names, names that disagree with `nc`.

    Every value that is used must be plain text: a list of aliases of lists, which takes a kilobyte on the disk, would
    take gigabytes as text.
    """
    content = _parse(path)
    if not isinstance(content, Mapping) or "names" not in content:
        raise UserError(f"{path}: names no classes; write e.g. names: [cat, dog]")
    names = _names(content["names"], path)
    count = _plain(content.get("nc", ""), "nc", path)
    if count not in _NOTHING and count != str(len(names)):
        raise UserError(f"{path}: nc says {excerpt(count)}, but names lists {len(names)} classes; mend one of them")
    splits = {}
    for key in ("train", "val", "validation", "valid", "test"):
        value = content.get(key, "")
        entries = tuple(_plain(entry, key, path) for entry in (value if isinstance(value, list) else [value]))
        if any(entry not in _NOTHING for entry in entries):
            splits[key] = entries
    root = _plain(content.get("path", ""), "path", path)
    return DataYaml(path, names, "" if root in _NOTHING else root, splits, "kpt_shape" in content)


def find_data_yaml(folder: Path) -> Path | None:
    """`data.yaml`, else the one yaml of the folder that names classes and splits; None for none or several."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in YAML_SUFFIXES)
    usual = next((name for name in names if name.lower() in ("data.yaml", "data.yml")), None)
    if usual:
        return folder / usual
    found = [folder / name for name in names if not name.startswith(".") and _is_data_yaml(folder / name)]
    return found[0] if len(found) == 1 else None


def read_yolo(path: Path, names: Mapping[int, str], size: tuple[int, int], has_keypoints: bool = False) -> Written:
    """Read one label file of an image of (width, height) `size`. Raises `DataFault` with path and line."""
    try:
        lines = read_text(path, MOST_OF_ANNOTATION).splitlines()
    except UserError as error:
        if not os.path.exists(path):
            return Written(None, (), is_missing=True)
        raise DataFault(str(error)) from None
    refuse_too_many(len(lines), path)
    objects: list[WrittenObject] = []
    outlines = 0
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}: line {number}"
        words = words[:5] if has_keypoints else words
        values = _numbers(words, where)
        outlines += len(values) > 5
        objects.append(WrittenObject(_class_name(values[0], names, where), _box(words, values[1:], size), False))
    return Written(None, tuple(objects), outlines)


def looks_like_labels(path: Path) -> bool:
    """Whether the first line of a text that is not empty reads as a label."""
    try:
        lines = [line for line in read_text(path, MOST_OF_ANNOTATION).splitlines() if line.strip()]
        return bool(lines) and bool(_numbers(lines[0].split(), ""))
    except UserError:
        return False


def _parse(path: Path) -> Any:
    text = read_text(path, MOST_OF_YAML)
    try:
        with reading(path, "a yaml"):
            return yaml.load(text, Loader=_PlainLoader)
    except UserError as error:
        if not isinstance(cause := error.__cause__, yaml.YAMLError):
            raise
        mark = getattr(cause, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{path}: the yaml does not parse{place} ({excerpt(getattr(cause, 'problem', None) or str(cause))})"
        ) from None


class _PlainLoader(yaml.BaseLoader):
    """Every value stays text, so that classes may be called no, on, 007 or 2024-01-01.

    A key stands only once at the top and in `names`; other sections are not used.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if isinstance(node, yaml.MappingNode):
            sections = [node, *(value for key, value in node.value if key.value == "names")]
            for section in sections:
                _refuse_twice(section)
        return node


def _refuse_twice(node: yaml.Node) -> None:
    """Raise `yaml.YAMLError` for a key that stands twice in a mapping; `<<` (merge) may."""
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    seen = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value} stands twice", problem_mark=key.start_mark
            )
        seen.add(key.value)


def _is_data_yaml(path: Path) -> bool:
    try:
        content = _parse(path)
    except UserError:
        return False
    return isinstance(content, Mapping) and "names" in content and ("train" in content or "val" in content)


def _names(value: Any, path: Path) -> dict[int, str]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else [])
    try:
        names = {int(number): _plain(name, "names", path, LONGEST_CLASS_NAME) for number, name in pairs}
    except UserError:
        raise
    except ValueError:  # UserError is one, too
        raise UserError(f"{path}: names must be a list, or numbers with names (0: cat)") from None
    if not names or not all(names.values()) or min(names) < 0 or len(names) < len(value):  # {0: a, 00: b}
        raise UserError(
            f"{path}: names has {'an empty or misnumbered' if names else 'no'} class; write names: [cat, dog]"
        )
    return dict(sorted(names.items()))


def _plain(value: Any, key: str, path: Path, longest: int = LONGEST_PATH) -> str:
    """The value, stripped: one text without line breaks in it. Raises `UserError` for a list, a mapping, other text."""
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} holds a list or a mapping where one value belongs; write plain text there")
    value = value.strip()  # a block scalar (path: >) ends with a line break
    if fault := name_fault(value, longest):
        raise UserError(f"{path}: {key}: {fault}")
    return value


def _numbers(words: list[str], where: str) -> list[float]:
    values = []
    for word in words:
        value = to_number(word)
        if value is None:
            raise DataFault(f"{where}: '{excerpt(word)}' is not a number{number_hint(word)}")
        values.append(value)
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        hint = "; is the sixth a score? labels have none" if len(values) == 6 else ""
        raise DataFault(
            f"{where}: {len(values)} columns, wanted 5 (class cx cy w h) or class and 3 or more points{hint}"
        )
    strange = [word for word, value in zip(words[1:], values[1:], strict=True) if not _is_share(value)]
    if strange:
        raise DataFault(
            f"{where}: {excerpt(strange[0])} lies outside 0 to 1; coordinates are shares of the image's width and "
            "height, so divide pixels by them"
        )
    return values


def _is_share(value: float) -> bool:
    return -SHARE_TOLERANCE <= value <= 1 + SHARE_TOLERANCE


def _class_name(value: float, names: Mapping[int, str], where: str) -> str:
    if value not in names:
        known = f"{min(names)} ({names[min(names)]}) to {max(names)} ({names[max(names)]})"
        hint = "; do the labels count classes from 1 instead of 0?" if value == max(names) + 1 else ""
        hint = "; the class is the first number of a line, and whole" if not value.is_integer() else hint
        raise DataFault(f"{where}: class {value:g} is not in the class list, which goes from {known}{hint}")
    return names[int(value)]


def _box(words: list[str], shares: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """xyxy in pixels."""
    if len(shares) == 4:
        cx, cy, width, height = shares
        sides = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        share_of_error = 0.75  # half a unit of the last digit for the centre, a quarter for half the side
    else:
        xs, ys = shares[0::2], shares[1::2]
        sides = (min(xs), min(ys), max(xs), max(ys))
        share_of_error = 0.5
    digits = max(_num_digits(word) for word in words[1:])
    error = share_of_error * 10.0 ** -min(max(digits, _FEWEST_DIGITS), _MOST_DIGITS)
    x1, y1, x2, y2 = (_roundest(side * extent, error * extent) for side, extent in zip(sides, size * 2, strict=True))
    return x1, y1, x2, y2


def _num_digits(word: str) -> int:
    """Decimals of a number as text: .25 -> 2, 1e-05 -> 5."""
    mantissa, _, exponent = word.lower().partition("e")
    return len(mantissa.partition(".")[2]) - int(exponent or 0)


def _roundest(value: float, error: float) -> float:
    """The number with the fewest decimals within `error` (and float64's own noise) of `value`."""
    error = error * (1 + 1e-6) + 1e-12
    for decimals in range(_MOST_DIGITS):
        candidate = float(np.round(value, decimals))
        if abs(candidate - value) <= error:
            return candidate
    return value
