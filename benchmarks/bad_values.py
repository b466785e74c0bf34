"""Is a non-finite value caught, and is the operation named that first produced it? Faults are injected one at a time.

    make faults         or          python -m benchmarks.bad_values [--only NAME] [--size 96]

The nano network trains on a few drawn scenes, with momentum, EMA and, where needed, a teacher. In the second epoch a
fault of benchmarks/injections.py is injected. Mars must stop before the optimizer step: weights, momentum, EMA and
files stay as they were, bit for bit, and the report names the right operation. Harmless faults must stay finite and
raise no alarm. Exit status 1 if one line says no.
"""

import argparse
import collections
import math
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import train.setup
from benchmarks.fault_runs import FaultOutcome, FaultRuns, captured_warnings, run_with_fault
from benchmarks.injections import ALL, INJECTIONS, QUIET, STOPPED, STRUCTURAL, UNPREPARED, Injection
from config.errors import UserError
from config.mconfig import ModelConfig
from debug.doctor.aliases import examine_aliases
from debug.doctor.finding import OK, Finding
from debug.doctor.plan_check import examine_freezing
from debug.doctor.weights_check import examine_teacher, examine_weights
from model import build_model
from train.objective import DistillationObjective
from train.teacher import Teacher

TITLES = {
    STOPPED: "Stopped before the step, right operation named",
    QUIET: "Must stay finite and raise no alarm",
    STRUCTURAL: "Structural: refused or warned",
    UNPREPARED: "Not considered when the tracer was written",
}
WIDTHS = (24, 38, 62, 12, 14)


# Structural faults and weights that are refused


def _refusal(runs: FaultRuns, injection: Injection, file: str) -> str:
    try:
        runs.trainer(injection, checkpointModelFile=file).run()
    except UserError as error:
        return str(error)
    return "nothing: the training ran"


