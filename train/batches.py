"""What batches look like: statistics of the first ones, and values of any batch that cannot be right."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ops.batch import Batch
from ops.files import write_atomic
from ops.probe import listening

BATCHES = 8
LONGEST_SIDE = 4.0  # of a box, in sides of the network input: an object cut off by the image may reach beyond it
COLOUR_STEP = 16  # every 16th pixel is compared first; only if these are equal, all are


class FirstBatches:
    """Statistics of a run's first batches as they are trained on, after augmentation and padding.

    The size of a box is the square root of its area, in pixels of the network input. A positive is an anchor point
    with a target score above zero.
    """

    def __init__(self, class_names: Sequence[str], batches: int = BATCHES):
        self.class_names, self.batches = tuple(class_names), batches
        self.seen = 0  # batches
        self._lowest, self._highest = float("inf"), float("-inf")
        self._means: list[Tensor] = []  # (3,) per batch
        self._counts: list[int] = []  # boxes per image
        self._sizes: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._positives, self._boxes = 0, 0

    @property
    def is_done(self) -> bool:
        return self.seen >= self.batches

    @contextmanager
    def observe(self, batch: Batch) -> Iterator[None]:
        """Around the training step of a batch. Does nothing once enough batches are seen."""
        if self.is_done:
            yield
            return

        def count_positives(name: str, value: Tensor) -> None:
            if name == "tal.target":
                self._positives += int((value > 0).any(dim=-1).sum())

        with listening(count_positives):
            yield
        self._add(batch)

    def _add(self, batch: Batch) -> None:
        self.seen += 1
        images, is_real = batch.images, batch.valid
        self._lowest, self._highest = min(self._lowest, float(images.min())), max(self._highest, float(images.max()))
        self._means.append(images.float().mean(dim=(0, 2, 3)).cpu())
        self._counts += is_real.sum(dim=1).tolist()
        sides = (batch.boxes[..., 2:] - batch.boxes[..., :2])[is_real]
        self._sizes.append(sides.clamp(min=0).prod(dim=-1).sqrt().float().cpu())
        self._labels.append(batch.labels[is_real].cpu())
        self._boxes += int(is_real.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values. None where there is no data, such as box sizes without a box."""
        counts, sizes = torch.tensor(self._counts), torch.cat([torch.zeros(0), *self._sizes])
        labels = torch.cat([torch.zeros(0, dtype=torch.long), *self._labels])
        seen = torch.bincount(labels, minlength=len(self.class_names)).tolist()
        pixels = None
        if self._means:
            means = [round(mean, 2) for mean in torch.stack(self._means).mean(dim=0).tolist()]
            pixels = {"lowest": self._lowest, "highest": self._highest, "mean_rgb": means}
        return {
            "batches": self.seen,
            "images": len(counts),
            "pixels": pixels,
            "boxes_an_image": _range(counts.float()),
            "empty_images": round(float((counts == 0).float().mean()), 4) if self._counts else None,
            "box_sizes": _range(sizes),
            "classes": {name: count for name, count in zip(self.class_names, seen, strict=False) if count},
            "positives_a_box": round(self._positives / self._boxes, 3) if self._boxes else None,
        }

    def text(self) -> str:
        """The same in a few lines of the log."""
        figures = self.to_dict()
        if figures["pixels"] is None:
            return "first batches: none"
        pixels, sizes = figures["pixels"], figures["box_sizes"]
        (red, green, blue), empty = pixels["mean_rgb"], 100 * figures["empty_images"]
        first = "first batch" if figures["batches"] == 1 else f"first {figures['batches']} batches"
        lines = [
            f"{first}: {figures['images']} images",
            f"  pixels: {pixels['lowest']:.0f}-{pixels['highest']:.0f} (mean {red:.0f} {green:.0f} {blue:.0f} in RGB)",
            f"  boxes per image: {_range_text(figures['boxes_an_image'])}; images without boxes: {empty:.0f} %",
        ]
        if sizes is None:
            return "\n".join([*lines, "  no box in these batches: the network only learns that there are no objects"])
        return "\n".join([
            *lines,
            f"  box size in pixels: {_range_text(sizes)}; anchor points per box: {figures['positives_a_box']:.1f}",
            f"  classes in these batches: {len(figures['classes'])} of {len(self.class_names)}",
        ])  # fmt: skip

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")


def impossible_values(batch: Batch) -> dict[str, str]:
    """Values of a batch that are finite and cannot be right: kind -> a message that names an image.

    They come from a user's own data set class or augmentation, since Mars clips and checks what it reads: inverted
    boxes (x2 < x1 or y2 < y1), boxes completely outside the network input or more than `LONGEST_SIDE` times as long,
    and a batch in which every image has a single colour. For a batch on the CPU, where numpy is faster than torch.
    """
    found = {}
    if batch.boxes.shape[1]:
        boxes, sides = batch.boxes.numpy(), np.array(batch.images.shape[:-3:-1], dtype=np.float32)
        low, high = boxes[..., :2], boxes[..., 2:]
        if boxes.min() < 0 or (high > sides).any() or (high < low).any():  # rare; the details are rarely computed
            with np.errstate(invalid="ignore"):  # the guard reports infinite boxes
                is_far = (high <= 0) | (low >= sides) | (high - low > LONGEST_SIDE * sides)
            kinds = {
                "inverted (x2 < x1 or y2 < y1)": high < low,
                f"outside the network input, or more than {LONGEST_SIDE:g} times as long": is_far,
            }
            for kind, is_odd in kinds.items():
                rows, columns = (is_odd.any(axis=-1) & batch.valid.numpy()).nonzero()
                if len(rows):
                    box = " ".join(f"{value:.6g}" for value in batch.boxes[rows[0], columns[0]].tolist())
                    found[kind] = (
                        f"{len(rows)} boxes of a batch are {kind}; the first is in image {batch.image_ids[rows[0]]}: "
                        f"x1 y1 x2 y2 = {box}"
                    )
    images = batch.images.numpy()
    if all((part == part[:, :, :1, :1]).all() for part in (images[..., ::COLOUR_STEP, ::COLOUR_STEP], images)):
        found["one colour"] = (
            f"each of the {len(batch)} images of a batch has a single colour, for example {batch.image_ids[0]}"
        )
    return found


def _range(values: Tensor) -> dict[str, float] | None:
    if values.numel() == 0:
        return None
    low, middle, high = (round(float(value), 2) for value in (values.min(), values.median(), values.max()))
    return {"lowest": low, "median": middle, "highest": high}


def _range_text(values: dict[str, float]) -> str:
    return f"{values['lowest']:.0f}-{values['highest']:.0f} (median {values['median']:.0f})"
