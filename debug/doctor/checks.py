"""The order of the checks: the data first, then what would train on them, from the start to the memory it takes."""

from collections.abc import Callable, Iterator
from pathlib import Path

from config.errors import out_of_memory_message
from config.mconfig import ModelConfig
from debug.doctor.batch_check import examine_batch, examine_points, examine_sizes
from debug.doctor.data_check import examine_data, examine_labels
from debug.doctor.finding import LOOK, WRONG, Finding, overhearing
from debug.doctor.learning_check import examine_gradient, examine_overfitting
from debug.doctor.memory import examine_room
from debug.doctor.plan_check import examine_freezing, examine_schedule
from debug.doctor.teacher_check import examine_teacher
from debug.doctor.weights_check import examine_aliases, examine_folder, examine_weights
from dl.check import CheckedData
from ops.batch import Batch
from train.setup import TrainingSetup, build_training, some_images

_BATCHES = 8  # that are looked through for ground truths without a point
_OVERFITTED = 4  # images


def examine(mcfg: ModelConfig, data: CheckedData, folder: Path) -> Iterator[Finding]:
    """One finding after the other; pictures go to `folder`, and nothing else is written.

    `data`: the checked splits of `dl.label_selection.splits_to_train`. Raises `UserError` if there is nothing to check.
    """
    yield from examine_data(data)
    yield from _heard("folder", lambda: examine_folder(mcfg, data))
    with overhearing() as warnings:
        patient = build_training(mcfg, data)
    yield from (Finding(LOOK, "config", text) for text in warnings)
    yield from examine_labels(patient.mcfg, patient.loader.dataset.annotations)
    yield from _looked_at(patient, folder)


def _looked_at(patient: TrainingSetup, folder: Path) -> Iterator[Finding]:
    """Overfitting comes last, for it moves the weights."""
    batches = list(patient.batches(_BATCHES))
    batch = _first_with_objects(batches)
    few = some_images(batch, min(_OVERFITTED, len(batch)))
    aliases = list(examine_aliases(patient.model, *patient.objective.extra_modules))
    is_aliased = any(finding.level == WRONG for finding in aliases)
    for subject, check in (
        ("batch", lambda: examine_batch(patient, batch, folder)),
        ("sizes", lambda: examine_sizes(patient)),
        ("points", lambda: examine_points(patient, batches)),
        ("weights", lambda: examine_weights(patient)),
        ("aliases", lambda: iter(aliases)),
        ("freezing", lambda: examine_freezing(patient)),
        ("schedule", lambda: examine_schedule(patient, folder)),
        ("teacher", lambda: examine_teacher(patient, batch)),
        ("gradient", lambda: examine_gradient(patient, few)),
        ("memory", lambda: examine_room(patient, batch)),
        ("overfit", lambda: _not_tried() if is_aliased else examine_overfitting(patient, few)),
    ):
        yield from _heard(subject, check)


def _not_tried() -> Iterator[Finding]:
    yield Finding(LOOK, "overfit", "not tried, for a step would move one tensor under two names")


def _heard(subject: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What a check finds, and what the program warns of meanwhile; that memory ran out is a finding, too."""
    with overhearing() as warnings:
        try:
            findings = list(check())
        except Exception as error:
            if (text := out_of_memory_message(error)) is None:
                raise
            findings = [Finding(WRONG, subject, text)]
    return [*findings, *(Finding(LOOK, subject, text) for text in warnings)]


def _first_with_objects(batches: list[Batch]) -> Batch:
    return next((batch for batch in batches if batch.valid.any()), batches[0])
