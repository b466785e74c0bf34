"""Learning rate, freezing and what else follows the calendar: drawn, and read for plans that cannot work."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from debug.doctor.finding import LOOK, OK, WRONG, Finding, epochs_text
from debug.doctor.weights_check import is_backbone_random
from dl.mosaic import ModernRanges
from eval.schedule_plot import EpochSpan, PlannedRates, plot_schedule
from ops.text import counted
from train.objective import DistillationObjective
from train.sched import build_schedule, build_warm_up
from train.setup import TrainingSetup

PLOT = "schedule.png"
_LONG = 0.1  # share of the epochs that a random backbone must not be held still for
_FEW_STEPS = 100
_MOST_POINTS = 4000  # of the curve


def examine_schedule(patient: TrainingSetup, folder: Path) -> Iterator[Finding]:
    """Draw the plan into `folder` and say what is in it."""
    planned = _planned(patient)
    path = plot_schedule(planned, _spans(patient), folder / PLOT)
    mcfg, num_batches = patient.mcfg, len(patient.loader)
    warm_up = build_warm_up(mcfg, num_batches)
    total, epochs = num_batches * len(patient.epochs), len(patient.epochs)
    what = f"{mcfg.schedulerType} from {max(planned.rates):.2g} to {planned.rates[-1]:.2g} in "
    what += f"{counted(epochs, 'epoch')} of {counted(num_batches, 'batch', 'batches')}"
    minutes = mcfg.trainMinutes
    if minutes:
        what += f" (what trainMinutes={minutes:g} allows on this machine as busy as it is, at least "
        what += f"trainMinEpochs={mcfg.trainMinEpochs})"
    what += f", drawn in {path}"
    if mcfg.schedulerType == "plateau":
        what += " without its reductions, which follow from figures that nobody knows yet"
    yield Finding(OK, "schedule", what)
    if warm_up.num_batches > total / 2:
        yield Finding(
            LOOK, "schedule", f"warm-up takes {warm_up.num_batches} of the {total} batches, so the learning rate "
            "hardly gets to its height: raise maxEpoch, or lower batchSize; warmupEpochs=0 leaves it out",
        )  # fmt: skip
    elif total / warm_up.accumulate < _FEW_STEPS:
        steps = round(total / warm_up.accumulate)
        yield Finding(LOOK, "schedule", f"only {counted(steps, 'step')} of the optimizer: raise maxEpoch")


def examine_freezing(patient: TrainingSetup) -> Iterator[Finding]:
    """Is the backbone held still for longer than it bears?"""
    frozen, epochs = patient.frozen_epochs, len(patient.epochs)
    never = [epoch for epoch in patient.mcfg.backboneFreezeEpochs if epoch not in patient.epochs]
    if never:
        yield Finding(
            LOOK, "freezing", f"backboneFreezeEpochs names epochs that are not trained ({epochs_text(never)}); epochs "
            f"{epochs_text(list(patient.epochs))} are (the field counts from 0)",
        )  # fmt: skip
    if not frozen:
        if not never:
            yield Finding(OK, "freezing", "the backbone learns in every epoch")
        return
    held = f"the backbone is held still for {len(frozen)} of {counted(epochs, 'epoch')} ({epochs_text(frozen)})"
    if not is_backbone_random(patient):
        yield Finding(OK, "freezing", f"{held}, with weights that were read from a file")
        return
    way_out = (
        "start from weights that know something (pretrained, checkpointModelFile or pretrainedBackboneUrl), or leave "
        "backboneFreezeEpochs out"
    )
    is_long = len(frozen) > _LONG * epochs
    reason = f"{held}, and its weights are random: nothing is learned in them, and the head learns from noise"
    yield Finding(WRONG if is_long else LOOK, "freezing", f"{reason}; {way_out}")


def _planned(patient: TrainingSetup) -> PlannedRates:
    """Rates at every batch, thinned out where there are many."""
    mcfg, num_batches = patient.mcfg, len(patient.loader)
    schedule, warm_up = build_schedule(mcfg), build_warm_up(mcfg, num_batches)
    thinning = max(1, num_batches * len(patient.epochs) // _MOST_POINTS)
    epochs, rates, bias_rates = [], [], []
    for epoch in patient.epochs:
        rate = schedule.rate(epoch)
        for batch in range(0, num_batches, thinning):
            pace = warm_up.pace((epoch - mcfg.startEpoch) * num_batches + batch, rate)
            epochs.append(epoch + batch / num_batches)
            rates.append(pace.rate)
            bias_rates.append(pace.bias_rate)
    return PlannedRates([*epochs, mcfg.maxEpoch], [*rates, rates[-1]], [*bias_rates, bias_rates[-1]])


def _spans(patient: TrainingSetup) -> dict[str, Sequence[EpochSpan]]:
    ranges = patient.loader.dataset.ranges
    mosaic = [epoch for epoch in patient.epochs if isinstance(ranges, ModernRanges) and ranges.has_mosaic(epoch)]
    taught = [epoch for epoch in patient.epochs if _strength(patient, epoch) > 0]
    return {"frozen": _joined(patient.frozen_epochs), "mosaic": _joined(mosaic), "teacher": _joined(taught)}


def _strength(patient: TrainingSetup, epoch: int) -> float:
    return patient.objective.distill_weight_at(epoch) if isinstance(patient.objective, DistillationObjective) else 0.0


def _joined(epochs: Sequence[int]) -> list[EpochSpan]:
    """Neighbouring epochs as one span."""
    spans: list[EpochSpan] = []
    for epoch in epochs:
        if spans and spans[-1].last == epoch:
            spans[-1] = EpochSpan(spans[-1].first, epoch + 1)
        else:
            spans.append(EpochSpan(epoch, epoch + 1))
    return spans
