"""Is a bad value caught, and is its birthplace named? Put faults in from outside, one at a time, and read what is said.

    make faults         or          python -m benchmarks.bad_values [--only NAME] [--size 96]

The nano network trains on a few drawn scenes, with momentum, an average and a teacher where one is asked for. In the
second epoch one of the faults in benchmarks/injections.py is put in. It must be stopped before the step, so that
weights, momentum, average and files are those of before, bit for bit, and the page must name where it was born. What
is harmless must stay finite and raise no alarm. Exit status 1 when one line says no.
"""

import argparse
import collections
import math
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import train.setup
from benchmarks.fault_runs import Outcome, Workshop, hearing, strike
from benchmarks.injections import ALL, INJECTIONS, QUIET, STOPPED, STRUCTURAL, UNPREPARED, Injection
from config.errors import UserError
from config.mconfig import ModelConfig
from debug.doctor.aliases import examine_aliases
from debug.doctor.finding import OK, Finding
from debug.doctor.plan_check import examine_freezing
from debug.doctor.teacher_check import examine_teacher
from debug.doctor.weights_check import examine_weights
from model import build_model
from train.objective import DistillationObjective
from train.teacher import Teacher

TITLES = {
    STOPPED: "Stopped before the step, birthplace right",
    QUIET: "Must stay finite and raise no alarm",
    STRUCTURAL: "Structural, refused or warned",
    UNPREPARED: "Beyond the list: the tracer was not written with these in mind",
}
WIDTHS = (24, 38, 62, 12, 14)


# Structural faults, and weights that are refused


def _refusal(shop: Workshop, injection: Injection, file: str) -> str:
    try:
        shop.trainer(injection, checkpointModelFile=file).run()
    except UserError as error:
        return str(error)
    return "nothing: it trained"


def _file(shop: Workshop, injection: Injection) -> Outcome:
    name = "backbone.l2.cv1.conv.weight"

    def spoil(content: dict[str, Any]) -> None:
        content[name].view(-1)[0] = math.inf

    refusal = _refusal(shop, injection, shop.spoilt_weights(spoil))
    is_written = (shop.folder / injection.name / "weights").exists()
    return Outcome({"refused": refusal, "tensor": name if name in refusal else ""}, ("files",) if is_written else ())


def _half_match(shop: Workshop, injection: Injection) -> Outcome:
    def drop(content: dict[str, Any]) -> None:
        for name in list(content)[::2]:
            del content[name]

    file = shop.spoilt_weights(drop)
    patient = shop.patient(injection, checkpointModelFile=file)
    return Outcome({"train": _refusal(shop, injection, file), "doctor": worst(examine_weights(patient))})


def _alias(shop: Workshop, injection: Injection) -> Outcome:
    def with_alias(mcfg: ModelConfig) -> Any:
        model = build_model(mcfg)
        block: Any = model.backbone.l2.m[0]
        block.cv2.conv = block.cv1.conv
        return model

    with patch.object(train.setup, "build_model", with_alias):
        return Outcome({"doctor": worst(examine_aliases(shop.patient(injection).model))})


