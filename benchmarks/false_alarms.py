"""Is a training without effect reported, and a good training not? Short runs of both kinds, with their figures.

    OMP_NUM_THREADS=1 python -m benchmarks.false_alarms [--only NAME ...]

nano at 96 px on drawn squares of four colours, on the CPU. A good run must raise no report; a bad run must raise the
right one within two epochs. Exit status 1 if one run does not. The table is the one in docs/experiments.md.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.fault_runs import captured_warnings
from benchmarks.squares import TWO_COLOURS, draw_squares
from config.errors import UserError
from config.load import load_config
from train import effect
from train.effect import EMA_STILL, FLAT, SHRINKING, STILL, VANISHED, Change, Effect
from train.trainer import Trainer

SCENES, FEW_SCENES = 120, 12  # two thirds are for training: twenty steps of four images per epoch, or two
SIZE, BATCH, SMALL = 96, 4, 8
COLOURS = {**TWO_COLOURS, "green": (40, 200, 60), "white": (245, 245, 245)}
REFUSED = "refused: nothing can be trained"
MAX_DELAY = 2  # epochs after the first symptom within which a run without effect must be reported


def _freeze_all(trainer: Trainer) -> None:
    prepare = trainer.preEpochSetup

    def prepare_and_freeze(epoch: int) -> None:
        prepare(epoch)
        trainer.model.requires_grad_(False)

    trainer.preEpochSetup = prepare_and_freeze


def _hold_ema(trainer: Trainer) -> None:
    assert trainer.ema is not None
    trainer.ema.decay, trainer.ema.ramp = 1.0, 1e-6


@dataclass(frozen=True)
class Run:
    """One training. `expected`: the report that a bad run must raise; None: a good run."""

    name: str
    description: str
    settings: Mapping[str, Any]
    expected: str | None = None
    recipe: str = "voc.nano.full"
    change: Callable[[Trainer], None] | None = None  # simulates a mistake in the user's code
    scenes: int = SCENES
    begins: int = 1  # epoch of the first symptom


STUDENT = {"teacherModelFile": "teacher", "checkpointModelFile": "teacher", "baseClasses": 2}
GOOD = (
    Run("random-float32", "random weights, float32, linear schedule", {"maxEpoch": 8}),
    Run(
        "random-bfloat16",
        "random weights, bfloat16, the assignment's training",
        {"maxEpoch": 8, "precision": "bfloat16", "training": "assignment", "lossReduction": "sum"},
    ),
    Run(
        "teacher",
        "random weights, AdamW, two classes",
        {"maxEpoch": 8, "optimizerType": "AdamW", "baseLearningRate": 1e-3, "baseClasses": 2},
        recipe="voc.nano.teacher",
    ),
    Run(
        "distilled",
        "a student of that teacher, eight images and replay",
        {"maxEpoch": 6, "epochValidation": True, **STUDENT},
        recipe="voc.nano.distillation",
    ),
    Run(
        "fine-tuned",
        "trained weights, learning rate .001 to .0001",
        {"maxEpoch": 4, "checkpointModelFile": "random-float32", "baseLearningRate": 1e-3, "minLearningRate": 1e-4},
    ),
    Run(
        "converged",
        "trained weights, learning rate .00001 to .000001, plateau",
        {
            "maxEpoch": 5,
            "checkpointModelFile": "random-float32",
            "baseLearningRate": 1e-5,
            "minLearningRate": 1e-6,
            "schedulerType": "plateau",
            "nominalBatch": None,  # twenty steps an epoch
        },
    ),
    Run(
        "frozen-first",
        "the backbone frozen for three epochs of five",
        {"maxEpoch": 5, "checkpointModelFile": "random-float32", "backboneFreezeEpochs": [0, 1, 2]},
    ),
    Run(
        "few-images",
        "random weights, eight images, two steps an epoch",
        {"maxEpoch": 8},
        scenes=FEW_SCENES,
    ),
)
BAD = (
    Run("clip", "gradientClip=1e-30", {"gradientClip": 1e-30}, STILL),
    Run("clip-adamw", "gradientClip=1e-30, AdamW", {"gradientClip": 1e-30, "optimizerType": "AdamW"}, STILL),
    Run("rate", "learning rate 1e-30", {"baseLearningRate": 1e-30, "minLearningRate": 1e-30}, STILL),
    Run("frozen", "every parameter frozen", {}, REFUSED, change=_freeze_all),
    Run(
        "low-rate",
        "random weights, learning rate 1e-6",
        {"baseLearningRate": 1e-6, "minLearningRate": 1e-6, "warmupBiasRate": 0.0, "warmupEpochs": 0.0},
        FLAT,
    ),
    Run(
        "high-rate",
        "learning rate 10; the scores vanish in epoch 2",
        {"baseLearningRate": 10.0, "warmupEpochs": 0.0},
        VANISHED,
        begins=2,
    ),
    Run("decay", "weight decay 50", {"optimizerWeightDecay": 50.0, "warmupEpochs": 0.0}, SHRINKING),
    Run("ema", "an EMA with a decay of 1", {}, EMA_STILL, change=_hold_ema),
)
BAD_EPOCHS = 3


@dataclass
class AlarmOutcome:
    """Figures and messages of a run."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    ema_changes: list[float] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    @property
    def reports(self) -> dict[str, int]:
        """Kind -> epoch, from 1, of the first report."""
        if not self.rows and self.messages and "nothing can be trained" in self.messages[0]:
            return {REFUSED: 1}
        found: dict[str, int] = {}
        for row in self.rows:
            for kind in row["no_effect"]:
                found.setdefault(kind, row["epoch"] + 1)
        return found


