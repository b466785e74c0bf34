"""One sample, one padded batch, the letterbox with its inverse, and the conversion of pixels to network input.

Legend: B images, M largest number of boxes on one image (may be 0), N boxes on one image, C classes, H and W pixels.
A box is xyxy in pixels: of the image as read for a `Sample`, of the network input for a `Batch`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, Num, UInt8
from torch import Tensor

from ops.anchors import pair_limits


class Letterbox(NamedTuple):
    """How an image was placed in the network input: input = image * scale + offset, in pixels."""

    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    # Size of the image as read; detections are clipped to it.
    height: int
    width: int

    def apply(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the image -> boxes (N, 4) of the network input, not clipped."""
        scale = np.array([self.scale_x, self.scale_y] * 2, dtype=boxes.dtype)
        offset = np.array([self.offset_x, self.offset_y] * 2, dtype=boxes.dtype)
        return boxes * scale + offset

    def undo(self, boxes: Tensor, clip: bool = True) -> Tensor:
        """Boxes (..., 4) of the network input -> boxes of the image, clipped to it unless `clip` is False."""
        scale = boxes.new_tensor([self.scale_x, self.scale_y] * 2)
        offset = boxes.new_tensor([self.offset_x, self.offset_y] * 2)
        boxes = (boxes - offset) / scale
        return boxes.clamp(min=0).minimum(boxes.new_tensor([self.width, self.height] * 2)) if clip else boxes


@dataclass(frozen=True)
class Sample:
    """One image and its labels. Without objects: boxes (0, 4), labels (0,)."""

    image: UInt8[np.ndarray, "H W 3"]  # RGB
    boxes: Float32[np.ndarray, "N 4"]
    labels: Int64[np.ndarray, " N"]
    image_id: str
    # Set when the image was resized without random changes. Only then can detections be mapped back to it.
    letterbox: Letterbox | None = None
    # Classes whose objects are all labelled; None: every class. The loss ignores the others, since an object without a
    # label must not count as background.
    labelled: Bool[np.ndarray, " C"] | None = None


@dataclass(frozen=True)
class Batch:
    """A padded batch. `valid` marks real boxes, the rest is padding. M is 0 when no image of the batch has a box."""

    # Pixels stay uint8 until `network_input`: a quarter of the memory between loader process, host and GPU.
    images: UInt8[Tensor, "B 3 H W"]
    boxes: Float[Tensor, "B M 4"]
    labels: Int64[Tensor, "B M"]
    valid: Bool[Tensor, "B M"]
    image_ids: tuple[str, ...]
    letterboxes: tuple[Letterbox | None, ...] = ()
    labelled: Bool[Tensor, "B C"] | None = None  # as in `Sample`; None: every class is labelled on every image
    # See `ops.anchors.pair_limits`; None: not counted, as on the CPU, where the assigner can ask at no cost.
    pair_limits: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.images.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch with its tensors on `device`. On the way to a GPU the pairs are counted."""
        counted = self
        if torch.device(device).type != "cpu" and self.boxes.is_cpu:
            height, width = self.images.shape[2:]
            counted = replace(self, pair_limits=pair_limits(self.boxes, (height, width)))
        return counted._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies asynchronously. The loader calls it."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return replace(self, **{name: change(value) for name, value in values if isinstance(value, Tensor)})


def network_input(images: Num[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Pixels 0 to 255 -> values from 0 to 1, float32, channels last, on the device of `images`, which do not change.

    Training, validation and the debugging tools prepare images with this function, so that they see the same values.
    """
    pixels = images.to(memory_format=torch.channels_last)
    # In place on the new float32 tensor: one copy of the images less in memory.
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels.float() / 255
