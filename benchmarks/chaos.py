"""Is anything ever lost? Kill a training at random moments and damage its files; the result must stay bit-identical.

    make chaos          or          python -m benchmarks.chaos --kills 30 --seed 0

A tiny training (the nano network at 64 pixels on drawn squares, three epochs with validation and EMA, two batches per
step) runs once without interruption. Then it is started again and again, interrupted each time, and started once more
with the same command. Weights, EMA, optimizer state, best weights, metrics.jsonl and curves must then equal those of
the uninterrupted run, with any number of workers. A table counts what was tried, survived and lost; exit status 1 after
a loss.
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
from ops.text import align_columns

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "training": "modern", "inputShape": 64, "batchSize": 2, "nominalBatch": 4, "maxEpoch": 3, "closeMosaic": 1,
    "warmupEpochs": 0, "scoreThreshold": 0, "device": "cpu", "precision": "float32",
}  # fmt: skip
KILL_POINTS = ("batch", "EMA", "validation", "half a file", "flush", "file operation", "metrics", "curves")
TIMINGS = ("seconds", "images_per_s")


@dataclass
class ChaosRow:
    """One row of the table."""

    description: str
    tried: int = 0
    survived: int = 0
    losses: list[str] = field(default_factory=list)


@dataclass
class Chaos:
    """The training that is interrupted, and the uninterrupted run that it must equal."""

    folder: Path
    random: random.Random
    rows: dict[str, ChaosRow] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # how often the uninterrupted run passes each point
    seconds: float = 0.0  # duration of its training, without the start of the program
    number: int = 0  # runs so far

    def try_out(self, description: str, attempt: Callable[[Path], str]) -> None:
        """Make one attempt in a new folder. `attempt` returns what was lost; an empty string means nothing."""
        self.number += 1
        run = self.folder / "runs" / f"{self.number:03}"
        row = self.rows.setdefault(description, ChaosRow(description))
        row.tried += 1
        loss = attempt(run)
        if loss:
            row.losses.append(f"{run.name}: {loss}")
            print(f"LOST   {description}: {loss} (files in {run})", flush=True)
            return
        row.survived += 1
        shutil.rmtree(run, ignore_errors=True)
        print(f"ok     {description}", flush=True)

    def command(self, run: Path, workers: int = 0, mode: str = "train", *more: str) -> list[str]:
        words = [mode, "voc.nano.full", "--root", str(run.parent), "--name", run.name]
        settings = [f"{name}={value}" for name, value in SETTINGS.items()]
        return [*words, "--data", str(self.folder / "data"), *more, "--set", *settings, f"dcore={workers}"]

    def start(self, words: list[str], point: str = "", nth: int = 0, kind: str = "", **options: Any) -> Any:
        """Start the command in a new process. The fault `kind` strikes when the point is passed for the nth time."""
        injector = [str(ROOT / "benchmarks" / "kill_injector.py"), point, str(nth), kind, "--"]
        program = injector if point else [str(ROOT / "mars.py")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        return subprocess.Popen([sys.executable, *program, *words], env=env, cwd=self.folder, **{**pipes, **options})

    def run(self, words: list[str], *fault: Any, **options: Any) -> "CommandResult":
        process = self.start(words, *fault, **options)
        out, err = process.communicate(timeout=300)
        return CommandResult(process.returncode, out, err)

    def run_uninterrupted(self) -> None:
        """Make the run that all others are compared with."""
        run = self.folder / "runs" / "uninterrupted"
        started = time.monotonic()
        process = self.start(self.command(run), "none", 0)
        while not (run / "config.json").exists() and process.poll() is None:
            time.sleep(0.01)
        began = time.monotonic()
        out, err = process.communicate(timeout=300)
        if process.returncode:
            raise SystemExit(f"the uninterrupted run failed: {err or out}")
        self.seconds = time.monotonic() - began
        self.counts = json.loads(out.rpartition("counts ")[2])
        print(
            f"uninterrupted: {time.monotonic() - started:.0f} s, of which training {self.seconds:.1f} s; {self.counts}"
        )

    def differences(self, run: Path) -> str:
        """The first difference from the uninterrupted run; empty if there is none."""
        reference = self.folder / "runs" / "uninterrupted"
        try:
            for name in ("last.pth", "best.pth"):
                expected, actual = (contents(folder / "weights" / name) for folder in (reference, run))
                if unequal := [key for key in expected if not is_same(expected[key], actual.get(key))]:
                    return f"{name} differs in {', '.join(unequal)}"
            if history_rows(reference) != history_rows(run):
                return "metrics.jsonl differs"
            if (reference / "plots/loss.png").read_bytes() != (run / "plots/loss.png").read_bytes():
                return "plots/loss.png differs"
        except (OSError, RuntimeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return "half-written files are left" if list(run.rglob("*.part")) else ""

    def resume(self, run: Path, workers: int = 0, message: str = "") -> str:
        """Run the same command again without a fault. Returns what is lost, or that it did not print `message`."""
        result = self.run(self.command(run, workers))
        if result.status:
            return f"the second start ended with {result.status}: {result.err.strip()[-300:]}"
        if message not in result.out:
            return f"the second start did not print {message!r}"
        return self.differences(run)


@dataclass
class CommandResult:
    """How a command ended."""

    status: int
    out: str
    err: str

    def complaint(self, status: int, *words: str) -> str:
        """Empty if the command ended with this status and one line with these words; otherwise what is wrong."""
        if self.status == status and self.err.count("\n") == 1 and all(word in self.err for word in words):
            return ""
        return f"expected status {status} and one line with {words}, got {self.status}: {self.err.strip()[-300:]}"


def contents(path: Path) -> dict[str, Any]:
    """A checkpoint without the parts that a second start may change: the commit, the folder and times."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    content["history"] = [without_times(row) for row in json.loads(content.get("history", "[]"))]
    content["random"] = {name: content.get("random", {}).get(name) for name in ("torch", "numpy", "python")}
    if "plan" in content:  # of last.pth
        content["plan"] = {name: content["plan"][name] for name in ("end", "position")}
    return {key: value for key, value in content.items() if key not in ("commit", "config")}


