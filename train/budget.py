"""How many epochs fit into `trainMinutes`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from config.mconfig import ModelConfig
from dl.annotations import Annotation
from dl.label_selection import num_repeats

log = logging.getLogger("mars")

# In units of the forward and backward time of an image: a complete training step, and the validation of an image.
_WHOLE_STEP, _VALIDATED = 1.35, 0.6
# Share of the planned epochs. With fewer the result is far from complete: docs/experiments.md, section 4.
_MEANINGFUL = 0.5
_TEACHER_COST = 1.5  # time of a step with a teacher, in steps without: docs/experiments.md, section 10


def images_an_epoch(mcfg: ModelConfig, splits: Mapping[str, Sequence[Annotation]]) -> tuple[int, float]:
    """Images per epoch, in training (as if without a teacher) and in validation."""
    in_split = len(splits[mcfg.trainSplitName])
    trained = in_split * num_repeats(in_split, mcfg.replayImages) + mcfg.replayImages
    if mcfg.modelName == "distillation":
        trained = round(trained * _TEACHER_COST)
    validated = len(splits[mcfg.validationSplitName]) if mcfg.epochValidation else 0
    return trained, validated / mcfg.validationInterval


def within_minutes(
    mcfg: ModelConfig, seconds_an_image: float, num_trained: int, num_validated: float, begun: Mapping[str, Any] | None
) -> ModelConfig:
    """The config with maxEpoch reduced so that the training takes about trainMinutes, but at least trainMinEpochs.

    `num_trained`, `num_validated`: images per epoch. `begun`: the config of a resumed run, whose maxEpoch is kept, so
    that its schedule does not depend on the speed of this machine.
    """
    if mcfg.trainMinutes is None:
        return mcfg
    if begun is not None:
        return _with_max_epoch(mcfg, int(begun["maxEpoch"]), "as at its start")
    an_epoch = seconds_an_image * (_WHOLE_STEP * num_trained + _VALIDATED * num_validated)
    fitting = int(60 * mcfg.trainMinutes / an_epoch)
    chosen = min(max(fitting, mcfg.trainMinEpochs), mcfg.maxEpoch - mcfg.startEpoch)
    if chosen > fitting:
        log.warning(
            "trainMinutes=%g allows %d epochs here, but trainMinEpochs=%d: training takes about %.1f minutes",
            mcfg.trainMinutes, fitting, mcfg.trainMinEpochs, chosen * an_epoch / 60,
        )  # fmt: skip
    return _with_max_epoch(mcfg, mcfg.startEpoch + chosen, f"at about {an_epoch:.0f} s each")


def _with_max_epoch(mcfg: ModelConfig, max_epoch: int, reason: str) -> ModelConfig:
    """The config with maxEpoch reduced to `max_epoch`, with a log line. It is never increased."""
    if max_epoch >= mcfg.maxEpoch:
        return mcfg
    log.info(
        "trainMinutes=%g: %d epochs instead of %d, %s; --set trainMinutes=none trains all of them",
        mcfg.trainMinutes, max_epoch - mcfg.startEpoch, mcfg.maxEpoch - mcfg.startEpoch, reason,
    )  # fmt: skip
    return mcfg.with_values(maxEpoch=max_epoch)


def verdict(num_trained: int, num_planned: int) -> str | None:
    """A message about a training that trainMinutes has shortened; None if all epochs were trained."""
    if num_trained >= num_planned:
        return None
    is_meaningful = num_trained >= _MEANINGFUL * num_planned
    note = "a complete training gives a better result" if is_meaningful else "this is not a meaningful result"
    return f"trained {num_trained} of {num_planned} epochs; {note}"
