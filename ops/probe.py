"""Named look-outs inside the arithmetic: `probe("tal.metric", metric)` where one would otherwise print by hand.

Free when nobody listens: one comparison with None. The names are stable; `docs/probes.md` lists them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

Listener = Callable[[str, Tensor], None]

_listener: Listener | None = None


def probe(name: str, value: Tensor) -> Tensor:
    """Show `value` to the listener, if there is one, and return it unchanged."""
    if _listener is not None:
        _listener(name, value)
    return value


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, call `listener(name, tensor)` at every look-out. Blocks nest: the inner one listens."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
