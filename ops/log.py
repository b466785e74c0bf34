"""What is said while a command runs: on the console, in the run's mars.log, and as progress bars."""

import logging
import sys
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path

from ops.files import complaining, make_folder

RESULT = logging.INFO + 5  # what --quiet still shows

log = logging.getLogger("mars")
log.addHandler(logging.NullHandler())  # before start_log nothing is said, and the command line prints what went wrong


class ProgressBar:
    """A progress bar that is told how many of how many are done."""

    def __init__(self, title: str, quiet: bool):
        from tqdm import tqdm  # here, so that a mistake in the command answers at once

        # disable=None: no bar where the output is no terminal
        self.bar = tqdm(desc=title, leave=False, disable=True if quiet else None, dynamic_ncols=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        self.bar.total = total
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()


class LogFile(logging.FileHandler):
    """A full disk costs lines of the log and nothing else; what matters and cannot be written is said by its writer."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """No traceback for a line that could not be written."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def start_log(quiet: bool) -> None:
    """Say things on stdout from now on (only results when quiet), and remember them until `keep_log`."""
    console = logging.StreamHandler(sys.stdout)
    console.setLevel(RESULT if quiet else logging.INFO)
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # main prints errors, on stderr
    log.setLevel(logging.DEBUG)  # the file says a little more than the console
    log.addHandler(console)
    log.addHandler(_memory())


def keep_log(path: Path) -> None:
    """Write to the file `path`, too, what was said so far and all that follows."""
    with complaining(path):
        make_folder(path.parent)
        file = LogFile(path, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for memory in [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]:
        memory.setTarget(file)
        memory.flush()
        log.removeHandler(memory)
    log.addHandler(file)


def forget_log() -> None:
    """Close the files of `keep_log`: what is said from here on is remembered for the next one."""
    for handler in [handler for handler in log.handlers if isinstance(handler, LogFile)]:
        log.removeHandler(handler)
        handler.close()
    if not any(isinstance(handler, MemoryHandler) for handler in log.handlers):
        log.addHandler(_memory())


def _memory() -> MemoryHandler:
    return MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def end_log() -> None:
    """Close what `start_log` and `keep_log` opened."""
    for handler in [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)]:
        log.removeHandler(handler)
        handler.close()
