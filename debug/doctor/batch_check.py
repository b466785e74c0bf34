"""One batch as the network will see it, drawn with its points, and ground truths that can get none."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from eval.label_layout import drawable_names
from eval.painter import class_colour, write_jpeg
from eval.points_painter import RED, MarkedObject, contact_sheet, paint_objects
from ops.anchors import make_anchors
from ops.batch import Batch, network_input
from ops.precision import autocast
from ops.text import counted
from train.points import FEW_SMALL, REFERENCE_SIDE, PointAssignment, have_points, points_given, small_objects
from train.setup import TrainingSetup

PICTURE = "batch.jpg"
_DRAWN = 9  # images of the batch
_MANY = 0.2  # share of ground truths without a point from which on training fails


def examine_batch(patient: TrainingSetup, batch: Batch, folder: Path) -> Iterator[Finding]:
    """Draw its first images into `folder`, and say how many points its ground truths are given in the first step."""
    batch = batch.to(patient.device)
    with torch.no_grad(), autocast(patient.device, patient.precision.dtype):
        raw_maps = patient.model.train()(network_input(batch.images))
    given = points_given(patient.detection_loss, raw_maps, batch)
    names = drawable_names(tuple(patient.mcfg.classList or ()))
    strides = make_anchors(_shapes(patient), patient.model.strides).strides
    rows = [_painted(batch, row, given, strides, names) for row in range(min(_DRAWN, len(batch)))]
    path = write_jpeg(folder / PICTURE, contact_sheet(rows))
    drawn = f"drawn in {path}" if len(rows) == len(batch) else f"the first {len(rows)} of them drawn in {path}"
    counts = given.count[batch.valid].cpu()
    if not len(counts):
        yield Finding(LOOK, "batch", f"no object on any of its {len(batch)} images, {drawn}: is that meant?")
        return
    text = f"{counted(len(counts), 'ground truth')} on {counted(len(batch), 'image')}, {drawn}: do boxes and classes "
    text += f"fit? Points given in the first step: {_spread(counts)}"
    yield Finding(OK, "batch", text)


def examine_points(patient: TrainingSetup, batches: Sequence[Batch]) -> Iterator[Finding]:
    """Ground truths inside which no point of the grid lies, over several augmented batches: they are never learned."""
    boxes = torch.cat([batch.boxes[batch.valid] for batch in batches])
    if not len(boxes):
        return
    min_side, input_shape = patient.mcfg.talMinSide, patient.mcfg.inputShape
    lost = boxes[~have_points(boxes, input_shape, min_side)]
    share = len(lost) / len(boxes)
    height, width = input_shape
    seen = f"{len(boxes)} ground truths of {counted(len(batches), 'augmented batch', 'augmented batches')}"
    if not len(lost):
        yield Finding(OK, "points", f"at least one point lies inside each of {seen}")
        return
    sides = (lost[:, 2:] - lost[:, :2]).amin(dim=1)
    text = (
        f"no point lies inside {len(lost)} of {seen} ({100 * share:.1f} %), which so are never learned: their shorter "
    )
    text += f"side is {sides.min():.0f} to {sides.max():.0f} pixels at {width} x {height}, and points lie 8 apart"
    helped = int(have_points(lost, input_shape, max(min_side, REFERENCE_SIDE)).sum())
    text += f"; a larger inputShape, or talMinSide={REFERENCE_SIDE:g}, which would give {helped} of them a point"
    yield Finding(_level(share), "points", text)


def examine_sizes(patient: TrainingSetup) -> Iterator[Finding]:
    """Objects below a pixel: where there is augmentation it drops nearly all of them, so that no batch shows them."""
    input_shape = patient.mcfg.inputShape
    small = small_objects(patient.loader.dataset.annotations, input_shape)._replace(without_point=0)
    if small.share > FEW_SMALL:
        yield Finding(_level(small.share), "sizes", small.text(input_shape))


def _level(share: float) -> str:
    """Of a finding about this share of the objects."""
    return OK if share <= FEW_SMALL else LOOK if share <= _MANY else WRONG


def _shapes(patient: TrainingSetup) -> tuple[tuple[int, int], ...]:
    height, width = patient.mcfg.inputShape
    return tuple((height // stride, width // stride) for stride in patient.model.strides)


def _spread(counts: Tensor) -> str:
    """How many ground truths have no point, few, many."""
    bounds = ((0, 0, "none"), (1, 3, "1 to 3"), (4, 9, "4 to 9"), (10, 10**6, "10 and more"))
    found = [(text, int(((counts >= low) & (counts <= high)).sum())) for low, high, text in bounds]
    text = ", ".join(f"{text} for {count}" for text, count in found if count)
    hint = " (with random boxes, many overlap with nothing yet)" if found[0][1] else ""
    return f"{text}{hint}"


def _painted(batch: Batch, row: int, given: PointAssignment, strides: Tensor, names: Sequence[str]) -> np.ndarray:
    image = np.ascontiguousarray(batch.images[row].permute(1, 2, 0).cpu().numpy())
    points = make_anchors(tuple((image.shape[0] // s, image.shape[1] // s) for s in (8, 16, 32))).points
    owner, objects = given.owner[row].cpu(), []
    for number in batch.valid[row].nonzero()[:, 0].tolist():
        mine, label = owner == number, int(batch.labels[row, number])
        count = int(mine.sum())
        x0, y0, x1, y1 = batch.boxes[row, number].tolist()
        colour = class_colour(label) if count else RED
        text = f"{names[label]} {count}"
        objects.append(MarkedObject((x0, y0, x1, y1), text, colour, points[mine].numpy(), strides[mine].numpy()))
    return paint_objects(image, objects)
