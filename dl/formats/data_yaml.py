"""Read `data.yaml`, the file that names the classes and splits of a YOLO data set."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from config.checks import LONGEST_CLASS_NAME, LONGEST_PATH
from config.errors import UserError, reading
from dl.files import MAX_YAML_BYTES, excerpt, name_error, read_text

_YAML_SUFFIXES = frozenset({".yaml", ".yml"})
_NULL = ("", "null", "Null", "NULL", "~")


@dataclass(frozen=True)
class DataYaml:
    """The content of a `data.yaml`. `splits`: name as written -> folders and list files, as written."""

    path: Path
    names: dict[int, str]
    root: str = ""  # its `path:`
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    has_keypoints: bool = False  # label lines have more columns after the box


def read_data_yaml(path: Path) -> DataYaml:
    """Read a `data.yaml`. Raises `UserError` with the path: invalid yaml, no names, names that disagree with `nc`.

    Every value that is used must be plain text. Nested lists of yaml aliases have a kilobyte on disk but would need
    gigabytes as text.
    """
    content = _parse(path)
    if not isinstance(content, Mapping) or "names" not in content:
        raise UserError(f"{path}: there are no class names; write e.g. names: [cat, dog]")
    names = _names(content["names"], path)
    count = _plain_text(content.get("nc", ""), "nc", path)
    if count not in _NULL and count != str(len(names)):
        raise UserError(f"{path}: nc is {excerpt(count)}, but names has {len(names)} classes; correct one of them")
    splits = {}
    for key in ("train", "val", "validation", "valid", "test"):
        value = content.get(key, "")
        entries = tuple(_plain_text(entry, key, path) for entry in (value if isinstance(value, list) else [value]))
        if any(entry not in _NULL for entry in entries):
            splits[key] = entries
    root = _plain_text(content.get("path", ""), "path", path)
    return DataYaml(path, names, "" if root in _NULL else root, splits, "kpt_shape" in content)


def find_data_yaml(folder: Path) -> Path | None:
    """`data.yaml`, else the only yaml file of the folder with class names and splits; None for none or several."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in _YAML_SUFFIXES)
    usual = next((name for name in names if name.lower() in ("data.yaml", "data.yml")), None)
    if usual:
        return folder / usual
    found = [folder / name for name in names if not name.startswith(".") and _is_data_yaml(folder / name)]
    return found[0] if len(found) == 1 else None


def _is_data_yaml(path: Path) -> bool:
    try:
        content = _parse(path)
    except UserError:
        return False
    return isinstance(content, Mapping) and "names" in content and ("train" in content or "val" in content)


def _parse(path: Path) -> Any:
    text = read_text(path, MAX_YAML_BYTES)
    try:
        with reading(path, "a yaml"):
            return yaml.load(text, Loader=_TextLoader)
    except UserError as error:
        if not isinstance(cause := error.__cause__, yaml.YAMLError):
            raise
        mark = getattr(cause, "problem_mark", None)
        place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(
            f"{path}: the yaml is invalid{place} ({excerpt(getattr(cause, 'problem', None) or str(cause))})"
        ) from None


class _TextLoader(yaml.BaseLoader):
    """Keeps every value as text, so that classes may have names such as no, on, 007 or 2024-01-01.

    Duplicate keys at the top level and in `names` are errors. Other sections are not used.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if isinstance(node, yaml.MappingNode):
            sections = [node, *(value for key, value in node.value if key.value == "names")]
            for section in sections:
                _refuse_duplicate_keys(section)
        return node


def _refuse_duplicate_keys(node: yaml.Node) -> None:
    """Raise `yaml.YAMLError` for a duplicate key in a mapping; the merge key `<<` may be repeated."""
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    known = set()
    for key in keys:
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            continue
        if key.value in known:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key.value} occurs twice", problem_mark=key.start_mark
            )
        known.add(key.value)


def _names(value: Any, path: Path) -> dict[int, str]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value if isinstance(value, list) else [])
    try:
        names = {int(number): _plain_text(name, "names", path, LONGEST_CLASS_NAME) for number, name in pairs}
    except UserError:
        raise
    except ValueError:  # after UserError, which is a subclass of ValueError
        raise UserError(f"{path}: names must be a list, or numbers with names (0: cat)") from None
    if not names or not all(names.values()) or min(names) < 0 or len(names) < len(value):  # {0: a, 00: b}
        problem = "an empty class name or a wrong number" if names else "no class"
        raise UserError(f"{path}: names has {problem}; write names: [cat, dog]")
    return dict(sorted(names.items()))


def _plain_text(value: Any, key: str, path: Path, max_length: int = LONGEST_PATH) -> str:
    """The value, stripped: one line of text. Raises `UserError` for a list, a mapping or invalid text."""
    if not isinstance(value, str):
        raise UserError(f"{path}: {key} has a list or a mapping where a single value is needed; write plain text")
    value = value.strip()  # a block scalar (path: >) ends with a line break
    if error := name_error(value, max_length):
        raise UserError(f"{path}: {key}: {error}")
    return value
