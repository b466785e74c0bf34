"""A dictionary that cannot change, for the configs that are checked."""

from typing import Any, NoReturn

from config.errors import UserError


class FrozenDict(dict):
    """A dict that refuses changes, and still is one for json, pickle, deepcopy and `isinstance`."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError("this config is checked and frozen; pass overrides to load_config instead")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type, tuple[dict]]:
        return (FrozenDict, (dict(self),))