def _file(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    name = "backbone.l2.cv1.conv.weight"

    def set_infinite(content: dict[str, Any]) -> None:
        content[name].view(-1)[0] = math.inf

    refusal = _refusal(runs, injection, runs.changed_weights(set_infinite))
    is_written = (runs.folder / injection.name / "weights").exists()
    return FaultOutcome(
        {"refused": refusal, "tensor": name if name in refusal else ""}, ("files",) if is_written else ()
    )


def _half_match(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    def drop_half(content: dict[str, Any]) -> None:
        for name in list(content)[::2]:
            del content[name]

    file = runs.changed_weights(drop_half)
    setup = runs.setup(injection, checkpointModelFile=file)
    return FaultOutcome({"train": _refusal(runs, injection, file), "doctor": problems(examine_weights(setup))})


def _alias(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    def with_alias(mcfg: ModelConfig) -> Any:
        model = build_model(mcfg)
        block: Any = model.backbone.l2.m[0]
        block.cv2.conv = block.cv1.conv
        return model

    with patch.object(train.setup, "build_model", with_alias):
        return FaultOutcome({"doctor": problems(examine_aliases(runs.setup(injection).model))})


def _teacher(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    init = Teacher.__init__

    def init_in_train_mode(self: Teacher, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._network.train()

    with patch.object(Teacher, "__init__", init_in_train_mode), captured_warnings():
        setup = runs.setup(injection)
        assert isinstance(setup.objective, DistillationObjective)
        doctor = problems(examine_teacher(setup, next(setup.batches(1))))
        try:
            runs.trainer(injection).run()
        except RuntimeError as error:
            return FaultOutcome({"train": str(error), "doctor": doctor})
    return FaultOutcome({"train": "nothing: the training ran", "doctor": doctor})


def _frozen(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    return FaultOutcome({"doctor": problems(examine_freezing(runs.setup(injection)))})


def problems(findings: Iterator[Finding]) -> str:
    """The lines of the doctor that are not ok."""
    return "; ".join(str(finding) for finding in findings if finding.level != OK) or "nothing"


STRUCTURES = (
    Injection(
        "file", "an Inf weight in the file that the run starts from", is_fresh=True,
        expected={"refused": "contains values that are not finite", "tensor": "backbone.l2.cv1.conv.weight"},
    ),
    Injection(
        "alias", "conv_1 = conv: backbone.l2.m.0.cv2.conv is cv1.conv", group=STRUCTURAL,
        expected={
            "doctor": "wrong  aliases: backbone.l2.m.0.cv1.conv and backbone.l2.m.0.cv2.conv are the same tensor",
        },
    ),
    Injection(
        "teacher", "a teacher in train mode", group=STRUCTURAL, is_student=True,
        expected={"doctor": "wrong  teacher: the teacher is in train mode", "train": "the teacher is in train mode"},
    ),
    Injection(
        "frozen", "a random backbone frozen for 100 of 200 epochs", group=STRUCTURAL, is_fresh=True,
        settings={"maxEpoch": 200, "backboneFreezeEpochs": tuple(range(100))},
        expected={"doctor": "wrong  freezing: the backbone is frozen for 100 of 200 epochs"},
    ),
    Injection(
        "half-match", "starting weights of which only half match", group=STRUCTURAL, is_fresh=True,
        expected={"doctor": "wrong  weights:", "train": "does not fit the nano network"},
    ),
)  # fmt: skip
ALL_INJECTIONS = sorted((*INJECTIONS, *STRUCTURES), key=lambda injection: list(TITLES).index(injection.group))
CHECKS = {"file": _file, "half-match": _half_match, "alias": _alias, "teacher": _teacher, "frozen": _frozen}


# Output


def try_out(runs: FaultRuns, injection: Injection) -> FaultOutcome:
    """Inject one fault; every error of the run is part of the outcome."""
    return CHECKS.get(injection.name, run_with_fault)(runs, injection)


def table_row(injection: Injection, outcome: FaultOutcome) -> tuple[str, ...]:
    """The cells of one row."""
    missing = outcome.missing(injection)
    reported = {name: text for name, text in outcome.reported.items() if name in (*injection.expected, *_ALWAYS_SHOWN)}
    if outcome.changed is None:
        unchanged = "not checked"
    else:
        unchanged = f"changed: {', '.join(outcome.changed)}" if outcome.changed else "all"
    if outcome.changed and injection.protected != ALL:
        unchanged += f" (checked: {', '.join(injection.protected)})"
    verdict = f"NO: {', '.join(missing)}" if missing else "yes"
    return injection.description, _cell(injection.expected), _cell(reported), unchanged, verdict


_ALWAYS_SHOWN = (
    "message", "phase", "operation", "module", "where", "first seen", "likely", "noticed", "error", "step", "last step",
)  # fmt: skip


def _cell(rows: Mapping[str, str]) -> str:
    return "\n".join(f"{name}: {textwrap.shorten(text, 170)}" for name, text in rows.items())


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows below their titles; long cells are wrapped."""
    titles = ("injected fault", "expected", "reported", "unchanged", "caught and named")
    lines = []
    for row in (titles, *rows):
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
    """Inject the faults and print the tables. Returns 1 if one line says no."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    names = [injection.name for injection in ALL_INJECTIONS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--size", type=int, default=96, help="side of the network input in pixels")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(arguments)
    started, groups, failed = time.monotonic(), collections.defaultdict(list), []
    with tempfile.TemporaryDirectory() as folder:
        runs = FaultRuns(Path(folder), args.size, args.device)
        chosen = [injection for injection in ALL_INJECTIONS if not args.only or injection.name in args.only]
        for injection in chosen:
            outcome = try_out(runs, injection)
            groups[injection.group].append(table_row(injection, outcome))
            if outcome.missing(injection):
                failed.append(injection.name)
            print(
                f"{'NO ' if outcome.missing(injection) else 'yes'}  {injection.name}: {injection.description}",
                flush=True,
            )
    for group, rows in groups.items():
        print(f"\n{TITLES[group]}\n\n{table(rows)}")
    total = sum(map(len, groups.values()))
    print(f"\n{total - len(failed)} of {total} caught and named, {time.monotonic() - started:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
