"""Cost of the checks in each training step, by size: steps with and without them alternate, and the checks are timed.

    OMP_NUM_THREADS=1 python -m benchmarks.guard_cost [--steps 100] [--deferred]

nano, float32, SGD with EMA, healthInterval=100. Times are medians of the CPU time of this process, so that a busy
machine changes little. The difference between the two kinds of steps is less exact than the time of the checks: caches
and a shared processor change a step by several percent. `--deferred`: the deferred check of train/deferred.py, with the
fused optimizer.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

import train.monitor
import train.opt
from benchmarks.noise import noise_batch
from model import YoloModel
from ops.batch import Batch
from ops.device import autocast
from train.deferred import DeferredGuard
from train.effect import Effect
from train.ema import ModelEMA
from train.guard import Guard, StepRecord
from train.loss import DetectionLoss, LossResult
from train.monitor import Monitor, Spikes
from train.objective import DetectionObjective
from train.opt import set_pace
from train.progress import EpochProgress
from train.sched import Pace
from train.step import Stepper, network_input

CHECKS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Guard, ("capture", "record", "check_gradients", "check_norm", "finish")),
    (DeferredGuard, ("prepare_loss", "mark_bad", "_restore_if_bad", "finish")),
    (StepRecord, ("read",)),
    (DetectionLoss, ("_with_checks",)),
    (Stepper, ("_read", "_state_sum")),
    (Spikes, ("add",)),
    (Effect, ("add",)),
    (train.monitor, ("impossible_values",)),
    (train.opt, ("_is_finite",)),
)
SIZES = ((96, 2), (160, 8), (320, 8))  # pixels, images
CLASSES, BOXES = 20, 6  # boxes per image
WARM_UP = 5
PACE = Pace(rate=1e-3, bias_rate=1e-3, momentum=0.9, accumulate=1)


class Clock:
    """Sums the time spent in functions. A function called by another timed function is counted once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable) -> Callable:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self.seconds += time.process_time() - start

        return timed


class Bench:
    """One network that is trained with and without the checks alternately."""

    def __init__(self, size: int, count: int, is_deferred: bool, folder: str):
        model = YoloModel("nano", CLASSES).train().to(memory_format=torch.channels_last)
        groups = [{"params": model.parameters(), "name": "weights"}]
        optimizer = torch.optim.SGD(
            groups, lr=PACE.rate, momentum=PACE.momentum, nesterov=True, fused=True if is_deferred else None
        )
        guard = (DeferredGuard if is_deferred else Guard)(model, interval=100)
        objective = DetectionObjective(DetectionLoss(CLASSES))
        self.stepper = Stepper(model, objective, optimizer, ModelEMA(model), torch.float32, 10.0, False, guard)
        self.loss, self.monitor, self.progress = objective.loss, Monitor(Path(folder), ()), EpochProgress()
        self.batches = [noise_batch(count, size, CLASSES, BOXES, seed) for seed in range(4)]

    def guarded(self, batch: Batch) -> None:
        """The step of the trainer."""
        self.monitor.check_inputs(batch, self.progress)
        set_pace(self.stepper.optimizer, PACE)
        values = self.stepper.add(batch)
        self.progress.add(values, len(batch))
        self.monitor.add(self.stepper, values, self.progress)

    def bare(self, batch: Batch) -> None:
        """The same step without any check."""
        stepper = self.stepper
        assert stepper.ema is not None
        with autocast(stepper.device, stepper.precision):
            result = self.loss(stepper.model(network_input(batch.images)), batch)
        result.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(stepper.parameters, stepper.gradient_clip)
        stepper.optimizer.step()
        stepper.optimizer.zero_grad(set_to_none=True)
        stepper.ema.update(stepper.model)
        self.progress.add({"loss": result.total.detach(), **result.parts, "grad_norm": norm}, len(batch))


def unwatched(self: DetectionLoss, found: LossResult, *_: Any) -> LossResult:
    return found


def seconds_of(step: Callable[[Batch], None], batch: Batch) -> float:
    start = time.process_time()
    step(batch)
    return time.process_time() - start


def measure(size: int, count: int, steps: int, is_deferred: bool, clock: Clock) -> str:
    """A row of the table."""
    with TemporaryDirectory() as folder:
        bench = Bench(size, count, is_deferred, folder)
    times = {"without": [], "with": [], "checks": []}
    for number in range(WARM_UP + steps):
        batch = bench.batches[number % len(bench.batches)]
        with patch.object(DetectionLoss, "_with_checks", unwatched):
            times["without"].append(seconds_of(bench.bare, batch))
        clock.seconds = 0.0
        times["with"].append(seconds_of(bench.guarded, batch))
        times["checks"].append(clock.seconds)
    without, with_checks, checks = (1e3 * median(times[name][WARM_UP:]) for name in ("without", "with", "checks"))
    share = 100 * checks / with_checks
    return f"| {size} px, {count} | {without:.1f} | {with_checks:.1f} | {checks:.2f} | {share:.2f} % |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps of each kind and size")
    parser.add_argument("--deferred", action="store_true")
    args = parser.parse_args(arguments)
    clock = Clock()
    for owner, names in CHECKS:
        for name in names:
            setattr(owner, name, clock.around(getattr(owner, name)))
    print("| size, batch | step without, ms | step with, ms | checks, ms | share |\n|---|---|---|---|---|")
    for size, count in SIZES:
        print(measure(size, count, args.steps, args.deferred, clock), flush=True)


if __name__ == "__main__":
    main()
