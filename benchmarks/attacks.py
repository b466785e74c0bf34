"""Do hostile inputs end in one clear message, quickly and with little memory? Run them and check what Mars prints.

    make attacks          or          python -m benchmarks.attacks [--only TEXT] [--jobs 2]

Each attack is one command in a new process, with a file, folder, option or console that was made to break it. Mars
passes if the command ends by itself with a message and without a traceback, stays within the limits of time and memory
below, and prints no character that controls a terminal. Large but valid inputs must succeed. A table counts what was
tried, passed and failed; exit status 1 if one attack failed.
"""

import argparse
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from PIL import Image

from benchmarks.attacks_commands import COMMAND_ATTACKS
from benchmarks.attacks_data import DATA_ATTACKS
from benchmarks.attacks_images import IMAGE_ATTACKS, LARGE_IMAGES, Builder
from benchmarks.attacks_weights import WEIGHTS_ATTACKS, checkpoint
from benchmarks.squares import draw_squares
from model import YoloModel
from ops.text import align_columns

ROOT = Path(__file__).resolve().parent.parent

# Limits of one command. Mars itself takes half a GiB and a few seconds of CPU time, most of it for importing torch. The
# hostile files of issue reports took 2 to 7 GiB, or never ended.
PEAK_MIB = 2048
LARGE_PEAK_MIB = 3584  # images at the limits of dl/images.py take up to 1.9 GB when decoded
CPU_SECONDS = 60
WALL_SECONDS = 300  # ends a command that waits for ever; long, because the machine may be busy
ADDRESS_SPACE = 16 << 30  # protects the machine if an attack succeeds

CFGNAME = "voc.nano.full"
SETTINGS = (
    "--set", "inputShape=32", "batchSize=2", "maxEpoch=1", "dcore=0", "device=cpu", "precision=float32",
    "cacheImages=none",
)  # fmt: skip
# Characters that control a terminal. Carriage returns (progress bars), line breaks and tabs are allowed.
UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
SIGNS_OF_A_CRASH = ("Traceback (most recent call last)", "Exception ignored", "--- Logging error ---")


class Attack(NamedTuple):
    """One command. `prepare` makes its files in an empty folder and returns the arguments of `mars.py`."""

    group: str
    name: str
    prepare: Callable[[Path], Sequence[str]]
    statuses: tuple[int, ...] = (0, 2)  # accepted exit statuses; 0 because some inputs can be used anyway
    peak_mib: int = PEAK_MIB
    redirection: str = ""  # shell syntax after the command
    environment: Mapping[str, str] = MappingProxyType({})


@dataclass
class AttackOutcome:
    """How a command ended."""

    status: int
    text: str
    cpu_seconds: float
    peak_mib: float

    def complaint(self, attack: Attack) -> str:
        """What is wrong; an empty string if nothing is."""
        last = (self.text.strip().splitlines() or ["no message"])[-1]
        for words in SIGNS_OF_A_CRASH:
            if words in self.text:
                return f"{words}: {last}"
        if self.status not in attack.statuses:
            return f"ended with status {self.status}: {last}"
        if self.status and not self.text.strip() and not attack.redirection:
            return f"ended with status {self.status} and no message"
        if found := UNSAFE.search(self.text):
            return f"printed the control character {found[0]!r}"
        if self.peak_mib > attack.peak_mib:
            return f"took {self.peak_mib:.0f} MiB"
        return f"took {self.cpu_seconds:.0f} s" if self.cpu_seconds > CPU_SECONDS else ""


def attacks() -> Iterator[Attack]:
    """All attacks: on weights, checkpoints, bundles, data sets, images, and from the command line."""
    for name, build in WEIGHTS_ATTACKS.items():
        group = {"checkpoint": "checkpoints", "bundle": "bundles"}.get(name.partition(" ")[0], "weights")
        yield Attack(group, name, _weights_command(build, group))
    for name, build in DATA_ATTACKS.items():
        yield Attack("data sets", name, _training_command(build))
    for name, build in IMAGE_ATTACKS.items():
        yield Attack("images", name, _prediction_command(build))
    for name, build in LARGE_IMAGES.items():
        yield Attack("large valid images", name, _prediction_command(build), (0,), LARGE_PEAK_MIB)
    for name, command in COMMAND_ATTACKS.items():
        attack = Attack("commands", name, _given_command(command.words), (command.status,))
        yield attack._replace(redirection=command.redirection, environment=command.environment)
    consoles = Attack("consoles of a training", "the reader stops reading", _training_command(_chinese_classes), (0,))
    yield consoles._replace(redirection="| head -1")
    yield consoles._replace(name="closed", redirection=">&- 2>&-")
    yield consoles._replace(name="ASCII", environment={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})


