"""How many epochs fit into the minutes that a recipe allows."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.lessons import repeats_of

log = logging.getLogger("mars")

# Of the time that forward and backward of an image take: with loss, augmentation and step; and to validate one.
_WHOLE_STEP, _VALIDATED = 1.35, 0.6
_A_TEACHER_COSTS = 1.5  # steps, with the student's: docs/experiments.md, section 10


def images_an_epoch(mcfg: ModelConfig, splits: Mapping[str, Sequence[Annotation]]) -> tuple[int, float]:
    """How many images an epoch trains on, in steps without a teacher, and validates on."""
    of_split = len(splits[mcfg.trainSplitName])
    trained = of_split * repeats_of(of_split, mcfg.replayImages) + mcfg.replayImages
    if mcfg.modelName == "distillation":
        trained = round(trained * _A_TEACHER_COSTS)
    validated = len(splits[mcfg.validationSplitName]) if mcfg.epochValidation else 0
    return trained, validated / mcfg.validationInterval


def within_minutes(
    mcfg: ModelConfig, seconds_an_image: float, num_trained: int, num_validated: float, begun: Mapping[str, Any] | None
) -> ModelConfig:
    """The config with maxEpoch lowered, where needed, so that the training takes about trainMinutes.

    `num_trained`, `num_validated`: images an epoch. `begun`: the config of the run when it goes on, whose maxEpoch
    holds, so that it keeps its schedule however fast the machine is now.
    """
    if mcfg.trainMinutes is None:
        return mcfg
    if begun is not None:
        fitting = int(begun["maxEpoch"])
        reason = "as begun"
    else:
        an_epoch = seconds_an_image * (_WHOLE_STEP * num_trained + _VALIDATED * num_validated)
        fitting = mcfg.startEpoch + max(1, int(60 * mcfg.trainMinutes / an_epoch))
        reason = f"at about {an_epoch:.0f} s each"
    if fitting >= mcfg.maxEpoch:
        return mcfg
    log.info(
        "trainMinutes=%g: %d epochs instead of %d, %s; --set trainMinutes=none trains them all",
        mcfg.trainMinutes, fitting, mcfg.maxEpoch, reason,
    )  # fmt: skip
    return mcfg.with_values(maxEpoch=fitting)
