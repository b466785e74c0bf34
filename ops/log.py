"""Output of a running command: messages on the console and in the mars.log of the run, and progress bars."""

import io
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, TextIO

from ops.files import make_folder, reporting_write_errors
from ops.text import escaped

RESULT = logging.INFO + 5  # level of messages that --quiet still prints

log = logging.getLogger("mars")
log.addHandler(logging.NullHandler())  # no output before start_log; the command line prints errors itself


class Console(io.RawIOBase):
    """The raw stream of stdout or stderr. Output that cannot be written is dropped instead of raising an error.

    A closed pipe (`| head -1`), a closed terminal or a full disk must not stop a training or leave a file unfinished.
    """

    def __init__(self, raw: io.RawIOBase):
        self.raw = raw
        self.failure: OSError | None = None  # the first error

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()

    def write(self, data: Any) -> int | None:  # bytes or a memoryview
        try:
            return self.raw.write(data)
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


def protect_console() -> Console:
    """Replace stdout and stderr for the rest of the process, so that writing to them never raises. Returns stdout's.

    Characters that the encoding of the console lacks are written as escapes such as `\\u98de`. A closed stream (`>&-`)
    is opened on the null device: otherwise the next opened file would get its number and receive the messages.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stderr, _ = _guarded(2, sys.stderr)
    sys.stdout, console = _guarded(1, sys.stdout)
    return console


def _guarded(number: int, before: TextIO | None) -> tuple[io.TextIOWrapper, Console]:
    """A text stream for the file descriptor `number`, with encoding and buffering of the stream `before`."""
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
    """Messages without control characters: a file name must not control the terminal or hide other output."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class ProgressBar:
    """A progress bar. Call it with the number of finished items, the total, and figures to show behind the bar.

    If the output is a file there is no bar.
    """

    def __init__(self, title: str, quiet: bool, total: int | None = None):
        from tqdm import tqdm  # imported late: a mistake in the command is then reported without delay

        # disable=None: no bar when the output is not a terminal
        disable = True if quiet else None
        self.bar = tqdm(desc=escaped(title), total=total, leave=False, disable=disable, dynamic_ncols=True)

    def __enter__(self) -> "ProgressBar":
        return self

    def __call__(self, done: int, total: int, figures: Mapping[str, str] | None = None) -> None:
        self.bar.total = total
        if figures:
            self.bar.set_postfix(figures, refresh=False)  # pyright: ignore[reportUnknownMemberType]
        self.bar.update(done - self.bar.n)

    def __exit__(self, *_: object) -> None:
        self.bar.close()


class LogFile(logging.FileHandler):
    """A log file that ignores write errors: a full disk loses log lines only. Important files report their errors."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Print no traceback for a line that could not be written."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def start_log(quiet: bool) -> None:
    """Print messages on stdout (only results when `quiet`), and keep them in memory until `log_to_file`."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(EscapingFormatter())
    console.setLevel(RESULT if quiet else logging.INFO)
    console.addFilter(lambda record: record.levelno < logging.ERROR)  # main prints errors on stderr
    log.setLevel(logging.DEBUG)  # the file gets more detail than the console
    log.addHandler(console)
    log.addHandler(_memory())


def log_to_file(path: Path) -> None:
    """Also write the messages so far, and all later ones, to the file `path`."""
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
    """Close the files of `log_to_file`. Later messages are kept in memory for the next file."""
    for handler in [handler for handler in log.handlers if isinstance(handler, LogFile)]:
        log.removeHandler(handler)
        handler.close()
    if not any(isinstance(handler, MemoryHandler) for handler in log.handlers):
        log.addHandler(_memory())


def _memory() -> MemoryHandler:
    return MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)


def end_log() -> None:
    """Close and remove the handlers of `start_log` and `log_to_file`."""
    for handler in [handler for handler in log.handlers if not isinstance(handler, logging.NullHandler)]:
        log.removeHandler(handler)
        handler.close()
