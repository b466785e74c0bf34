"""The base class of ModelConfig: fields are checked when they are set, pinned by the command line, and frozen."""

import copy
import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from config.checks import name_or_path, texts_of
from config.errors import UnknownField, UserError
from config.fields import coerce, nearest, shown_value
from config.training import FIELD_GROUPS

Config = TypeVar("Config", bound="CheckedConfig")

_FROZEN_TEXT = "this config is checked and frozen; pass overrides to load_config instead"


class Presets(NamedTuple):
    """Values from the command line for the configs that a recipe makes."""

    defaults: Mapping[str, Any]  # a new config starts with them; the recipe may change them
    pinned: Mapping[str, Any]  # nothing changes them


# Set by `presets`, only while a recipe runs. Why it is not a parameter: docs/decisions/0026.
_NO_PRESETS = Presets(MappingProxyType({}), MappingProxyType({}))
_presets: ContextVar[Presets] = ContextVar("_presets", default=_NO_PRESETS)


@contextmanager
def presets(defaults: Mapping[str, Any], pinned: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a new config starts with `defaults`, and the fields in `pinned` keep their values.

    So tags and `--set` have precedence over the recipe while it runs, and what a recipe computes from a field (a tenth
    of `baseLearningRate`, a file name with `phase` in it) uses the final value.
    """
    token = _presets.set(Presets(defaults, pinned))
    try:
        yield
    finally:
        _presets.reset(token)


class FrozenDict(dict):
    """A dict that refuses changes. For json, pickle, deepcopy and `isinstance` it is a dict."""

    def __setitem__(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(_FROZEN_TEXT)

    __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = __setitem__  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return (FrozenDict, (dict(self),))


class CheckedConfig:
    """A dataclass whose fields are declared with `config.fields.declare`. It can change until it is `frozen`."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        self.set_fields(_presets.get().defaults)
        for name in FIELD_GROUPS:
            if getattr(self, name) != type(self).field_default(name):  # then it is pinned
                self._set_group(name)  # before the lines of the recipe, which have precedence

    def __setattr__(self, name: str, value: Any) -> None:
        if self.is_frozen:
            raise UserError(f"{name}={shown_value(value)}: {_FROZEN_TEXT}")
        checked, pinned = type(self).checked_value(name, value), _presets.get().pinned
        if name in pinned:
            checked = pinned[name]
        elif isinstance(value, list):
            checked = list(checked)  # a recipe may extend its list: mcfg.classList += [...]; freezing makes a tuple
        is_new_group = name in FIELD_GROUPS and self.__dict__.get(name, checked) != checked
        object.__setattr__(self, name, checked)
        if is_new_group:
            self._set_group(name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle look for their hooks this way
            raise AttributeError(name)
        raise UnknownField(type(self).unknown_field(name))

    def _set_group(self, name: str) -> None:
        """Set the fields of a group. Later lines of a recipe may change them, and `--set` has precedence over both."""
        is_modern = getattr(self, name) == "modern"
        for member, value in FIELD_GROUPS[name].items():
            setattr(self, member, value if is_modern else type(self).field_default(member))

    def set_fields(self, values: Mapping[str, Any]) -> None:
        """Set several fields. Raises `UserError` on an unknown or wrong field."""
        for name, value in values.items():
            setattr(self, name, value)

    @property
    def is_frozen(self) -> bool:
        return "_frozen" in self.__dict__

    def frozen(self: Config) -> Config:
        """A copy that refuses all changes, also of its dictionaries."""
        frozen = copy.copy(self)
        for name in self.field_names():
            value = self.checked_value(name, copy.deepcopy(self.__dict__[name]))
            object.__setattr__(frozen, name, FrozenDict(value) if isinstance(value, dict) else value)
        object.__setattr__(frozen, "_frozen", True)
        return frozen

    def to_dict(self) -> dict[str, Any]:
        """Field -> plain value, ready for JSON. `from_dict` is the inverse."""
        return json.loads(json.dumps({name: self.__dict__[name] for name in self.field_names()}))

    @classmethod
    def from_dict(cls: type[Config], values: Mapping[str, Any]) -> Config:
        """The frozen config with these values. Raises `UserError` on an unknown or wrong field."""
        config = cls()
        groups = {name: value for name, value in values.items() if name in FIELD_GROUPS}
        config.set_fields({**groups, **values})  # groups first, because they set other fields
        return config.frozen()

    def with_values(self: Config, **values: Any) -> Config:
        """A frozen copy with other values in some fields. Raises `UserError` on an unknown or wrong field."""
        return self.from_dict({**self.to_dict(), **values})

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Every field, in the order in which it is documented."""
        return tuple(cls.__dataclass_fields__)

    @classmethod
    def field_doc(cls, name: str) -> str:
        """What a field means."""
        return cls.__dataclass_fields__[name].metadata["doc"]

    @classmethod
    def field_alters(cls, name: str) -> str:
        """What a change of the field does to a run that has begun: see `config.fields.Alters`."""
        return cls.__dataclass_fields__[name].metadata["alters"]

    @classmethod
    def field_default(cls, name: str) -> Any:
        """The value of a field that is not set."""
        default = cls.__dataclass_fields__[name].default
        return cls.checked_value(name, {} if default is dataclasses.MISSING else default)

    @classmethod
    def field_type(cls, name: str) -> Any:
        """The annotation of a field. Raises `UserError` with the nearest name for an unknown field."""
        if name not in cls.__dataclass_fields__:
            raise UnknownField(cls.unknown_field(name))
        return cls.__dataclass_fields__[name].type

    @classmethod
    def unknown_field(cls, name: str) -> str:
        """The message for a field that does not exist."""
        guess = nearest(name, cls.__dataclass_fields__)
        return f"{name}: no such config field{guess}; `python mars.py --fields` lists them all"

    @classmethod
    def checked_value(cls, name: str, value: Any) -> Any:
        """`value` in the type of field `name`. Raises `UserError` for an unknown field, and a wrong type or value."""
        value = cls.typed_value(name, value)
        check = cls.__dataclass_fields__[name].metadata["check"]
        complaint = next(filter(None, map(name_or_path, texts_of(value))), None) or (check and check(value))
        if complaint:
            raise UserError(f"{name}={shown_value(value)}: {complaint}")
        return value

    @classmethod
    def typed_value(cls, name: str, value: Any) -> Any:
        """`value` in the type of field `name`, but not checked. Raises `UserError` for an unknown field or type."""
        annotation = cls.field_type(name)
        if value is None and typing.get_origin(annotation) is dict:
            value = {}
        return coerce(name, cls.standard_word(name, value), annotation)

    @classmethod
    def standard_word(cls, name: str, value: Any) -> Any:
        """The word that replaced an older word for the same value of a field; any other value unchanged."""
        aliases = cls.__dataclass_fields__[name].metadata["aliases"]
        return aliases.get(value, value) if isinstance(value, str) else value
