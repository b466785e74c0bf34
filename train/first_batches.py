"""What the first batches of a run are like: the figures one would otherwise print by hand, said once and stored."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ops.batch import Batch
from ops.files import write_atomic
from ops.probe import listening

BATCHES = 8


class FirstBatches:
    """Looks at a run's first batches as the training sees them, augmented and padded, and at what the assigner does.

    A box's size is the root of its area, in pixels of the network input. A positive is a point that has to say an
    object, a target score above zero.
    """

    def __init__(self, class_names: Sequence[str], batches: int = BATCHES):
        self.class_names, self.batches = tuple(class_names), batches
        self.seen = 0  # batches
        self._lowest, self._highest = float("inf"), float("-inf")
        self._means: list[Tensor] = []  # (3,) a batch
        self._counts: list[int] = []  # boxes an image
        self._sizes: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._positives, self._assigned = 0, 0  # points, and the boxes that they could have been given to

    @property
    def is_done(self) -> bool:
        return self.seen >= self.batches

    @contextmanager
    def looking_at(self, batch: Batch) -> Iterator[None]:
        """Around the training step of a batch; once enough are seen, nothing is done."""
        if self.is_done:
            yield
            return
        with listening(self._count_positives):
            yield
        self._look_at(batch)

    def _count_positives(self, name: str, value: Tensor) -> None:
        if name == "tal.target":
            self._positives += int((value > 0).any(dim=-1).sum())

    def _look_at(self, batch: Batch) -> None:
        self.seen += 1
        images, is_real = batch.images, batch.valid
        self._lowest, self._highest = min(self._lowest, float(images.min())), max(self._highest, float(images.max()))
        self._means.append(images.float().mean(dim=(0, 2, 3)).cpu())
        self._counts += is_real.sum(dim=1).tolist()
        sides = (batch.boxes[..., 2:] - batch.boxes[..., :2])[is_real]
        self._sizes.append(sides.clamp(min=0).prod(dim=-1).sqrt().float().cpu())
        self._labels.append(batch.labels[is_real].cpu())
        self._assigned += int(is_real.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None where there is nothing to tell, as the boxes' sizes without a box."""
        counts, sizes = torch.tensor(self._counts), torch.cat([torch.zeros(0), *self._sizes])
        labels = torch.cat([torch.zeros(0, dtype=torch.long), *self._labels])
        seen = torch.bincount(labels, minlength=len(self.class_names)).tolist()
        means = torch.stack(self._means).mean(dim=0).tolist() if self._means else []
        return {
            "batches": self.seen,
            "images": len(counts),
            "pixels": {"lowest": self._lowest, "highest": self._highest, "mean_rgb": [round(one, 2) for one in means]}
            if self._means
            else None,
            "boxes_an_image": _spread(counts.float()),
            "empty_images": round(float((counts == 0).float().mean()), 4) if self._counts else None,
            "box_sizes": _spread(sizes),
            "classes": {name: count for name, count in zip(self.class_names, seen, strict=False) if count},
            "positives_a_box": round(self._positives / self._assigned, 3) if self._assigned else None,
        }

    def text(self) -> str:
        """The same in four lines."""
        told = self.to_dict()
        if told["pixels"] is None:
            return "first batches: none"
        pixels, boxes, sizes, classes = told["pixels"], told["boxes_an_image"], told["box_sizes"], told["classes"]
        colours = " ".join(f"{one:.0f}" for one in pixels["mean_rgb"])
        span = f"{pixels['lowest']:.0f} to {pixels['highest']:.0f}, mean of red, green, blue {colours}"
        lines = [
            f"first {told['batches']} batch{'es' * (told['batches'] > 1)}: {told['images']} images, pixels {span}",
            f"  boxes an image {_in_words(boxes)}; {100 * told['empty_images']:.0f} % of the images without any",
        ]
        if sizes is None:
            return "\n".join([*lines, "  no box: what is trained now is to see nothing"])
        missing = len(self.class_names) - len(classes)
        unseen = f", {missing} not yet" if missing else ""
        return "\n".join([
            *lines,
            f"  boxes' sizes in pixels {_in_words(sizes)}; {told['positives_a_box']:.1f} points for each box",
            f"  {len(classes)} of {len(self.class_names)} classes seen{unseen}",
        ])  # fmt: skip

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")


def _spread(values: Tensor) -> dict[str, float] | None:
    if values.numel() == 0:
        return None
    low, middle, high = (round(float(one), 2) for one in (values.min(), values.median(), values.max()))
    return {"lowest": low, "median": middle, "highest": high}


def _in_words(spread: dict[str, float]) -> str:
    return f"{spread['lowest']:.0f} to {spread['highest']:.0f}, half of them up to {spread['median']:.0f}"
