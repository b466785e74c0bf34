"""The order of the checks: first the data, then the start and the plan, then what the network computes and needs."""

from collections.abc import Callable, Iterator
from pathlib import Path

from config.errors import out_of_memory_message
from config.mconfig import ModelConfig
from debug.doctor.aliases import examine_aliases
from debug.doctor.data_check import (
    examine_batch,
    examine_data,
    examine_labels,
    examine_points,
    examine_sizes,
    select_images,
)
from debug.doctor.finding import LOOK, WRONG, Finding, collected_warnings
from debug.doctor.learning_check import examine_gradient, examine_overfitting
from debug.doctor.memory_check import examine_memory
from debug.doctor.plan_check import examine_freezing, examine_schedule
from debug.doctor.weights_check import examine_folder, examine_teacher, examine_weights
from dl.check import CheckedData
from dl.image_cache import FileImages
from train.setup import build_training

_BATCHES = 8  # that are searched for boxes without an anchor point
_OVERFITTED = 4  # images


def examine(mcfg: ModelConfig, data: CheckedData, folder: Path) -> Iterator[Finding]:
    """Yields one finding after the other. Pictures go to `folder`; nothing else is written.

    `data`: the checked splits of `dl.label_selection.splits_to_train`. Raises `UserError` if there is nothing to check.
    """
    yield from examine_data(data)
    yield from _run("folder", lambda: examine_folder(mcfg, data))
    with collected_warnings() as warnings:
        setup = build_training(mcfg, data, images=FileImages(), errors={})
    yield from (Finding(LOOK, "config", text) for text in warnings)
    yield from examine_labels(setup.mcfg, setup.loader.dataset.annotations)
    batches = list(setup.batches(_BATCHES))
    batch = next((batch for batch in batches if batch.valid.any()), batches[0])
    few = select_images(batch, min(_OVERFITTED, len(batch)))
    aliases = list(examine_aliases(*setup.trained_modules))
    has_alias = any(finding.level == WRONG for finding in aliases)
    not_tried = Finding(LOOK, "overfit", "not tried, because a step would change a tensor under two names")
    for subject, check in (
        ("batch", lambda: examine_batch(setup, batch, folder)),
        ("sizes", lambda: examine_sizes(setup)),
        ("points", lambda: examine_points(setup, batches)),
        ("weights", lambda: examine_weights(setup)),
        ("aliases", lambda: iter(aliases)),
        ("freezing", lambda: examine_freezing(setup)),
        ("schedule", lambda: examine_schedule(setup, folder)),
        ("teacher", lambda: examine_teacher(setup, batch)),
        ("gradient", lambda: examine_gradient(setup, few)),
        ("memory", lambda: examine_memory(setup, batch)),
        # Last, because it changes the weights.
        ("overfit", lambda: iter([not_tried]) if has_alias else examine_overfitting(setup, few)),
    ):
        yield from _run(subject, check)


def _run(subject: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of a check, and the warnings of the program as findings. Running out of memory is a finding, too."""
    with collected_warnings() as warnings:
        try:
            findings = list(check())
        except Exception as error:
            if (text := out_of_memory_message(error)) is None:
                raise
            findings = [Finding(WRONG, subject, text)]
    return [*findings, *(Finding(LOOK, subject, text) for text in warnings)]
