"""Checks of the data set, its labels, and one batch as the network sees it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from config.mconfig import ModelConfig
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from debug.explain import assign_points
from dl.annotations import Annotation
from dl.check import CheckedData
from dl.small_objects import MOST_SMALL, REFERENCE_SIDE, have_points, small_objects
from eval.label_layout import drawable_names
from eval.painter import RED, MarkedObject, class_colour, contact_sheet, paint_objects, write_jpeg
from ops.batch import Batch, network_input
from ops.device import autocast
from ops.text import counted, shown
from train.setup import TrainingSetup

PICTURE = "batch.jpg"
_MANY_NEGATIVES = 0.5  # share of images without objects above which the user should know the reason
_MANY_LOST = 0.02  # share of a split's boxes above which the annotations must be wrong
_FEW_OBJECTS = 10  # of a class: fewer are too few to learn it
_DRAWN = 9  # images of the batch
_MANY_SMALL = 0.2  # share of boxes without an anchor point inside, above which training fails


def examine_data(data: CheckedData) -> Iterator[Finding]:
    """The table of all splits, whose files were checked before; then what looks like a mistake in them."""
    report = data.report
    images = ", ".join(f"{name} {split.images}" for name, split in report.splits.items())
    yield Finding(OK, "data", f"all files were read; images: {images}", (*report.rows(), *report.notes))
    yield from (Finding(LOOK, "data", warning) for warning in report.warnings)
    for name, split in report.splits.items():
        if split.dropped_share > _MANY_LOST:
            reasons = ", ".join(f"{count} {why}" for why, count in split.dropped.most_common())
            text = f"{100 * split.dropped_share:.1f} % of the boxes of '{name}' cannot be used ({reasons}): correct "
            yield Finding(WRONG, "boxes", text + "the annotations in the files named above")
    if report.skipped:
        yield Finding(LOOK, "data", f"{counted(len(report.skipped), 'file')} skipped (badFiles=skip): repair them")
    yield from (Finding(WRONG, "data", text) for text in report.copies)


def examine_labels(mcfg: ModelConfig, annotations: Sequence[Annotation]) -> Iterator[Finding]:
    """`annotations`: the images of the training, with the labels that are trained on."""
    class_list = tuple(mcfg.classList or ())
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *(annotation.labels for annotation in annotations)])
    counts = dict(zip(class_list, np.bincount(labels, minlength=len(class_list)).tolist(), strict=True))
    distilled = mcfg.distilSelectedClasses if mcfg.modelName == "distillation" else None
    wanted = distilled or mcfg.trainSelectedClasses or class_list
    counts = {name: count for name, count in counts.items() if name in wanted}
    none = [name for name, count in counts.items() if count == 0]
    few = [f"{name} ({count})" for name, count in counts.items() if 0 < count < _FEW_OBJECTS]
    negatives = sum(len(annotation.labels) == 0 for annotation in annotations)
    has_many_negatives = negatives > _MANY_NEGATIVES * len(annotations)
    if none:
        text = f"no training object of {shown(none)}: a class without objects is never detected; add images, or remove "
        yield Finding(WRONG, "labels", f"{text}the class from classList")
    if few:
        yield Finding(LOOK, "labels", f"fewer than {_FEW_OBJECTS} objects of {shown(few)}: add images of these classes")
    if has_many_negatives:
        text = f"{negatives} of {len(annotations)} images have no object: check for missing labels, and for classes "
        text += "that are not in classList; unselectedImages=drop leaves out images that have only other classes"
        yield Finding(LOOK, "labels", text)
    if not none and not few and not has_many_negatives:
        count, rarest = min((count, name) for name, count in counts.items())
        total = f"{counted(len(labels), 'object')} of {counted(len(wanted), 'class', 'classes')}"
        yield Finding(OK, "labels", f"{total} to train on, {count} of the rarest class ({rarest})")


def examine_sizes(setup: TrainingSetup) -> Iterator[Finding]:
    """Objects smaller than a pixel. Augmentation drops nearly all of them, so no batch shows them."""
    input_shape = setup.mcfg.inputShape
    small = small_objects(setup.loader.dataset.annotations, input_shape)._replace(without_point=0)
    if small.share > MOST_SMALL:
        yield Finding(_level(small.share), "sizes", small.text(input_shape))


def examine_points(setup: TrainingSetup, batches: Sequence[Batch]) -> Iterator[Finding]:
    """Boxes of several augmented batches without an anchor point inside: they are never learned."""
    boxes = torch.cat([batch.boxes[batch.valid] for batch in batches])
    if not len(boxes):
        return
    min_side, (height, width) = setup.mcfg.talMinSide, setup.mcfg.inputShape
    lost = boxes[~have_points(boxes, (height, width), min_side)]
    share = len(lost) / len(boxes)
    checked = counted(len(batches), "augmented batch", "augmented batches")
    if not len(lost):
        text = f"boxes without an anchor point inside: 0 of {len(boxes)} in {checked}"
        yield Finding(OK, "points", text)
        return
    sides = (lost[:, 2:] - lost[:, :2]).amin(dim=1)
    num_helped = int(have_points(lost, (height, width), max(min_side, REFERENCE_SIDE)).sum())
    text = (
        f"boxes without an anchor point inside: {len(lost)} of {len(boxes)} in {checked} ({100 * share:.1f} %). They "
        "are too small and are never learned. "
        f"Their shorter side is {sides.min():.0f} to {sides.max():.0f} pixels at {width} x {height}; anchor points are "
        f"8 pixels apart. Use a larger inputShape, or talMinSide={REFERENCE_SIDE:g}, which gives {num_helped} of them "
        "an anchor point"
    )
    yield Finding(_level(share), "points", text)


def examine_batch(setup: TrainingSetup, batch: Batch, folder: Path) -> Iterator[Finding]:
    """Draw its first images into `folder`, and count the anchor points that its boxes get in the first step."""
    batch = batch.to(setup.device)
    with torch.no_grad(), autocast(setup.device, setup.precision.dtype):
        raw_maps = setup.model.train()(network_input(batch.images))
    assigned = assign_points(setup.detection_loss, raw_maps, batch)
    points, strides = (values.cpu().numpy() for values in assigned.anchors)
    names = drawable_names(tuple(setup.mcfg.classList or ()))
    pictures = []
    for row in range(min(_DRAWN, len(batch))):
        owner, objects = assigned.owner[row].cpu().numpy(), []
        for number in batch.valid[row].nonzero()[:, 0].tolist():
            is_own, label = owner == number, int(batch.labels[row, number])
            colour = class_colour(label) if is_own.any() else RED
            x0, y0, x1, y1 = batch.boxes[row, number].tolist()
            text = f"{names[label]} {is_own.sum()}"
            objects.append(MarkedObject((x0, y0, x1, y1), text, colour, points[is_own], strides[is_own]))
        image = np.ascontiguousarray(batch.images[row].permute(1, 2, 0).cpu().numpy())
        pictures.append(paint_objects(image, objects))
    path = write_jpeg(folder / PICTURE, contact_sheet(pictures))
    drawn = f"drawn in {path}" if len(pictures) == len(batch) else f"the first {len(pictures)} drawn in {path}"
    counts = assigned.count[batch.valid].cpu()
    if not len(counts):
        text = f"none of its {len(batch)} images has an object ({drawn}): check whether this is intended"
        yield Finding(LOOK, "batch", text)
        return
    bounds = ((0, 0, "none"), (1, 3, "1 to 3"), (4, 9, "4 to 9"), (10, 10**6, "10 or more"))
    found = {name: int(((counts >= low) & (counts <= high)).sum()) for low, high, name in bounds}
    histogram = ", ".join(f"{name} for {counted(count, 'box', 'boxes')}" for name, count in found.items() if count)
    text = f"{counted(len(counts), 'box', 'boxes')} on {counted(len(batch), 'image')} ({drawn}): check boxes and "
    text += f"classes in the picture. Anchor points in the first step: {histogram}"
    text += " (random predictions overlap with few boxes)" if found["none"] else ""
    yield Finding(OK, "batch", text)


def _level(share: float) -> str:
    """The level for this share of objects that are too small."""
    return OK if share <= MOST_SMALL else LOOK if share <= _MANY_SMALL else WRONG


def select_images(batch: Batch, count: int) -> Batch:
    """A batch of `count` of its images, those with the most objects first; images repeat if there are fewer."""
    order = batch.valid.sum(dim=1).argsort(descending=True, stable=True)
    rows = order[torch.arange(count) % len(batch)]
    values = {name: getattr(batch, name)[rows] for name in ("images", "boxes", "labels", "valid")}
    labelled = None if batch.labelled is None else batch.labelled[rows]
    ids = tuple(batch.image_ids[row] for row in rows.tolist())
    return replace(batch, **values, labelled=labelled, image_ids=ids, letterboxes=())