def _weights_command(build: Builder, group: str) -> Callable[[Path], list[str]]:
    """A bundle is replayed, a checkpoint is resumed, other weights detect objects on an image."""

    def prepare(folder: Path) -> list[str]:
        file = build(folder)
        if group == "bundles":
            return ["doctor", CFGNAME, "--replay", str(file)]
        if group == "checkpoints":
            draw_squares(folder / "data")
            last = folder / "runs/attacked/weights/last.pth"
            last.parent.mkdir(parents=True)
            file.replace(last)
            return ["train", CFGNAME, "--data", str(folder / "data"), "--name", "attacked", *SETTINGS]
        Image.new("RGB", (32, 32)).save(folder / "image.png")
        return _predict_arguments(folder / "image.png", file)

    return prepare


def _chinese_classes(folder: Path) -> Path:
    return draw_squares(folder, colours={"\u98de\u673a": (220, 40, 40), "\u8f66": (40, 60, 220)})


def _training_command(build: Builder) -> Callable[[Path], list[str]]:
    return lambda folder: ["train", CFGNAME, "--data", str(build(folder / "data")), *SETTINGS]


def _prediction_command(build: Builder) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        weights = checkpoint(folder / "weights.pth", model=YoloModel("nano", 2).state_dict())
        return _predict_arguments(build(folder), weights)

    return prepare


def _predict_arguments(image: Path, weights: Path) -> list[str]:
    out = image.parent / "predicted"
    return ["predict", CFGNAME, str(image), "--weights", str(weights), "--out", str(out), *SETTINGS]


def _given_command(words: Sequence[str]) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        (folder / "file").touch()
        (folder / "empty").mkdir()
        return [word.replace("{folder}", str(folder)) for word in words]

    return prepare


def run(attack: Attack, folder: Path) -> AttackOutcome:
    """Make the files of an attack in `folder` and run its command there. The shell passes on the exit status."""
    folder.mkdir(parents=True)
    words = [sys.executable, str(ROOT / "mars.py"), *attack.prepare(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MARS_ROOT": str(folder / "runs"), **attack.environment}
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            ["bash", "-c", f"set -o pipefail; {shlex.join(words)} {attack.redirection}"],
            stdin=subprocess.DEVNULL,
            stdout=messages,
            stderr=messages,
            env=environment,
            cwd=folder,
            start_new_session=True,  # so that it can be killed with its children
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE)),
        )
        status, usage = _wait(process)
        messages.seek(0)
        text = messages.read().decode("utf-8", "backslashreplace")
    return AttackOutcome(status, text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, resource.struct_rusage]:
    """Exit status and resource usage of a process and its children. All are killed after `WALL_SECONDS`."""
    deadline = time.monotonic() + WALL_SECONDS
    while True:
        pid, state, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(state)
            return process.returncode, usage
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.02)


def table(rows: Sequence[tuple[Attack, AttackOutcome]]) -> str:
    """Group | tried | passed | failed | largest memory | largest CPU time."""
    groups = list(dict.fromkeys(attack.group for attack, _ in rows))
    lines: list[Sequence[str]] = [("attacks on", "tried", "passed", "failed", "max MiB", "max CPU s")]
    for name in [*groups, "all"]:
        chosen = [(attack, outcome) for attack, outcome in rows if name in (attack.group, "all")]
        failed = sum(bool(outcome.complaint(attack)) for attack, outcome in chosen)
        peak = max(outcome.peak_mib for _, outcome in chosen)
        seconds = max(outcome.cpu_seconds for _, outcome in chosen)
        lines.append((name, *map(str, (len(chosen), len(chosen) - failed, failed)), f"{peak:.0f}", f"{seconds:.0f}"))
    return "\n".join(align_columns(lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the attacks, then print the table. Returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", metavar="TEXT", default="", help="attacks with this text in their group or name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands at the same time")
    args = parser.parse_args(arguments)
    chosen = [attack for attack in attacks() if args.only in f"{attack.group}: {attack.name}"]
    if not chosen:
        raise SystemExit(f"no attack has {args.only!r} in its group or name")
    started, work = time.monotonic(), Path(tempfile.mkdtemp(prefix="mars-attacks-"))

    def try_out(number: int) -> tuple[Attack, AttackOutcome]:
        attack = chosen[number]
        outcome = run(attack, work / str(number))
        failure = outcome.complaint(attack)
        message = failure or (outcome.text.strip().splitlines() or ["(no message)"])[-1]
        print(
            f"{'FAILED' if failure else 'passed':<6} {outcome.status} {outcome.peak_mib:5.0f} MiB "
            f"{outcome.cpu_seconds:4.1f} s  {attack.group}: {attack.name}: {message[:200]}",
            flush=True,
        )
        shutil.rmtree(work / str(number), ignore_errors=True)
        return attack, outcome

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = list(pool.map(try_out, range(len(chosen))))
    shutil.rmtree(work, ignore_errors=True)
    print(f"\n{table(rows)}\n{time.monotonic() - started:.0f} s")
    return int(any(outcome.complaint(attack) for attack, outcome in rows))


if __name__ == "__main__":
    sys.exit(main())
