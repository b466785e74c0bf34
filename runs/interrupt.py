"""Ctrl-C, SIGTERM and SIGHUP: the training stops at the next point from which it can be resumed."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# SIGHUP means that the terminal or the ssh connection was closed. Windows does not have this signal.
WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal asks the training to stop. The text is its name; the trainer saves and adds the position."""


class InterruptHandler:
    """Within the block, the first signal is stored until `stop_if_requested` is called. A second one stops at once.

    Signals that the process ignores stay ignored (nohup ignores SIGHUP). In other threads than the main thread this
    class does nothing, because Python handles signals only in the main thread.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a C library installed a handler
                    self._before[number] = signal.signal(number, self._store)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        is_unanswered, self.signal_name = self.signal_name is not None and kind is None, None
        if is_unanswered:  # the signal came after the last check: the caller must not continue with its next task
            raise KeyboardInterrupt

    def stop_if_requested(self, *_progress: int) -> None:
        """Raise `Interrupted` if a signal has arrived. Call this only where the training can be saved."""
        if self.signal_name is not None:
            raise Interrupted(self.signal_name)

    def _store(self, number: int, frame: FrameType | None) -> None:
        """Store the signal. Do not print here: the signal may have interrupted a print, which is not reentrant."""
        if self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
