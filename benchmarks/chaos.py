"""Is anything ever lost? Kill a training at random instants, damage its files; the end must be the same, bit for bit.

    make chaos          or          python -m benchmarks.chaos --kills 30 --seed 0

A tiny training (the nano network at 64 pixels on drawn squares, three epochs with validation, averaged weights, two
batches a step) runs once undisturbed. Then it runs again and again, is struck each time, and the same command is given
once more. Its weights, averages, optimizer state, best weights, metrics.jsonl and curves must equal those of the
undisturbed run, whatever number of workers. A table says what was tried, survived and lost; exit status 1 after a loss.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.squares import draw_squares

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "training": "modern", "inputShape": 64, "batchSize": 2, "nominalBatch": 4, "maxEpoch": 3, "closeMosaic": 1,
    "warmupEpochs": 0, "scoreThreshold": 0, "device": "cpu", "precision": "float32",
}  # fmt: skip
KILLED_AT = ("batch", "average", "validation", "half a file", "flush", "file operation", "metrics", "curves")
TIMINGS = ("seconds", "images_per_s")


@dataclass
class Tally:
    """One line of the table."""

    what: str
    tried: int = 0
    survived: int = 0
    losses: list[str] = field(default_factory=list)


@dataclass
class Chaos:
    """The training that is struck, and what it comes to when it is not."""

    folder: Path
    random: random.Random
    tallies: dict[str, Tally] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # how often the undisturbed run passes each point
    seconds: float = 0.0  # of its training, without the start of the program
    number: int = 0  # of runs so far

    def try_out(self, what: str, attempt: Callable[[Path], str]) -> None:
        """Make one attempt in a fresh folder. It returns what was lost, the empty string for nothing."""
        self.number += 1
        run = self.folder / "runs" / f"{self.number:03}"
        tally = self.tallies.setdefault(what, Tally(what))
        tally.tried += 1
        loss = attempt(run)
        if loss:
            tally.losses.append(f"{run.name}: {loss}")
            print(f"LOST   {what}: {loss} (kept in {run})", flush=True)
            return
        tally.survived += 1
        shutil.rmtree(run, ignore_errors=True)
        print(f"ok     {what}", flush=True)

    def command(self, run: Path, workers: int = 0, mode: str = "train", *more: str) -> list[str]:
        words = [mode, "voc.nano.full", "--root", str(run.parent), "--name", run.name]
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        return [*words, "--data", str(self.folder / "data"), *more, "--set", *settings, f"dcore={workers}"]

    def start(self, words: list[str], point: str = "", nth: int = 0, kind: str = "", **options: Any) -> Any:
        """The command line in a process of its own, struck when the point is passed for the nth time."""
        strike = [str(ROOT / "benchmarks" / "sabotage.py"), point, str(nth), kind, "--"]
        program = strike if point else [str(ROOT / "mars.py")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        return subprocess.Popen([sys.executable, *program, *words], env=env, cwd=self.folder, **{**pipes, **options})

    def run(self, words: list[str], *strike: Any, **options: Any) -> "Done":
        process = self.start(words, *strike, **options)
        out, err = process.communicate(timeout=300)
        return Done(process.returncode, out, err)

    def undisturbed(self) -> None:
        """The run that all others are measured by."""
        run = self.folder / "runs" / "whole"
        started = time.monotonic()
        process = self.start(self.command(run), "none", 0)
        while not (run / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        out, err = process.communicate(timeout=300)
        if process.returncode:
            raise SystemExit(f"the undisturbed run failed: {err or out}")
        self.seconds = time.monotonic() - began
        self.counts = json.loads(out.rpartition("counts ")[2])
        print(f"undisturbed: {time.monotonic() - started:.0f} s, {self.seconds:.1f} s of them training; {self.counts}")

    def differences(self, run: Path) -> str:
        """What differs from the undisturbed run, in words."""
        whole = self.folder / "runs" / "whole"
        try:
            for name in ("last.pth", "best.pth"):
                one, other = (contents(folder / "weights" / name) for folder in (whole, run))
                if unequal := [key for key in one if not same(one[key], other.get(key))]:
                    return f"{name} differs in {', '.join(unequal)}"
            if rows(whole) != rows(run):
                return "metrics.jsonl differs"
            if (whole / "plots/loss.png").read_bytes() != (run / "plots/loss.png").read_bytes():
                return "plots/loss.png differs"
        except (OSError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "half-written files are left" if list(run.rglob("*.part")) else ""

    def again(self, run: Path, workers: int = 0, said: str = "") -> str:
        """The same command once more, undisturbed; what is lost after it."""
        done = self.run(self.command(run, workers))
        if done.status:
            return f"the second start ended with {done.status}: {done.err.strip()[-300:]}"
        if said not in done.out:
            return f"the second start did not say {said!r}"
        return self.differences(run)


@dataclass
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    def complaint(self, status: int, *words: str) -> str:
        """Empty when it left with this status and one sentence that holds these words; else what is wrong."""
        if self.status == status and self.err.count("\n") == 1 and all(word in self.err for word in words):
            return ""
        return f"wanted status {status} and one sentence with {words}, got {self.status}: {self.err.strip()[-300:]}"


def contents(path: Path) -> dict[str, Any]:
    """A checkpoint without what a second start may change: which commit and folder it names."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["history"] = [timeless(row) for row in json.loads(content.get("history", "[]"))]
    content["random"] = {name: content.get("random", {}).get(name) for name in ("torch", "numpy", "python")}
    return {key: value for key, value in content.items() if key not in ("commit", "config")}


