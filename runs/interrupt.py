"""Ctrl-C, SIGTERM and SIGHUP ask a training to leave; it answers where it can be gone on from."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# SIGHUP: the terminal or the ssh connection was closed. Windows has no such signal.
WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """The training was asked to leave and all of it is saved; the text says what asked, and how far it came."""


class Interrupts:
    """Within the block, the first signal is remembered until `leave_if_asked`, a second one leaves at once.

    Signals that the process ignores stay ignored (with nohup SIGHUP). Outside the main thread, where Python takes no
    signals, nothing happens.
    """

    def __init__(self) -> None:
        self.asked_by: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by another library in C
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        came_late, self.asked_by = self.asked_by is not None and kind is None, None
        if came_late:  # when all was done and nobody asked any more: whoever trained must not go on to the next thing
            raise KeyboardInterrupt

    def leave_if_asked(self, *_progress: int) -> None:
        """Raise `Interrupted` when a signal has come. To be called only where all is in a state to be saved."""
        if self.asked_by is not None:
            raise Interrupted(self.asked_by)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Nothing is said here: a print that was just interrupted cannot be printed into."""
        if self.asked_by is not None:
            raise KeyboardInterrupt
        self.asked_by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
