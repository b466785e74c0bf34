"""Checks of the plan: learning-rate schedule, frozen backbone, mosaic and teacher over the epochs, with a plot."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from debug.doctor.weights_check import is_backbone_random
from dl.mosaic import ModernRanges
from eval.plots import EpochSpan, PlannedRates, plot_schedule
from ops.text import counted
from train.objective import DistillationObjective
from train.setup import TrainingSetup

PLOT = "schedule.png"
_LONG = 0.1  # share of the epochs above which a random backbone must not be frozen
_FEW_STEPS = 100
_MOST_POINTS = 4000  # of the curve


def examine_schedule(setup: TrainingSetup, folder: Path) -> Iterator[Finding]:
    """Draw the plan into `folder` and describe it."""
    rates = planned_rates(setup)
    path = plot_schedule(rates, planned_spans(setup), folder / PLOT)
    mcfg, num_batches, num_epochs = setup.mcfg, len(setup.loader), len(setup.epochs)
    warm_up = setup.warm_up
    text = f"{mcfg.schedulerType} from {max(rates.rates):.2g} to {rates.rates[-1]:.2g} over "
    text += "at most " if mcfg.trainMinutes else ""
    text += f"{counted(num_epochs, 'epoch')} of {counted(num_batches, 'batch', 'batches')}"
    if mcfg.trainMinutes:
        text += f" (trainMinutes={mcfg.trainMinutes:g}: the number is planned again after each epoch, at least "
        text += f"trainMinEpochs={mcfg.trainMinEpochs}; with fewer epochs, each takes a larger share of the schedule)"
    text += f", drawn in {path}"
    if mcfg.schedulerType == "plateau":
        text += " without its reductions, because they depend on validation results"
    yield Finding(OK, "schedule", text)
    total = num_batches * num_epochs
    if warm_up.num_batches > total / 2:
        yield Finding(
            LOOK, "schedule", f"warm-up takes {warm_up.num_batches} batches, and the training has {total}: the "
            "learning rate is at its full value only briefly or never; "
            "raise maxEpoch, lower batchSize, or set warmupEpochs=0",
        )  # fmt: skip
    elif total / warm_up.accumulate < _FEW_STEPS:
        steps = counted(round(total / warm_up.accumulate), "step")
        yield Finding(LOOK, "schedule", f"the optimizer makes only {steps}: raise maxEpoch")


def examine_freezing(setup: TrainingSetup) -> Iterator[Finding]:
    """Is a backbone with random weights frozen, and for how long?"""
    frozen, num_epochs = setup.frozen_epochs, len(setup.epochs)
    outside = [epoch for epoch in setup.mcfg.backboneFreezeEpochs if epoch not in setup.epochs]
    if outside:
        yield Finding(
            LOOK, "freezing", f"backboneFreezeEpochs has epochs that are not trained ({epochs_text(outside)}); this "
            f"run trains epochs {epochs_text(setup.epochs)} (the field counts from 0)",
        )  # fmt: skip
    if not frozen:
        if not outside:
            yield Finding(OK, "freezing", "the backbone is trained in every epoch")
        return
    text = f"the backbone is frozen for {len(frozen)} of {counted(num_epochs, 'epoch')} ({epochs_text(frozen)})"
    if not is_backbone_random(setup):
        yield Finding(OK, "freezing", f"{text}, with weights from a file")
        return
    level = WRONG if len(frozen) > _LONG * num_epochs else LOOK
    yield Finding(
        level, "freezing", f"{text}, and its weights are random, so the head is trained on random features; start from "
        "trained weights (pretrained, checkpointModelFile or pretrainedBackboneUrl), or remove backboneFreezeEpochs",
    )  # fmt: skip


def planned_rates(setup: TrainingSetup) -> PlannedRates:
    """The learning rates at every batch; at some of them when there are many. All epochs of maxEpoch are drawn."""
    mcfg, num_batches = setup.mcfg, len(setup.loader)
    interval = max(1, num_batches * len(setup.epochs) // _MOST_POINTS)
    epochs, rates, bias_rates = [], [], []
    for epoch in setup.epochs:
        rate = setup.schedule.rate(epoch)
        for batch in range(0, num_batches, interval):
            pace = setup.warm_up.pace((epoch - mcfg.startEpoch) * num_batches + batch, rate)
            epochs.append(epoch + batch / num_batches)
            rates.append(pace.rate)
            bias_rates.append(pace.bias_rate)
    return PlannedRates([*epochs, mcfg.maxEpoch], [*rates, rates[-1]], [*bias_rates, bias_rates[-1]])


def planned_spans(setup: TrainingSetup) -> dict[str, list[EpochSpan]]:
    """In which epochs the backbone is frozen, images are combined to mosaics, and the teacher is used."""
    ranges, objective = setup.loader.dataset.ranges, setup.objective
    mosaic = [epoch for epoch in setup.epochs if isinstance(ranges, ModernRanges) and ranges.has_mosaic(epoch)]
    with_teacher = []
    if isinstance(objective, DistillationObjective):
        with_teacher = [epoch for epoch in setup.epochs if objective.distill_weight_at(epoch, epoch) > 0]
    return {"frozen": spans_of(setup.frozen_epochs), "mosaic": spans_of(mosaic), "teacher": spans_of(with_teacher)}


def epochs_text(epochs: Iterable[int]) -> str:
    """Epochs, counted from 0, as text that counts from 1: 1 to 5, 8."""
    spans = spans_of(sorted(set(epochs)))
    return ", ".join(f"{a + 1}" if b == a + 1 else f"{a + 1} to {b}" for a, b in spans)


def spans_of(epochs: Iterable[int]) -> list[EpochSpan]:
    """Joins neighbouring epochs of a rising sequence into spans."""
    spans: list[EpochSpan] = []
    for epoch in epochs:
        if spans and spans[-1].last == epoch:
            spans[-1] = EpochSpan(spans[-1].first, epoch + 1)
        else:
            spans.append(EpochSpan(epoch, epoch + 1))
    return spans
