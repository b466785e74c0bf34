"""Probes: named intermediate tensors, such as `probe("tal.metric", metric)`, for tools that inspect a computation.

Without a listener a probe costs one comparison with None. The names are stable; `docs/probes.md` lists them.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from torch import Tensor

Listener = Callable[[str, Tensor], None]

_listener: Listener | None = None


def probe(name: str, value: Tensor) -> Tensor:
    """Pass `value` to the listener, if there is one, and return it unchanged."""
    if _listener is not None:
        _listener(name, value)
    return value


@contextmanager
def listening(listener: Listener) -> Generator[None, None, None]:
    """Within the block, call `listener(name, tensor)` at every probe. In nested blocks only the inner one is called."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
