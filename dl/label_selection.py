"""What a split teaches: whose labels count, and images of old classes that are shown again."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from config.errors import UserError
from config.mconfig import ModelConfig, base_names
from dl.annotations import Annotation
from dl.dataset import select_classes
from dl.discover import locate
from dl.shots import draw_replay

log = logging.getLogger("mars")

REPLAYED_SPLIT = "train"  # whose images are shown again
FEW = 1 / 3  # of an image replayed for each of the split


def splits_to_train(mcfg: ModelConfig) -> list[str]:
    """The splits that a training reads, each once."""
    validated = [mcfg.validationSplitName] if mcfg.epochValidation else []
    replayed = [REPLAYED_SPLIT] if mcfg.replayImages else []
    return list(dict.fromkeys([mcfg.trainSplitName, *validated, *replayed]))


def lessons(
    mcfg: ModelConfig, split: str, annotations: list[Annotation], replay_from: Sequence[Annotation] = ()
) -> list[Annotation]:
    """The annotations to train on: of a split, with the labels that are seen, and replayed images behind them.

    Beside replayed images the split's come several times, see `repeats_of`. `replay_from`: the images that replay is
    drawn from; those of the split itself are not drawn again. Raises `UserError` when there is no object to train on.
    """
    seen = _seen_classes(mcfg)
    shown = _shown(mcfg, split, annotations, seen)
    _refuse_nothing_to_learn(mcfg, split, shown, seen)
    replayed = _replayed(mcfg, annotations, replay_from)
    return shown * repeats_of(len(shown), len(replayed)) + replayed


def repeats_of(num_shown: int, num_replayed: int) -> int:
    """How often an epoch shows the images of a split, so that they are about as many as those replayed; at least once.

    Twice where `FEW` or more are replayed for each: base classes are on both kinds, and would outnumber the new ones.
    """
    share = num_replayed / num_shown if num_shown else 0.0
    return max(1 + (share >= FEW), round(share))


def _class_list(mcfg: ModelConfig) -> tuple[str, ...]:
    return mcfg.classList if isinstance(mcfg.classList, tuple) else locate(mcfg).class_list


def _name_of_seen(mcfg: ModelConfig) -> str:
    is_student = mcfg.modelName == "distillation" and mcfg.distilSelectedClasses is not None
    return "distilSelectedClasses" if is_student else "trainSelectedClasses"


def _seen_classes(mcfg: ModelConfig) -> tuple[str, ...] | None:
    """The classes whose labels training sees; None: all."""
    return getattr(mcfg, _name_of_seen(mcfg))


def _shown(
    mcfg: ModelConfig, split: str, annotations: list[Annotation], seen: Sequence[str] | None
) -> list[Annotation]:
    if seen is None:
        return annotations
    class_list = _class_list(mcfg)
    chosen = select_classes(annotations, class_list, seen, mcfg.unselectedImages)
    without = _num_labelled(annotations) - _num_labelled(chosen)
    fate = "are background" if mcfg.unselectedImages == "keep" else "are left out"
    log.info(
        "%s=%s: of %d images of '%s', %d with other classes only %s (unselectedImages=%s)",
        _name_of_seen(mcfg), ",".join(seen), len(annotations), split, without, fate, mcfg.unselectedImages,
    )  # fmt: skip
    return chosen if mcfg.unlabelledClasses == "background" else _marked(chosen, class_list, seen)


def _marked(annotations: list[Annotation], class_list: Sequence[str], labelled: Sequence[str]) -> list[Annotation]:
    """With the classes that are labelled on them."""
    mask = np.isin(class_list, labelled)
    return [replace(annotation, labelled=mask) for annotation in annotations]


def _replayed(mcfg: ModelConfig, split: Sequence[Annotation], replay_from: Sequence[Annotation]) -> list[Annotation]:
    """`replayImages` images with the labels of the base classes, as balanced as the images allow.

    Their other labels are dropped, so that nothing is learned from where they were.
    """
    if not mcfg.replayImages or mcfg.baseClasses is None:
        return []
    class_list = _class_list(mcfg)
    base = base_names(mcfg.with_values(classList=class_list)) or ()
    taken = {one.image_id for one in split}
    others = select_classes([one for one in replay_from if one.image_id not in taken], class_list, base, "drop")
    drawn = set(draw_replay(others, [class_list.index(name) for name in base], mcfg.replayImages, mcfg.smallSeed))
    replayed = [one for one in others if one.image_id in drawn]
    log.info("replay: %d images with labels of the %d base classes", len(replayed), len(base))
    return _marked(replayed, class_list, base)


def _refuse_nothing_to_learn(
    mcfg: ModelConfig, split: str, annotations: Sequence[Annotation], seen: Sequence[str] | None
) -> None:
    if _num_labelled(annotations):
        return
    where = f"split '{split}' (annotations in {mcfg.annotationDir or mcfg.dataDir})"
    if seen:
        names = ",".join(seen)
        raise UserError(f"{_name_of_seen(mcfg)}={names}: {where} has no such object; select a class that it holds")
    raise UserError(f"{where} has no object to train on; train on one whose annotations have objects of the class list")


def _num_labelled(annotations: Sequence[Annotation]) -> int:
    return sum(len(annotation.labels) > 0 for annotation in annotations)
