"""Parts that a recipe adds, such as augmentations and losses: `mcfg.transforms = [MixUp(probability=0.1)]`.

A part is an object of a dataclass whose fields hold plain values. The config stores it as text, so that it can be
compared, saved and set on the command line: `MixUp(probability=0.1)`, or `cfgops.mine:Wave(height=2)` for a class that
is not one of Mars. The class is needed only where the part is built: evaluation works without it.

A config may come from a file of somebody else, so a text alone never names more than classes of Mars and of `cfgops`.
"""

import ast
import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

from config.errors import UserError, is_out_of_memory
from config.fields import Stored, nearest, shown_value

# Modules whose classes need no `module:` before their name.
OWN_MODULES = ("dl.transforms", "train.loss", "train.distilloss", "model.base.head", "model.base.components")
RECIPES = "cfgops."
# Class by its name in a text, for the classes whose objects were made in this process: by a recipe, or by a script.
_classes: dict[str, type] = {}
_NAME = re.compile(r"(?:(?P<module>[\w.]+):)?(?P<name>\w+)(?P<values>\(.*\))?", re.DOTALL)


class PartText(Stored):
    """The text of a part, `Class(field=value, ...)`; the type of config fields that hold parts."""

    @classmethod
    def of(cls, part: Any) -> "PartText":
        """The text of a dataclass object, of a class (with its default values) or of a text.

        Raises `UserError` if the text has another form, or if a field holds more than plain values.
        """
        if isinstance(part, str):
            name, values = _read(part)
        elif isinstance(part, type):
            name, values = _name_of(part), {}
        elif dataclasses.is_dataclass(part):
            name = _name_of(type(part))
            # All of them: if a default changes later, the text of an old checkpoint still has the old value.
            values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
        else:
            raise UserError(
                f"an object of {type(part).__name__} is no dataclass; Mars stores the name of the class and the values "
                "of its fields: write @dataclass(frozen=True) above the class, or give the class itself"
            )
        for field_name, value in values.items():
            if not _is_plain(value):
                raise UserError(
                    f"{name}: {field_name}={shown_value(value)} cannot be saved in the config; use numbers, texts, "
                    "true or false, none, and tuples, lists and dictionaries of them"
                )
        return cls(f"{name}({', '.join(f'{field_name}={value!r}' for field_name, value in values.items())})")

    @classmethod
    def list_of(cls, text: str) -> "tuple[PartText, ...]":
        """Split at the commas that are outside of parentheses, brackets and quotes: `A(x=(1, 2)),B()` -> two parts."""
        parts, depth, quote = [""], 0, ""
        for letter in text if text.lower() != "none" else "":
            if letter == "," and not depth and not quote:
                parts.append("")
                continue
            if letter in "\"'":
                quote = "" if letter == quote else quote or letter
            elif not quote:
                depth += (letter in "([{") - (letter in ")]}")
            parts[-1] += letter
        return tuple(cls.of(part) for part in parts if part.strip())

    def build(self, field: str, home: str, *arguments: Any, kind: type = object, **keywords: Any) -> Any:
        """The object: its class is called with `arguments`, `keywords` and the values of the text.

        A class without a module is looked for in the module `home`. Raises `UserError` with the config field and the
        class if it is missing, does not accept the values, or makes no `kind`.
        """
        name, values = _read(self)
        part_class = _classes.get(name) or _find_class(name, f"{field}={self}", home)
        # Before it is built: a config of somebody else may name any class of a recipe, with any values.
        if missing := _missing(part_class, kind):
            raise UserError(f"{field}={self}: a {kind.__name__} needs {', '.join(missing)}; add it to the class")
        try:
            return part_class(*arguments, **keywords, **values)
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{field}={self}: {error}") from error


class WordOrPart(PartText):
    """A word for one of Mars' own choices, such as `SGD`, or the text of a part with its module."""

    @classmethod
    def of(cls, part: Any) -> "WordOrPart":
        """The word as it is, or the text as in `PartText.of`."""
        return cls(part) if isinstance(part, str) and ":" not in part else cls(PartText.of(part))


def _find_class(name: str, setting: str, home: str) -> type:
    module_name, _, class_name = name.rpartition(":")
    if module_name and not module_name.startswith(RECIPES):
        raise UserError(
            f"{setting}: {module_name} was not loaded by the recipe; import it there, or move it to cfgops/"
        )
    try:
        module = importlib.import_module(module_name or home)
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{setting}: {module_name} cannot be imported ({error}); restore the file") from error
    classes = {key: value for key, value in vars(module).items() if isinstance(value, type) and key[0] != "_"}
    own = sorted(key for key, value in classes.items() if value.__module__ == module.__name__)
    if class_name not in own:
        raise UserError(
            f"{setting}: there is no class {class_name} in {module.__name__}{nearest(class_name, own)}; "
            f"it has {', '.join(own)}"
        )
    return classes[class_name]


def _missing(part_class: type, kind: type) -> list[str]:
    """What a class lacks to be a `kind`, which is a class or a protocol; empty if nothing."""
    if not getattr(kind, "_is_protocol", False):
        return [] if issubclass(part_class, kind) else [f"{kind.__name__} as its base class"]
    members = [key for key in vars(kind) if key[0] != "_" or key == "__call__"]
    # Not hasattr: every class itself can be called.
    present = {key for base in part_class.__mro__ for key in vars(base)}
    present |= set(getattr(part_class, "__dataclass_fields__", ()))
    return [key for key in members if key not in present]


def _name_of(part_class: type) -> str:
    """The name of a class in a text, which can be built from now on. Raises `UserError` for a class in a function."""
    if "<locals>" in part_class.__qualname__:
        raise UserError(f"{part_class.__name__} is defined inside a function; define it at the top level of its file")
    is_own = part_class.__module__ in OWN_MODULES
    name = part_class.__name__ if is_own else f"{part_class.__module__}:{part_class.__name__}"
    _classes[name] = part_class
    return name


def _read(text: str) -> tuple[str, Mapping[str, Any]]:
    """The name of the class, with its module if the text has one, and the values of the fields. Nothing is executed."""
    match = _NAME.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError
        call = ast.parse(f"{match['name']}{match['values'] or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        values = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        if None in values or len(values) < len(call.keywords):  # **values, or a field twice
            raise ValueError
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise UserError(
            f"{shown_value(text)}: expected the name of a class and plain values, e.g. MixUp(probability=0.1) or "
            "cfgops.mine:Wave(height=2)"
        ) from None
    name = f"{match['module']}:{match['name']}" if match["module"] not in (None, *OWN_MODULES) else match["name"]
    return name, {str(key): value for key, value in values.items()}


def _is_plain(value: Any) -> bool:
    try:
        return ast.literal_eval(repr(value)) == value
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False