def history_rows(run: Path) -> list[dict[str, Any]]:
    return [
        without_times(json.loads(line)) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in TIMINGS}


def is_same(a: Any, b: Any) -> bool:
    """Equal to the last bit; dictionaries and lists are compared element by element."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(is_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def kill(chaos: Chaos, number: int) -> None:
    """One SIGKILL. Every third comes from outside after a random time, the others at a point of the program."""
    workers = 2 * (number % 2)
    if number % 3 == 0:
        chaos.try_out("killed at a random moment", lambda run: _killed_from_outside(chaos, run, workers))
        return
    point = KILL_POINTS[number % len(KILL_POINTS)]
    nth = chaos.random.randint(1, chaos.counts[point])

    def attempt(run: Path) -> str:
        result = chaos.run(chaos.command(run, workers), point, nth, "kill")
        if result.status != -signal.SIGKILL:
            return f"expected a kill at {point} {nth}, ended with {result.status}: {result.err.strip()[-300:]}"
        loss = chaos.resume(run, workers)
        return loss and f"at {point} {nth} of {chaos.counts[point]}, {workers} workers: {loss}"

    chaos.try_out(f"killed at: {point}", attempt)


def _killed_from_outside(chaos: Chaos, run: Path, workers: int) -> str:
    process = chaos.start(chaos.command(run, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (run / "config.json").exists() and process.poll() is None:
        time.sleep(0.01)
    delay = chaos.random.uniform(0, chaos.seconds)
    time.sleep(delay)
    process.kill()  # its workers live a little longer and must not keep the folder locked
    process.wait()
    loss = chaos.resume(run, workers)
    return loss and f"after {delay:.2f} s, {workers} workers: {loss}"


def main() -> int:
    """Interrupt runs and damage files, then print the table. Returns 1 after a loss."""
    from benchmarks.faults import FAULTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-faults", action="store_true", help="kills only")
    args = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # background jobs ignore SIGINT, and their children inherit that
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mars-chaos-"))
    chaos = Chaos(folder, random.Random(args.seed))
    draw_squares(folder / "data", 24, 80)
    chaos.run_uninterrupted()
    for number in range(args.kills):
        kill(chaos, number)
    for fault in () if args.no_faults else FAULTS:
        fault(chaos)
    print(f"\n{table(list(chaos.rows.values()))}\n{time.monotonic() - started:.0f} s, seed {args.seed}")
    losses = [loss for row in chaos.rows.values() for loss in row.losses]
    if not losses:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if losses else 0


def table(rows: list[ChaosRow]) -> str:
    """Fault | tried | survived | lost."""
    counts = [(row.tried, row.survived, len(row.losses)) for row in rows]
    lines = [(row.description, *map(str, numbers)) for row, numbers in zip(rows, counts, strict=True)]
    sums = [sum(numbers) for numbers in zip(*counts, strict=True)]
    text = align_columns([("fault", "tried", "survived", "lost"), *lines, ("all", *map(str, sums))])
    return "\n".join([text[0], "-" * len(text[0]), *text[1:-1], "-" * len(text[0]), text[-1]])


if __name__ == "__main__":
    sys.exit(main())