def rows(run: Path) -> list[dict[str, Any]]:
    return [timeless(json.loads(line)) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMINGS}


def same(one: Any, other: Any) -> bool:
    """Equal to the last bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def kill(chaos: Chaos, number: int) -> None:
    """One SIGKILL: every third by a watcher after a random time, the others at a point of the program."""
    workers = 2 * (number % 2)
    if number % 3 == 0:
        chaos.try_out("killed at a random instant", lambda run: _killed_from_outside(chaos, run, workers))
        return
    point = KILLED_AT[number % len(KILLED_AT)]
    nth = chaos.random.randint(1, chaos.counts[point])

    def attempt(run: Path) -> str:
        done = chaos.run(chaos.command(run, workers), point, nth, "kill")
        if done.status != -signal.SIGKILL:
            return f"was to be killed at {point} {nth}, ended with {done.status}: {done.err.strip()[-300:]}"
        loss = chaos.again(run, workers)
        return loss and f"at {point} {nth} of {chaos.counts[point]}, {workers} workers: {loss}"

    chaos.try_out(f"killed at: {point}", attempt)


def _killed_from_outside(chaos: Chaos, run: Path, workers: int) -> str:
    process = chaos.start(chaos.command(run, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)
    delay = chaos.random.uniform(0, chaos.seconds)
    time.sleep(delay)
    process.kill()  # its workers live on for a while, and must not hold the folder
    process.wait()
    loss = chaos.again(run, workers)
    return loss and f"after {delay:.2f} s, {workers} workers: {loss}"


def main() -> int:
    """Strike, then print the table."""
    from benchmarks.faults import FAULTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true", help="kills only")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it, and hand that on
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mars-chaos-"))
    chaos = Chaos(folder, random.Random(args.seed))
    draw_squares(folder / "data", 24, 80)
    chaos.undisturbed()
    for number in range(args.kills):
        kill(chaos, number)
    for fault in () if args.no_faults else FAULTS:
        fault(chaos)
    print(f"\n{table(list(chaos.tallies.values()))}\n{time.monotonic() - started:.0f} s, seed {args.seed}")
    losses = [loss for tally in chaos.tallies.values() for loss in tally.losses]
    if not losses:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if losses else 0


def table(tallies: list[Tally]) -> str:
    """What was done | tried | survived | lost."""
    from ops.text import align_columns

    lines = [(one.what, str(one.tried), str(one.survived), str(len(one.losses))) for one in tallies]
    sums = [sum(values) for values in zip(*((t.tried, t.survived, len(t.losses)) for t in tallies), strict=True)]
    text = align_columns([("what was done", "tried", "survived", "lost"), *lines, ("all", *map(str, sums))])
    return "\n".join([text[0], "-" * len(text[0]), *text[1:-1], "-" * len(text[0]), text[-1]])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
