"""Shapes and types of Mars are checked at each call of a test: the decorator behind the import hook of conftest.py.

It checks what jaxtyping's own `jaxtyped(typechecker=beartype)` checks, in a third of the time. That one binds the
arguments of every call, checks them twice, and opens a scope for axis names even where no annotation has a shape.

The private functions of `model.picklescan` are not checked: they run several times for each of the 15,000 instructions
of a checkpoint, and no other module calls them.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

JAXTYPED = jaxtyping.jaxtyped
UNCHECKED = ("model.picklescan", "_")  # module, first letters of the name
check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is accepted where a float is annotated


def checked(decorated: Any = None, *, typechecker: Any = check) -> Any:
    """A function, or the `__init__` of a dataclass, that checks arguments and result; other classes stay as they are.

    Stands in for `jaxtyping.jaxtyped` in what the import hook writes above every function and class.
    """
    if decorated is None:
        return functools.partial(checked, typechecker=typechecker)
    if not inspect.isclass(decorated):
        module, prefix = UNCHECKED
        is_unchecked = decorated.__module__ == module and decorated.__qualname__.startswith(prefix)
        return decorated if is_unchecked else _checked_function(decorated)
    if dataclasses.is_dataclass(decorated):
        decorated.__init__ = _checked_function(decorated.__init__)
    return decorated


def _checked_function(function: Callable) -> Callable:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError:  # a name that only the type checker imports: jaxtyping checks the other arguments
        return JAXTYPED(function, typechecker=check)
    with_types = check(function)
    if not any(map(_has_shape, hints.values())):
        return with_types

    @functools.wraps(function)
    def in_a_scope(*args: Any, **kwargs: Any) -> Any:
        with JAXTYPED("context"):  # one size for each axis name, in arguments and result
            return with_types(*args, **kwargs)

    return in_a_scope


def _has_shape(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(hint))
