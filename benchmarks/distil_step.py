"""Time of a training step with a teacher, relative to a step without one.

    python -m benchmarks.distil_step [--phase nano] [--teacher nano] [--size 320] [--batch 16] [--steps 20]
        [--precision float32]

Both kinds of step alternate in one process on the same batch, from the same weights. The ratio is that of the medians.
Losses and weights are those of `distilling=modern`.
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
from ops.device import DTYPES, dtype_name, pick_device
from train.distilloss import DistillationLoss, DistillationWeights
from train.loss import DetectionLoss
from train.objective import DetectionObjective, DistillationObjective, Objective
from train.step import Stepper
from train.teacher import Teacher, TeacherClasses

NUM_CLASSES = 20
BOXES = 8  # per image


def build_stepper(objective: Objective, model: YoloModel, precision: torch.dtype) -> Stepper:
    modules = (model, *objective.extra_modules)
    parameters = [weight for module in modules for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    return Stepper(model, objective, optimizer, None, precision, 10.0, sum_over_batch=True)


def step_seconds(stepper: Stepper, batch: Batch) -> float:
    """On the CPU the time of this process, so that other programs change it little."""
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
    student, plain_model, teacher_model = (
        YoloModel(phase, NUM_CLASSES).train().to(device, memory_format=torch.channels_last)  # type: ignore
        for phase in (args.phase, args.phase, args.teacher)
    )
    classes = TeacherClasses(("",) * 10, tuple(range(10)), tuple(range(10)))
    teacher = Teacher(teacher_model, classes, precision)
    detection, cwd, response = MODERN_DISTILLING["distilLossWeights"]
    weights = DistillationWeights(detection, cwd, response, MODERN_DISTILLING["boxResponseWeight"])
    loss = DistillationLoss(
        DetectionLoss(NUM_CLASSES), range(10), None, weights,
        teacher.feature_widths(MODERN_DISTILLING["distilFeatures"], student),
        MODERN_DISTILLING["responseMode"], MODERN_DISTILLING["temperature"],
    ).to(device)  # fmt: skip
    plain_stepper = build_stepper(DetectionObjective(DetectionLoss(NUM_CLASSES)), plain_model, precision)
    student_stepper = build_stepper(DistillationObjective(loss, teacher), student, precision)
    times: list[list[float]] = [[], []]
    for number in range(args.steps + 3):
        for kind, stepper in enumerate((plain_stepper, student_stepper)):
            seconds = step_seconds(stepper, batch)
            if number >= 3:  # the first steps allocate memory
                times[kind].append(seconds)
    plain, distilled = (median(seconds) for seconds in times)
    networks = f"{args.phase}, teacher {args.teacher}, {args.size} px, batch {args.batch}"
    machine = f"{dtype_name(precision)}, {device}, {torch.get_num_threads()} threads"
    figures = f"plain {1000 * plain:.0f} ms, with a teacher {1000 * distilled:.0f} ms, ratio {distilled / plain:.2f}"
    print(f"{networks}, {machine}: {figures} (medians of {args.steps})")


if __name__ == "__main__":
    main()