def _wake_teachers(patches: ExitStack) -> None:
    """Every teacher that is made from now on is in train mode."""
    make = Teacher.__init__

    def awake(self: Teacher, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        self._network.train()

    patches.enter_context(patch.object(Teacher, "__init__", awake))


def _teacher(shop: Workshop, injection: Injection) -> Outcome:
    with ExitStack() as patches, hearing():
        _wake_teachers(patches)
        patient = shop.patient(injection)
        assert isinstance(patient.objective, DistillationObjective)
        doctor = worst(examine_teacher(patient, next(patient.batches(1))))
        try:
            shop.trainer(injection).run()
        except RuntimeError as error:
            return Outcome({"train": str(error), "doctor": doctor})
    return Outcome({"train": "nothing: it trained", "doctor": doctor})


def _frozen(shop: Workshop, injection: Injection) -> Outcome:
    return Outcome({"doctor": worst(examine_freezing(shop.patient(injection)))})


def worst(findings: Iterator[Finding]) -> str:
    """The lines that are not ok, as the doctor prints them."""
    return "; ".join(str(one) for one in findings if one.level != OK) or "nothing"


STRUCTURES = (
    Injection(
        "file", "an Inf weight in the file that a run starts from", is_fresh=True,
        says={"refused": "contains values that are not finite", "tensor": "backbone.l2.cv1.conv.weight"},
    ),
    Injection(
        "alias", "conv_1 = conv: backbone.l2.m.0.cv2.conv is cv1.conv", group=STRUCTURAL,
        says={"doctor": "wrong  aliases: backbone.l2.m.0.cv1.conv and backbone.l2.m.0.cv2.conv are the same tensor"},
    ),
    Injection(
        "teacher", "a teacher in train mode", group=STRUCTURAL, is_student=True,
        says={"doctor": "wrong  teacher: the teacher is in train mode", "train": "the teacher is in train mode"},
    ),
    Injection(
        "frozen", "a random backbone frozen for 100 of 200 epochs", group=STRUCTURAL, is_fresh=True,
        settings={"maxEpoch": 200, "backboneFreezeEpochs": tuple(range(100))},
        says={"doctor": "wrong  freezing: the backbone is frozen for 100 of 200 epochs"},
    ),
    Injection(
        "half-match", "starting weights of which half match", group=STRUCTURAL, is_fresh=True,
        says={"doctor": "wrong  weights:", "train": "does not fit the nano network"},
    ),
)  # fmt: skip
EVERYTHING = sorted((*INJECTIONS, *STRUCTURES), key=lambda one: list(TITLES).index(one.group))
CHECKS = {"file": _file, "half-match": _half_match, "alias": _alias, "teacher": _teacher, "frozen": _frozen}


# What is printed


def try_out(shop: Workshop, injection: Injection) -> Outcome:
    """Put one fault in; whatever it leads to is an outcome."""
    return CHECKS.get(injection.name, strike)(shop, injection)


def line(injection: Injection, outcome: Outcome) -> tuple[str, ...]:
    """The cells of one row."""
    missing = outcome.missing(injection)
    said = {name: text for name, text in outcome.said.items() if name in (*injection.says, *_ALWAYS)}
    moved = "not asked" if outcome.moved is None else f"moved: {', '.join(outcome.moved)}" if outcome.moved else "all"
    if outcome.moved and injection.holds != ALL:
        moved += f" (asked: {', '.join(injection.holds)})"
    verdict = f"NO: {', '.join(missing)}" if missing else "yes"
    return injection.what, _told(injection.says), _told(said), moved, verdict


_ALWAYS = (
    "message", "phase", "operation", "module", "where", "first seen", "likely", "noticed", "error", "step", "last step",
)  # fmt: skip


def _told(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {textwrap.shorten(text, 170)}" for name, text in rows.items())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Cells wrapped in columns."""
    heads = ("fault injected", "expected", "what was said", "unmoved", "caught and named rightly")
    lines = []
    for row in (heads, *rows):
        cells = [
            [piece for part in cell.splitlines() for piece in textwrap.wrap(part, width, subsequent_indent=" ")]
            for cell, width in zip(row, WIDTHS, strict=True)
        ]
        for number in range(max(map(len, cells))):
            pieces = (cell[number] if number < len(cell) else "" for cell in cells)
            lines.append("  ".join(f"{piece:<{width}}" for piece, width in zip(pieces, WIDTHS, strict=True)).rstrip())
        lines.append("-" * (sum(WIDTHS) + 2 * len(WIDTHS) - 2))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Put the faults in and print the tables; 1 when one line says no."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [one.name for one in EVERYTHING]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--size", type=int, default=96, help="side of the network's input in pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(arguments)
    started, groups, failed = time.monotonic(), collections.defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder), args.size, args.device)
        for injection in (one for one in EVERYTHING if not args.only or one.name in args.only):
            outcome = try_out(shop, injection)
            groups[injection.group].append(line(injection, outcome))
            if outcome.missing(injection):
                failed.append(injection.name)
            print(f"{'NO ' if outcome.missing(injection) else 'yes'}  {injection.name}: {injection.what}", flush=True)
    for group, rows in groups.items():
        print(f"\n{TITLES[group]}\n\n{table(rows)}")
    total = sum(map(len, groups.values()))
    print(f"\n{total - len(failed)} of {total} caught and named rightly, {time.monotonic() - started:.0f} s")
    if failed:
        print(f"not so: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
