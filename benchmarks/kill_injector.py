"""Run `mars.py` in this process and strike it at a chosen point: what benchmarks/chaos.py starts. Not for people.

    python benchmarks/kill_injector.py POINT NTH BLOW -- arguments of mars.py

The product knows nothing of this: its functions are wrapped from outside. POINT says where, NTH how often that point is
passed before the blow, BLOW what happens: kill, int, term, hup, stop (signals to this process), group-int, group-term,
group-hup (to its workers, too), int-int (twice), full (the disk is). NTH 0: no blow; the counts of all points go to
stdout.
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
_own_process = os.getpid()  # a loader's workers, which are forked, are not struck


def blow(kind: str) -> None:
    """Strike now."""
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
    """Arm the point and run the command."""
    point, nth, kind, _, *command = arguments

    def passed(where: str) -> None:
        if os.getpid() != _own_process:
            return
        _counts[where] += 1
        if where == point and _counts[where] == int(nth):
            blow(kind)

    arm(passed, Path(command[command.index("--root") + 1]).absolute())
    import mars

    status = mars.main(command)
    if int(nth) == 0:
        print(f"counts {json.dumps(_counts)}")
    return status


def arm(passed: Any, root: Path) -> None:
    """Wrap every point, so that `passed` hears of it just before it happens."""
    import ops.files
    import train.trainer
    from eval.predictor import Predictor
    from runs.folder import RunFolder
    from train.ema import ModelEMA
    from train.step import Stepper

    for owner, name, where in (
        (train.trainer.Trainer, "run", "start"),
        (Stepper, "add", "batch"),
        (ModelEMA, "update", "average"),  # the weights have moved, their average has not
        (Predictor, "__call__", "validation"),
        (RunFolder, "write_history", "metrics"),
        (train.trainer, "plot_curves", "curves"),
        (ops.files.os, "fsync", "flush"),
    ):
        setattr(owner, name, _announced(getattr(owner, name), where, passed))
    ops.files.open = functools.partial(_open, passed)  # type: ignore[attr-defined]
    sys.addaudithook(functools.partial(_hear, passed, f"{root}{os.sep}"))


def _announced(function: Any, where: str, passed: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        passed(where)
        return function(*args, **kwargs)

    return wrapper


def _open(passed: Any, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115 (whoever asked for it closes it)
    return _HalfWriter(file, passed) if "w" in mode else file


class _HalfWriter:
    """Writes one half of what it is given, is struck, then writes the other."""

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


def _hear(passed: Any, root: str, event: str, args: tuple[Any, ...]) -> None:
    """The interpreter's audit events: whatever makes, renames or removes a file below root."""
    is_change = event in ("os.rename", "os.link", "os.remove", "os.mkdir")
    if is_change or (event == "open" and isinstance(args[2], int) and args[2] & _WRITING):
        name = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if name.startswith(root):
            passed("file operation")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
