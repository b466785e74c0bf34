"""What the checks of every step cost: they are timed themselves, inside the steps that they stand in.

    OMP_NUM_THREADS=1 python -m benchmarks.guard_cost [--steps 200] [--late]

nano at 320 px, batch 8, float32, SGD with the average. The process's own time, so that a busy machine changes little.
`--late`: judged a step late, as on CUDA, with the fused optimizer.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch

import train.loss
import train.step
from benchmarks.noise import noise_batch
from model import YoloModel
from train.ema import ModelEMA
from train.health.guard import Guard, Step
from train.health.spikes import Spikes
from train.loss import DetectionLoss
from train.objective import Detecting
from train.step import Stepper

CHECKS: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (Guard, ("take", "watch_inputs", "watch_statistics", "blame", "hold_back")),
    (Step, ("send", "read")),
    (train.step, ("flag_of", "agreed")),
    (train.loss, ("total_of",)),
    (Stepper, ("_judge_one", "_state_total")),
    (Spikes, ("add",)),
)
WARM_UP = 5


class Clock:
    """Adds up the time spent in functions; one that runs inside another counts once."""

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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--late", action="store_true")
    args = parser.parse_args(arguments)
    clock = Clock()
    for owner, names in CHECKS:
        for name in names:
            setattr(owner, name, clock.around(getattr(owner, name)))
    model = YoloModel("nano", 20).train().to(memory_format=torch.channels_last)
    fused = True if args.late else None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=fused)
    guard = Guard(model, is_late=args.late, interval=100)
    stepper = Stepper(
        model, Detecting(DetectionLoss(20)), optimizer, ModelEMA(model), torch.float32, 10.0, False, guard
    )
    spikes, batches, whole = Spikes(), [noise_batch(8, 320, 20, 6, seed) for seed in range(4)], 0.0
    for number in range(WARM_UP + args.steps):
        if number == WARM_UP:
            clock.seconds = whole = 0.0
        start = time.process_time()
        values = stepper.add(batches[number % len(batches)])
        spikes.add({name: value.item() for name, value in values.items()}, number)
        whole += time.process_time() - start
    step, checks = 1e3 * whole / args.steps, 1e3 * clock.seconds / args.steps
    print(f"{args.steps} steps of {step:.1f} ms, checks {checks:.2f} ms: {100 * checks / step:.2f} %")


if __name__ == "__main__":
    main()
