"""How long a step with a teacher takes, in steps without one.

    python -m benchmarks.distil_step [--phase nano] [--teacher nano] [--size 320] [--batch 16] [--steps 20]
        [--precision float32]

Both kinds of step take turns in one process, on the same batch and from the same weights; the ratio is that of their
medians. Losses and weights of the student's recipe are those of `distilling=modern`.
"""

import argparse
import time
from collections.abc import Sequence
from statistics import median

import torch

from benchmarks.noise import noise_batch
from config.training import MODERN_DISTILLING
from model import YoloModel
from ops.batch import Batch
from ops.device import pick_device
from ops.precision import DTYPES, dtype_name
from train.distilloss import DistillationLoss, DistilWeights
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, Objective
from train.step import Stepper
from train.teacher import Teacher, TeacherClasses

NUM_CLASSES = 20
BOXES = 8  # on every image


def stepper_of(objective: Objective, model: YoloModel, precision: torch.dtype) -> Stepper:
    parameters = [one for part in (model, *objective.extra_modules) for one in part.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    return Stepper(model, objective, optimizer, None, precision, 10.0, sum_over_batch=True)


def seconds_of(stepper: Stepper, batch: Batch) -> float:
    """On the CPU its own time, which does not grow with what else the machine does."""
    is_cuda = batch.images.is_cuda
    clock = time.perf_counter if is_cuda else time.process_time
    started = clock()
    stepper.add(batch)
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phase", default="nano")
    parser.add_argument("--teacher", default="nano")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    args = parser.parse_args(arguments)
    device = pick_device("auto", True)
    precision = DTYPES[args.precision]
    batch = noise_batch(args.batch, args.size, NUM_CLASSES, BOXES).to(device)
    student, twin, other = (
        YoloModel(phase, NUM_CLASSES).train().to(device, memory_format=torch.channels_last)  # type: ignore
        for phase in (args.phase, args.phase, args.teacher)
    )
    known = TeacherClasses(("",) * 10, tuple(range(10)), tuple(range(10)))
    teacher = Teacher(other, known, precision)
    detection, cwd, response = MODERN_DISTILLING["distilLossWeights"]
    weights = DistilWeights(detection, cwd, response, MODERN_DISTILLING["boxResponseWeight"])
    taught = DistillationLoss(
        DetectionLoss(NUM_CLASSES), range(10), None, weights,
        teacher.feature_widths(MODERN_DISTILLING["distilFeatures"], student),
        MODERN_DISTILLING["responseMode"], MODERN_DISTILLING["temperature"],
    ).to(device)  # fmt: skip
    plain = stepper_of(DetectionObjective(DetectionLoss(NUM_CLASSES)), twin, precision)
    distilled = stepper_of(DistillationObjective(taught, teacher), student, precision)
    times: list[list[float]] = [[], []]
    for number in range(args.steps + 3):
        for kind, stepper in enumerate((plain, distilled)):
            seconds = seconds_of(stepper, batch)
            if number >= 3:  # the first ones allocate
                times[kind].append(seconds)
    without, beside = (median(one) for one in times)
    networks = f"{args.phase}, teacher {args.teacher}, {args.size} px, batch {args.batch}"
    machine = f"{dtype_name(precision)}, {device}, {torch.get_num_threads()} threads"
    figures = f"plain {1000 * without:.0f} ms, with a teacher {1000 * beside:.0f} ms, ratio {beside / without:.2f}"
    print(f"{networks}, {machine}: {figures} (medians of {args.steps})")


if __name__ == "__main__":
    main()
