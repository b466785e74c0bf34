"""Faults other than kills, for chaos.py: signals, damaged files, full disks, a second run on the same folder."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Fault = Callable[[Any], None]  # takes a Chaos
FAULTS: list[Fault] = []


def fault(function: Fault) -> Fault:
    """Register a fault that chaos.py tries."""
    FAULTS.append(function)
    return function


@fault
def signals(chaos: Any) -> None:
    """After a signal, a training saves its state and prints one line."""
    middle = chaos.counts["batch"] // 2
    for description, kind, point, nth, workers in (
        ("Ctrl-C in an epoch", "int", "batch", middle, 0),
        ("Ctrl-C in an epoch, also to the workers", "group-int", "batch", middle + 1, 2),
        ("SIGTERM in an epoch", "term", "batch", middle + 1, 0),
        ("SIGTERM in an epoch, also to the workers", "group-term", "batch", middle, 2),
        ("SIGHUP in an epoch, also to the workers", "group-hup", "batch", middle, 2),
        ("SIGTERM during the validation", "term", "validation", 2, 0),
        ("SIGTERM while saving", "term", "half a file", chaos.counts["half a file"] // 2, 0),
        ("Ctrl-C twice", "int-int", "batch", middle, 0),
        ("Ctrl-C twice while saving", "int-int", "half a file", chaos.counts["half a file"] // 2, 2),
    ):

        def attempt(run: Path, kind=kind, point=point, nth=nth, workers=workers) -> str:
            result = chaos.run(chaos.command(run, workers), point, nth, kind)
            words = ("interrupted",) if kind == "int-int" else ("interrupted by", "and saved")
            return result.complaint(1, *words) or chaos.resume(run, workers, "resuming")

        chaos.try_out(description, attempt)


@fault
def damaged_checkpoints(chaos: Any) -> None:
    """The previous checkpoint is used, and a message says so."""

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[chaos.random.randrange(len(content))] ^= 1 << chaos.random.randrange(8)
        path.write_bytes(content)

    def cut(path: Path) -> None:
        os.truncate(path, chaos.random.randrange(1, path.stat().st_size))

    for description, damage, message in (
        ("last.pth: one bit flipped", flip, "is damaged"),
        ("last.pth: cut short", cut, "is damaged"),
        ("last.pth: emptied", lambda path: os.truncate(path, 0), "is damaged"),
        ("last.pth: removed", Path.unlink, "is missing"),
    ):

        def attempt(run: Path, damage=damage, message=message) -> str:
            _killed_in_the_last_epoch(chaos, run)
            damage(run / "weights/last.pth")
            return chaos.resume(run, message=message)

        chaos.try_out(description, attempt)


def _killed_in_the_last_epoch(chaos: Any, run: Path) -> None:
    result = chaos.run(chaos.command(run), "batch", chaos.counts["batch"] - 2, "kill")
    assert result.status == -signal.SIGKILL, result.err


@fault
def damaged_best(chaos: Any) -> None:
    """Best weights are restored if a checkpoint still has them. Damaged ones are never evaluated."""

    def damage(run: Path) -> None:
        content = bytearray((run / "weights/best.pth").read_bytes())
        content[len(content) // 2] ^= 1
        (run / "weights/best.pth").write_bytes(content)

    def evaluated(run: Path) -> str:
        chaos.run(chaos.command(run))
        damage(run)
        return chaos.run(chaos.command(run, 0, "eval")).complaint(2, "best.pth: is damaged", "--weights")

    def restored(run: Path) -> str:
        result = chaos.run(chaos.command(run), "metrics", 1, "kill")  # after one epoch, this epoch is the best
        damage(run)
        return (
            ""
            if result.status == -signal.SIGKILL and not chaos.resume(run, message="written again")
            else "was not restored"
        )

    chaos.try_out("best.pth: one bit flipped, then eval", evaluated)
    chaos.try_out("best.pth: one bit flipped, then train", restored)


@fault
def removed_files(chaos: Any) -> None:
    """Files that follow from the checkpoint are written again from it."""
    for name in ("config.json", "metrics.jsonl", "plots/loss.png", "data-check.json"):

        def attempt(run: Path, name=name) -> str:
            _killed_in_the_last_epoch(chaos, run)
            (run / name).unlink()
            return chaos.resume(run) or ("" if (run / name).exists() else f"{name} was not written again")

        chaos.try_out(f"{name}: removed", attempt)


@fault
def full_disk(chaos: Any) -> None:
    """One error message; the previous checkpoint stays, and the same command continues once there is space."""

    def full(run: Path) -> str:
        result = chaos.run(chaos.command(run), "flush", chaos.counts["flush"] * 2 // 3, "full")
        return result.complaint(2, "cannot be written", "No space left") or chaos.resume(run)

    def limited(run: Path) -> str:
        limit = (20 << 20, resource.RLIM_INFINITY)  # only the checkpoint is larger
        options = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)}
        result = chaos.run(chaos.command(run), **options)
        return result.complaint(2, "last.pth: cannot be written", "File too large") or chaos.resume(run)

    chaos.try_out("disk full while saving", full)
    chaos.try_out("files limited to 20 MB (ulimit -f)", limited)


@fault
def read_only(chaos: Any) -> None:
    """A folder that cannot be written gives one error message. Root may write to any folder, but not into a file."""

    def attempt(run: Path) -> str:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.write_text("a file, not a folder")
        try:
            return chaos.run(chaos.command(run)).complaint(2, "cannot be written", "--root")
        finally:
            run.unlink()

    chaos.try_out("a folder that cannot be written", attempt)


@fault
def another_version(chaos: Any) -> None:
    """A folder of another version is refused and not overwritten."""

    def attempt(run: Path) -> str:
        (run / "weights").mkdir(parents=True)
        torch.save({"format": "mars-checkpoint-99", "model": {}}, run / "weights/last.pth")
        before = (run / "weights/last.pth").read_bytes()
        complaint = chaos.run(chaos.command(run)).complaint(2, "mars-checkpoint-99", "--name", "--nobuf")
        return complaint or ("" if (run / "weights/last.pth").read_bytes() == before else "it was overwritten")

    chaos.try_out("folder of another version", attempt)


@fault
def second_run(chaos: Any) -> None:
    """A second run on the folder of a running one is refused, also with --nobuf. The first run continues normally."""

    def attempt(run: Path) -> str:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        first = chaos.start(chaos.command(run), "batch", chaos.counts["batch"] // 2, "stop", **quiet)
        while _state(first.pid) != "T":
            if first.poll() is not None:
                return "the first run ended"
            time.sleep(0.05)
        complaints = [
            chaos.run(chaos.command(run, 0, "train", *more)).complaint(2, "another run", f"process {first.pid} on")
            for more in ((), ("--nobuf",))
        ]
        first.send_signal(signal.SIGCONT)
        return "".join(complaints) or (
            f"the first ended with {first.returncode}" if first.wait(300) else chaos.differences(run)
        )

    chaos.try_out("a second run on the folder", attempt)


def _state(pid: int) -> str:
    """The state that ps reports; T means stopped."""
    result = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return result.stdout.strip()[:1]
