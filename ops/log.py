"""What is said while a command runs: on the console, in the run's mars.log, and as progress bars."""

import io
import logging
import os
import sys
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TextIO

from ops.files import make_folder, reporting_write_errors
from ops.text import escaped

RESULT = logging.INFO + 5  # what --quiet still shows

log = logging.getLogger("mars")
log.addHandler(logging.NullHandler())  # before start_log nothing is said, and the command line prints what went wrong


class Console(io.RawIOBase):
    """The bytes of stdout or stderr, which may go away while the program goes on: what cannot be written is lost.

    So a closed pipe (`| head -1`), a closed terminal or a full disk ends no training and leaves no file unfinished.
    """

    def __init__(self, raw: io.RawIOBase):
        self.raw = raw
        self.failure: OSError | None = None  # the first one

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, data: bytes | memoryview) -> int | None:
        try:
            return self.raw.write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


def protect_console() -> Console:
    """Replace stdout and stderr for the rest of the process, so that writing to them never raises; that of stdout.

    Letters that the console's encoding lacks become `\\u98de`. A stream that is closed (`>&-`) is opened on the null
    device: else the next file that is opened would get its number, and messages would be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one
    sys.stderr, _ = _guarded(2, sys.stderr)
    sys.stdout, console = _guarded(1, sys.stdout)
    return console


def _guarded(number: int, before: TextIO | None) -> tuple[io.TextIOWrapper, Console]:
    """A text stream for a file descriptor, with the encoding and the buffers of the stream that was `before`."""
    console = Console(open(number, "wb", buffering=0, closefd=False))  # noqa: SIM115
    is_direct = getattr(before, "write_through", False)  # python -u
    stream = io.TextIOWrapper(
        console if is_direct else io.BufferedWriter(console),  # type: ignore[arg-type]
        encoding=before.encoding if before else "utf-8",
        errors="backslashreplace",
        line_buffering=getattr(before, "line_buffering", True),
        write_through=is_direct,
    )
    return stream, console


class EscapingFormatter(logging.Formatter):
    """Lines without control characters: a name must neither command the terminal nor hide what was said."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class ProgressBar:
    """A progress bar that is told how many of how many are done."""

    def __init__(self, title: str, quiet: bool):
        from tqdm import tqdm  # here, so that a mistake in the command answers at once

        # disable=None: no bar where the output is no terminal
        self.bar = tqdm(desc=escaped(title), leave=False, disable=True if quiet else None, dynamic_ncols=True)

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
    """Say things on stdout from now on (only results when quiet), and remember them until `log_to_file`."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(EscapingFormatter())
    console.setLevel(RESULT if quiet else logging.INFO)
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # main prints errors, on stderr
    log.setLevel(logging.DEBUG)  # the file says a little more than the console
    log.addHandler(console)
    log.addHandler(_memory())


def log_to_file(path: Path) -> None:
    """Write to the file `path`, too, what was said so far and all that follows."""
    with reporting_write_errors(path):
        make_folder(path.parent)
        file = LogFile(path, encoding="utf-8")
    file.setFormatter(EscapingFormatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    for memory in [handler for handler in log.handlers if isinstance(handler, MemoryHandler)]:
        memory.setTarget(file)
        memory.flush()
        log.removeHandler(memory)
    log.addHandler(file)


def close_log_files() -> None:
    """Close the files of `log_to_file`: what is said from here on is remembered for the next one."""
    for handler in [handler for handler in log.handlers if isinstance(handler, LogFile)]:
        log.removeHandler(handler)
        handler.close()
    if not any(isinstance(handler, MemoryHandler) for handler in log.handlers):
        log.addHandler(_memory())


def _memory() -> MemoryHandler:
    return MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def end_log() -> None:
    """Close what `start_log` and `log_to_file` opened."""
    for handler in [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)]:
        log.removeHandler(handler)
        handler.close()
