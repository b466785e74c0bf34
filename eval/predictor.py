"""From a batch to detections in pixels of the images as read.

Legend: B images, A anchor points, R bins per side, C classes, K detections of one image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from config.mconfig import ModelConfig
from ops.anchors import anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch, Letterbox, network_input
from ops.device import autocast
from ops.nms import select_detections

ASSIGNMENT_SELECTION = {"score_threshold": 0.2, "iou_threshold": 0.4, "max_detections": 50, "class_agnostic": True}


class Detections(NamedTuple):
    """The detections of one image, highest score first, on the CPU. Without any: shapes (0, 4), (0,) and (0,)."""

    image_id: str
    boxes: Tensor  # (K, 4) float32, xyxy in pixels of the image as read, clipped to it
    scores: Tensor  # (K,) float32, probabilities
    labels: Tensor  # (K,) int64, indexes into the class list


@dataclass(frozen=True)
class Predictor:
    """A model together with the decoding and selection of its detections; the settings are those of `ops.nms`."""

    model: nn.Module
    score_threshold: float = 0.001
    iou_threshold: float = 0.7
    max_detections: int = 300
    class_agnostic: bool = False
    precision: torch.dtype = torch.float32

    @classmethod
    def from_config(cls, mcfg: ModelConfig, model: nn.Module, precision: torch.dtype = torch.float32) -> "Predictor":
        """The predictor that a config describes. The network computes in `precision`.

        With `apStyle=assignment` the selection is that of the assignment (score above .2, class-agnostic IoU .4, 50
        boxes), because its metric is defined for this selection only.
        """
        if mcfg.apStyle == "assignment":
            return cls(model, precision=precision, **ASSIGNMENT_SELECTION)
        return cls(model, mcfg.scoreThreshold, mcfg.nmsIou, mcfg.maxDetections, precision=precision)

    @property
    def device(self) -> torch.device:
        return next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Detections]:
        """The detections of every image of the batch, in its order.

        The model runs in eval mode; afterwards every module has its earlier mode. Raises `FloatingPointError` with the
        names of images whose predictions are not finite, and `ValueError` for a training batch, which has no
        letterboxes.
        """
        letterboxes = [letterbox for letterbox in batch.letterboxes if letterbox is not None]
        if len(letterboxes) != len(batch):
            raise ValueError("the images of this batch have no letterbox: build its loader with train=False")
        images = network_input(batch.images.to(self.device, non_blocking=True))
        with _eval_mode(self.model), autocast(self.device, self.precision):
            raw_maps = self.model(images)
        distributions, logits = flatten_maps(raw_maps, cast(int, self.model.reg_max))
        anchors = anchors_of(raw_maps, cast("tuple[int, ...]", self.model.strides))
        boxes = decode_boxes(distributions, *anchors, cast("Callable[[Tensor], Tensor]", self.model.distances))
        # Without this check a bad image would look empty: NaN is not above any score threshold.
        is_finite = (boxes.isfinite().all(dim=2) & logits.isfinite().all(dim=2)).all(dim=1).tolist()
        if bad_images := [name for name, finite in zip(batch.image_ids, is_finite, strict=True) if not finite]:
            with _eval_mode(self.model), autocast(self.device, self.precision):
                module = _first_nonfinite_module(self.model, images)
            reason = f"; the first module with such an output is {module}" if module else ""
            raise FloatingPointError(
                f"the predictions of the network are not finite (NaN or Inf) on {', '.join(bad_images)}{reason}"
            )
        rows = zip(batch.image_ids, letterboxes, boxes, logits, strict=True)
        return [self._detections_of(*row) for row in rows]

    def _detections_of(
        self, image_id: str, letterbox: Letterbox, boxes: Float[Tensor, "A 4"], logits: Float[Tensor, "A C"]
    ) -> Detections:
        settings = self.score_threshold, self.iou_threshold, self.max_detections
        found = select_detections(boxes, logits.sigmoid(), *settings, class_agnostic=self.class_agnostic)
        in_image: Float32[Tensor, "K 4"] = letterbox.undo(found.boxes.cpu())
        inside = (in_image[:, 2:] > in_image[:, :2]).all(dim=1)  # false in the grey border of the letterbox
        return Detections(image_id, in_image[inside], found.scores.cpu()[inside], found.labels.cpu()[inside])


def _first_nonfinite_module(model: nn.Module, images: Float[Tensor, "B 3 H W"]) -> str | None:
    """The path of the first module whose output is not finite; inner modules finish before those around them."""
    found: list[str] = []

    def check(name: str, _module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            found.append(name)

    hooks = [module.register_forward_hook(partial(check, name)) for name, module in model.named_modules() if name]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block. Afterwards every module has its earlier mode, also a frozen batch norm."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