def train(run: Run, folder: Path) -> AlarmOutcome:
    """Train it in `folder`, next to the runs that it starts from."""
    outcome, symptoms = AlarmOutcome(), Effect._symptoms

    def recording(self: Effect, changes: dict[str, Change], trains_matrices: bool) -> list[str]:
        outcome.ratios.append(changes["matrices"].ratio)
        outcome.ema_changes += [changes["EMA"].turned] if "EMA" in changes else []
        return symptoms(self, changes, trains_matrices)

    values = {
        "classList": list(COLOURS), "inputShape": SIZE, "batchSize": BATCH, "maxEpoch": BAD_EPOCHS, "dcore": 0,
        "paintImages": False, "device": "cpu", "precision": "float32", "trainMinutes": None, **run.settings,
    }  # fmt: skip
    for name in ("teacherModelFile", "checkpointModelFile"):
        if name in values:
            values[name] = str(folder / str(values[name]))
    data = folder / f"squares-{run.scenes}"
    if not data.exists():
        draw_squares(data, run.scenes, SIZE, colours=COLOURS, small=SMALL)
    with patch.object(Effect, "_symptoms", recording), captured_warnings() as warnings:
        trainer = Trainer(load_config(run.recipe, str(folder), str(data), values, run.name), quiet=True)
        if run.change is not None:
            run.change(trainer)
        try:
            trainer.run()
        except UserError as error:
            outcome.messages.append(str(error))
            return outcome
    outcome.rows, outcome.messages = trainer.history, [text for text in warnings if "no effect" in text]
    return outcome


def table_row(run: Run, outcome: AlarmOutcome) -> str:
    """A row of the table: the figures closest to a threshold, and the reports with their epochs."""
    if not outcome.rows:
        return f"| {run.description} | | | | | | | {', '.join(outcome.reports)} |"
    changes, tops = ([row[name] for row in outcome.rows] for name in ("weight_change", "top_score"))
    reports = ", ".join(f"{kind} ({epoch})" for kind, epoch in outcome.reports.items()) or "none"
    figures = [row["map50"] for row in outcome.rows if row["map50"] is not None]
    ema_change = f"{min(outcome.ema_changes):.1e}" if outcome.ema_changes else ""
    cells = (
        run.description, f"{min(changes):.1e}", f"{min(outcome.ratios):.3f}", f"{min(tops):.1e}", ema_change,
        f"{outcome.rows[0]['loss']:.3g} > {outcome.rows[-1]['loss']:.3g}",
        f"{max(figures):.3f}" if figures else "", reports,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def is_as_expected(run: Run, outcome: AlarmOutcome) -> bool:
    if run.expected is None:
        return not outcome.reports
    return outcome.reports.get(run.expected, math.inf) < run.begins + MAX_DELAY


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names of runs; include the runs that they start from")
    args = parser.parse_args(arguments)
    print(
        f"thresholds: change {effect.RESOLUTION:.1e} (still), {effect.SLOW:g} (slow); length {effect.SHRUNK:g}; "
        f"top score {effect.LOWEST_SCORE:g}\n\n"
        "| run | least change of the weights | least length | lowest top score | least change of the EMA | loss | "
        "best mAP50 | reported (epoch) |\n|---|---|---|---|---|---|---|---|"
    )
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for run in (run for run in (*GOOD, *BAD) if args.only is None or run.name in args.only):
            outcome = train(run, Path(folder))
            print(table_row(run, outcome), flush=True)
            wrong += (
                [] if is_as_expected(run, outcome) else [f"{run.name}: {'; '.join(outcome.messages) or 'not reported'}"]
            )
    print("\nall as expected" if not wrong else "\nWRONG\n" + "\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
