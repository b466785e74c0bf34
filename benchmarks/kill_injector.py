"""Run `mars.py` in this process with a fault at a chosen point. benchmarks/chaos.py starts this file; people do not.

    python benchmarks/kill_injector.py POINT NTH KIND -- arguments of mars.py

Mars knows nothing of this: its functions are wrapped from outside. The fault strikes when POINT is passed for the NTH
time. KIND is kill, int, term, hup, stop (signals to this process), group-int, group-term, group-hup (also to its
workers), int-int (two signals) or full (the disk is full). NTH 0: no fault; the counts of all points go to stdout.
"""

import builtins
import errno
import functools
import io
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_counts: Counter[str] = Counter()
_own_process = os.getpid()  # the forked loader workers are left alone


def inject(kind: str) -> None:
    """Send the signal to this process, or raise the error of a full disk."""
    if kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    name = kind.rpartition("-")[2].upper()
    number = signal.Signals[f"SIG{name}"]
    if kind.startswith("group-"):
        os.killpg(os.getpgrp(), number)
        return
    os.kill(os.getpid(), number)
    if kind == "int-int":
        os.kill(os.getpid(), number)


def main(arguments: list[str]) -> int:
    """Wrap the points and run the command."""
    point, nth, kind, _, *command = arguments

    def passed(where: str) -> None:
        if os.getpid() != _own_process:
            return
        _counts[where] += 1
        if where == point and _counts[where] == int(nth):
            inject(kind)

    wrap_points(passed, Path(command[command.index("--root") + 1]).absolute())
    import mars

    status = mars.main(command)
    if int(nth) == 0:
        print(f"counts {json.dumps(_counts)}")
    return status


def wrap_points(passed: Any, root: Path) -> None:
    """Wrap every point, so that `passed` is called with its name just before it runs."""
    import ops.files
    import train.trainer
    from eval.predictor import Predictor
    from runs.folder import RunFolder
    from train.ema import ModelEMA
    from train.step import Stepper

    for owner, name, where in (
        (train.trainer.Trainer, "run", "start"),
        (Stepper, "add", "batch"),
        (ModelEMA, "update", "EMA"),  # the weights are updated, their EMA is not
        (Predictor, "__call__", "validation"),
        (RunFolder, "write_history", "metrics"),
        (train.trainer, "plot_curves", "curves"),
        (ops.files.os, "fsync", "flush"),
    ):
        setattr(owner, name, _wrapped(getattr(owner, name), where, passed))
    ops.files.open = functools.partial(_open, passed)  # type: ignore[attr-defined]
    sys.addaudithook(functools.partial(_audit, passed, f"{root}{os.sep}"))


def _wrapped(function: Any, where: str, passed: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        passed(where)
        return function(*args, **kwargs)

    return wrapper


def _open(passed: Any, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115 (the caller closes it)
    return _HalfWriter(file, passed) if "w" in mode else file


class _HalfWriter:
    """Writes half of the content, calls `passed`, then writes the other half."""

    def __init__(self, file: io.BufferedWriter, passed: Any):
        self._file, self._passed = file, passed

    def write(self, content: bytes) -> int:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        self._passed("half a file")
        return self._file.write(content[len(content) // 2 :])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_HalfWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _audit(passed: Any, root: str, event: str, args: tuple[Any, ...]) -> None:
    """Audit events of the interpreter: creating, renaming and removing files below root."""
    is_change = event in ("os.rename", "os.link", "os.remove", "os.mkdir")
    if is_change or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
        name = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if name.startswith(root):
            passed("file operation")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
