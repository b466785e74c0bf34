"""Which labels of a split are used for training, and which images of old classes are replayed."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from config.errors import UserError
from config.fields import nearest
from config.mconfig import ModelConfig, base_names
from dl.annotations import Annotation
from dl.formats.discover import locate
from dl.splits import draw_replay

log = logging.getLogger("mars")

REPLAYED_SPLIT = "train"  # replayed images come from this split
_MIN_REPLAY_RATIO = 1 / 3  # replayed images per image of the split, from which on the split is repeated


def splits_to_train(mcfg: ModelConfig) -> list[str]:
    """The splits that a training reads, each once."""
    validated = [mcfg.validationSplitName] if mcfg.epochValidation else []
    replayed = [REPLAYED_SPLIT] if mcfg.replayImages else []
    return list(dict.fromkeys([mcfg.trainSplitName, *validated, *replayed]))


def select_labels(
    mcfg: ModelConfig, split: str, annotations: list[Annotation], replay_from: Sequence[Annotation] = ()
) -> list[Annotation]:
    """The annotations to train on: those of the split with the selected classes, then the replayed images.

    With replayed images, the images of the split are repeated, see `num_repeats`. `replay_from`: the images from which
    replayed images are chosen, except images of the split itself. Raises `UserError` if there is no object to train on.
    """
    is_student = mcfg.modelName == "distillation" and mcfg.distilSelectedClasses is not None
    field = "distilSelectedClasses" if is_student else "trainSelectedClasses"
    selected = getattr(mcfg, field)
    visible = annotations if selected is None else _with_classes(mcfg, split, annotations, field, selected)
    if not _num_with_objects(visible):
        where = f"split '{split}' (annotations in {mcfg.annotationDir or mcfg.dataDir})"
        if selected:
            raise UserError(
                f"{field}={','.join(selected)}: {where} has no object of these classes; select other classes"
            )
        raise UserError(f"{where} has no object to train on; use a split with objects of the class list")
    replayed = _replayed(mcfg, annotations, replay_from)
    return visible * num_repeats(len(visible), len(replayed)) + replayed


def num_repeats(num_images: int, num_replayed: int) -> int:
    """How often an epoch uses each image of the split, so that they are about as many as the replayed images.

    At least once; and at least twice if a third as many images, or more, are replayed. Both kinds of images have base
    classes, so otherwise the base classes would outnumber the new ones.
    """
    ratio = num_replayed / num_images if num_images else 0.0
    return max(1 + (ratio >= _MIN_REPLAY_RATIO), round(ratio))


def select_classes(
    annotations: Sequence[Annotation],
    class_list: Sequence[str],
    selected: Sequence[str] | None,
    unselected_images: str = "keep",
) -> list[Annotation]:
    """Keep only labels of the selected classes; label numbers stay those of `class_list`. None selects all.

    With "keep", an image with only other classes becomes a background image. This is the default, because the
    teacher of the assignment was trained like this, and the network learns that these objects are negatives. With
    "drop" the image is left out, so that classes of a later training are not learned as background. Images that never
    had objects are used in both cases. Raises `UserError` for a class that is not in the list.
    """
    if selected is None:
        return list(annotations)
    for name in selected:
        if name not in class_list:
            raise UserError(f"trainSelectedClasses: '{name}' is not in the class list{nearest(name, class_list)}")
    indexes = np.array([class_list.index(name) for name in selected], dtype=np.int64)
    result = []
    for annotation in annotations:
        is_selected = np.isin(annotation.labels, indexes)
        if unselected_images == "drop" and len(is_selected) and not is_selected.any():
            continue
        arrays = {name: getattr(annotation, name)[is_selected] for name in ("boxes", "labels", "difficult")}
        result.append(replace(annotation, **arrays))
    return result


def _class_list(mcfg: ModelConfig) -> tuple[str, ...]:
    return mcfg.classList if isinstance(mcfg.classList, tuple) else locate(mcfg).class_list


def _with_classes(
    mcfg: ModelConfig, split: str, annotations: list[Annotation], field: str, selected: Sequence[str]
) -> list[Annotation]:
    class_list = _class_list(mcfg)
    visible = select_classes(annotations, class_list, selected, mcfg.unselectedImages)
    num_without = _num_with_objects(annotations) - _num_with_objects(visible)
    log.info(
        "%s=%s: split '%s' has %d images; %d of them have only other classes and %s (unselectedImages=%s)",
        field, ",".join(selected), split, len(annotations), num_without,
        "are background" if mcfg.unselectedImages == "keep" else "are left out", mcfg.unselectedImages,
    )  # fmt: skip
    return visible if mcfg.unlabelledClasses == "background" else _mark_labelled(visible, class_list, selected)


def _mark_labelled(
    annotations: list[Annotation], class_list: Sequence[str], labelled_classes: Sequence[str]
) -> list[Annotation]:
    """Set the mask of classes that are labelled on these images."""
    mask = np.isin(class_list, labelled_classes)
    return [replace(annotation, labelled=mask) for annotation in annotations]


def _replayed(mcfg: ModelConfig, split: Sequence[Annotation], replay_from: Sequence[Annotation]) -> list[Annotation]:
    """`replayImages` images with labels of the base classes, as balanced as possible.

    Labels of other classes are removed and marked as unlabelled, so that the loss ignores those classes there.
    """
    if not mcfg.replayImages or mcfg.baseClasses is None:
        return []
    class_list = _class_list(mcfg)
    base = base_names(mcfg.with_values(classList=class_list)) or ()
    own_ids = {annotation.image_id for annotation in split}
    candidates = [annotation for annotation in replay_from if annotation.image_id not in own_ids]
    candidates = select_classes(candidates, class_list, base, "drop")
    indexes = [class_list.index(name) for name in base]
    chosen = set(draw_replay(candidates, indexes, mcfg.replayImages, mcfg.smallSeed))
    replayed = [annotation for annotation in candidates if annotation.image_id in chosen]
    log.info("replay: %d images with labels of the %d base classes", len(replayed), len(base))
    return _mark_labelled(replayed, class_list, base)


def _num_with_objects(annotations: Sequence[Annotation]) -> int:
    return sum(len(annotation.labels) > 0 for annotation in annotations)
