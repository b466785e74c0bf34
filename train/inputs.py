"""Batches that are finite and still cannot be right."""

import numpy as np

from ops.batch import Batch

LONGEST_SIDE = 4.0  # of a box, in sides of the network input: an object cut off by the image may reach beyond it
COLOUR_STEP = 16  # every so many pixels are compared first; only where these are equal all are


def odd_inputs(batch: Batch) -> dict[str, str]:
    """What cannot be right in a batch although all of it is finite: kind -> a sentence that names an image.

    Such values come from a user's own data set or augmentation, since Mars clips and checks what it reads: inverted
    boxes (x2 < x1 or y2 < y1), boxes wholly outside the network input or more than `LONGEST_SIDE` times as long, and a
    batch in which every image is of one colour. For a batch on the CPU, where numpy is quicker than torch.
    """
    found = {}
    if batch.boxes.shape[1]:
        boxes, sides = batch.boxes.numpy(), np.array(batch.images.shape[:-3:-1], dtype=np.float32)
        low, high = boxes[..., :2], boxes[..., 2:]
        if boxes.min() < 0 or (high > sides).any() or (high < low).any():  # rare, so that all else is rarely computed
            with np.errstate(invalid="ignore"):  # infinite ones are the guard's matter
                is_far = (high <= 0) | (low >= sides) | (high - low > LONGEST_SIDE * sides)
            kinds = {
                "inverted (x2 < x1 or y2 < y1)": high < low,
                f"outside the input, or over {LONGEST_SIDE:g} times as long": is_far,
            }
            found = {kind: told for kind, is_odd in kinds.items() if (told := _odd_boxes(batch, is_odd, kind))}
    if _has_one_colour(batch.images.numpy()):
        found["one colour"] = (
            f"all {len(batch)} images of a batch are of one colour each, {batch.image_ids[0]} among them"
        )
    return found


def _odd_boxes(batch: Batch, is_odd: np.ndarray, kind: str) -> str:
    rows, columns = (is_odd.any(axis=-1) & batch.valid.numpy()).nonzero()
    if not len(rows):
        return ""
    box = " ".join(f"{value:.6g}" for value in batch.boxes[rows[0], columns[0]].tolist())
    return (
        f"{len(rows)} boxes of a batch are {kind}, the first of image {batch.image_ids[rows[0]]}: x1 y1 x2 y2 = {box}"
    )


def _has_one_colour(images: np.ndarray) -> bool:
    return all((part == part[:, :, :1, :1]).all() for part in (images[..., ::COLOUR_STEP, ::COLOUR_STEP], images))
