"""How many epochs fit into the minutes that a recipe allows."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.label_selection import num_repeats

log = logging.getLogger("mars")

# Of the time that forward and backward of an image take: with loss, augmentation and step; and to validate one.
_WHOLE_STEP, _VALIDATED = 1.35, 0.6
_MEANINGFUL = 0.5  # of the planned epochs; with fewer most of the result is missing: docs/experiments.md, section 4
_A_TEACHER_COSTS = 1.5  # steps, with the student's: docs/experiments.md, section 10


def images_an_epoch(mcfg: ModelConfig, splits: Mapping[str, Sequence[Annotation]]) -> tuple[int, float]:
    """How many images an epoch trains on, in steps without a teacher, and validates on."""
    of_split = len(splits[mcfg.trainSplitName])
    trained = of_split * num_repeats(of_split, mcfg.replayImages) + mcfg.replayImages
    if mcfg.modelName == "distillation":
        trained = round(trained * _A_TEACHER_COSTS)
    validated = len(splits[mcfg.validationSplitName]) if mcfg.epochValidation else 0
    return trained, validated / mcfg.validationInterval


def within_minutes(
    mcfg: ModelConfig, seconds_an_image: float, num_trained: int, num_validated: float, begun: Mapping[str, Any] | None
) -> ModelConfig:
    """The config with maxEpoch lowered, where needed, so that the training takes about trainMinutes.

    trainMinEpochs of them stay, however long they take. `num_trained`, `num_validated`: images an epoch. `begun`: the
    config of the run when it goes on, whose maxEpoch holds, so that it keeps its schedule however fast the machine is.
    """
    if mcfg.trainMinutes is None:
        return mcfg
    if begun is not None:
        return _with_max_epoch(mcfg, int(begun["maxEpoch"]), "as begun")
    an_epoch = seconds_an_image * (_WHOLE_STEP * num_trained + _VALIDATED * num_validated)
    fitting = int(60 * mcfg.trainMinutes / an_epoch)
    chosen = min(max(fitting, mcfg.trainMinEpochs), mcfg.maxEpoch - mcfg.startEpoch)
    if chosen > fitting:
        log.warning(
            "trainMinutes=%g is enough for %d epochs here, but trainMinEpochs=%d: training takes about %.1f minutes",
            mcfg.trainMinutes, fitting, mcfg.trainMinEpochs, chosen * an_epoch / 60,
        )  # fmt: skip
    return _with_max_epoch(mcfg, mcfg.startEpoch + chosen, f"at about {an_epoch:.0f} s each")


def _with_max_epoch(mcfg: ModelConfig, max_epoch: int, reason: str) -> ModelConfig:
    """The config with maxEpoch lowered to `max_epoch`, which is reported; never raised."""
    if max_epoch >= mcfg.maxEpoch:
        return mcfg
    log.info(
        "trainMinutes=%g: %d epochs instead of %d, %s; --set trainMinutes=none trains them all",
        mcfg.trainMinutes, max_epoch - mcfg.startEpoch, mcfg.maxEpoch - mcfg.startEpoch, reason,
    )  # fmt: skip
    return mcfg.with_values(maxEpoch=max_epoch)


def verdict(num_trained: int, num_planned: int) -> str | None:
    """What is to be said of a training of which trainMinutes left out epochs; None where all were trained."""
    if num_trained >= num_planned:
        return None
    is_meaningful = num_trained >= _MEANINGFUL * num_planned
    worth = "a complete training gives a better result" if is_meaningful else "this is not a meaningful result"
    return f"trained {num_trained} of {num_planned} epochs; {worth}"
