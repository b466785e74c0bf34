"""Ctrl-C, SIGTERM and SIGHUP ask a training to leave; it answers where it can be gone on from."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

# SIGHUP: the terminal or the ssh connection was closed. Windows has no such signal.
WATCHED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """The training was asked to leave and all of it is saved; the text says what asked, and how far it came."""


class InterruptHandler:
    """Within the block, the first signal is remembered until `stop_if_requested`, a second one leaves at once.

    Signals that the process ignores stay ignored (with nohup SIGHUP). Outside the main thread, where Python takes no
    signals, nothing happens.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "InterruptHandler":
        if threading.current_thread() is threading.main_thread():
            for number in WATCHED:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: set by another library in C
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
        came_late, self.signal_name = self.signal_name is not None and kind is None, None
        if came_late:  # when all was done and nobody asked any more: whoever trained must not go on to the next thing
            raise KeyboardInterrupt

    def stop_if_requested(self, *_progress: int) -> None:
        """Raise `Interrupted` when a signal has come. To be called only where all is in a state to be saved."""
        if self.signal_name is not None:
            raise Interrupted(self.signal_name)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        """Nothing is said here: a print that was just interrupted cannot be printed into."""
        if self.signal_name is not None:
            raise KeyboardInterrupt
        self.signal_name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
