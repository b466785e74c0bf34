"""From a batch to detections in the pixels of the images as they were read.

Legend: B images, A anchor points, R bins a side, C classes, K detections of one image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from config.mconfig import ModelConfig
from ops.anchors import anchors_of, decode_boxes, flatten_maps
from ops.batch import Batch, Letterbox, network_input
from ops.nms import select_detections
from ops.precision import autocast

ASSIGNMENT_SELECTION = {"score_threshold": 0.2, "nms_iou": 0.4, "max_detections": 50, "class_agnostic": True}


class Detections(NamedTuple):
    """What was found on one image, best first, on the CPU. Nothing found: shapes (0, 4), (0,) and (0,)."""

    image_id: str
    boxes: Tensor  # (K, 4) float32, xyxy in pixels of the image as read, clipped to it
    scores: Tensor  # (K,) float32, probabilities
    labels: Tensor  # (K,) int64, indexes into the class list


class Predictor:
    """A model and the way from its raw maps to detections.

    `score_threshold`, `nms_iou`, `max_detections` and `class_agnostic` mean what they mean in `ops.nms`.
    """

    def __init__(
        self,
        model: nn.Module,
        score_threshold: float = 0.001,
        nms_iou: float = 0.7,
        max_detections: int = 300,
        device: torch.device | str = "cpu",
        class_agnostic: bool = False,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.score_threshold = score_threshold
        self.nms_iou = nms_iou
        self.max_detections = max_detections
        self.device = torch.device(device)
        self.class_agnostic = class_agnostic
        self.precision = precision

    @classmethod
    def from_config(cls, mcfg: ModelConfig, model: nn.Module, precision: torch.dtype = torch.float32) -> "Predictor":
        """The predictor a config describes, on the device where the model lies; the network computes in `precision`.

        `apStyle=assignment` brings the assignment's own selection (score above .2, overlap .4 whatever the class, 50
        boxes); its figures mean nothing with another one.
        """
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        if mcfg.apStyle == "assignment":
            return cls(model, device=device, precision=precision, **ASSIGNMENT_SELECTION)
        return cls(model, mcfg.scoreThreshold, mcfg.nmsIou, mcfg.maxDetections, device, precision=precision)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Detections]:
        """Detections of every image of the batch, in its order.

        The model runs in eval mode and is left exactly as it was. Raises `FloatingPointError` naming the images whose
        predictions are not finite, and `ValueError` for a batch without letterboxes (one made for training).
        """
        letterboxes = [letterbox for letterbox in batch.letterboxes if letterbox is not None]
        if len(letterboxes) != len(batch):
            raise ValueError("this batch has no letterboxes to undo: build its loader with train=False")
        images = network_input(batch.images.to(self.device, non_blocking=True))
        with _evaluating(self.model), autocast(self.device, self.precision):
            raw_maps = self.model(images)
        distributions, logits = flatten_maps(raw_maps, cast(int, self.model.reg_max))
        boxes = decode_boxes(distributions, *anchors_of(raw_maps, cast("tuple[int, ...]", self.model.strides)))
        if sick := _not_finite(boxes, logits, batch.image_ids):
            raise FloatingPointError(self._complaint(sick, images))
        rows = zip(batch.image_ids, letterboxes, boxes, logits, strict=True)
        return [self._detections_of(*row) for row in rows]

    def _complaint(self, sick: list[str], images: Float[Tensor, "B 3 H W"]) -> str:
        with _evaluating(self.model), autocast(self.device, self.precision):
            place = _first_bad_module(self.model, images)
        told = f"the network's predictions are not finite (NaN or Inf) on {', '.join(sick)}"
        return f"{told}; the first to give such values is {place}" if place else told

    def _detections_of(
        self, image_id: str, letterbox: Letterbox, boxes: Float[Tensor, "A 4"], logits: Float[Tensor, "A C"]
    ) -> Detections:
        found = select_detections(
            boxes,
            logits.sigmoid(),
            self.score_threshold,
            self.nms_iou,
            self.max_detections,
            class_agnostic=self.class_agnostic,
        )
        in_image: Float32[Tensor, "K 4"] = letterbox.undo(found.boxes.cpu())
        inside = (in_image[:, 2:] > in_image[:, :2]).all(dim=1)  # the rest lay wholly in the letterbox's grey border
        return Detections(image_id, in_image[inside], found.scores.cpu()[inside], found.labels.cpu()[inside])


def _not_finite(boxes: Float[Tensor, "B A 4"], logits: Float[Tensor, "B A C"], image_ids: tuple[str, ...]) -> list[str]:
    """Whose are; a score that is NaN is not above any threshold: unasked, the image would just look empty."""
    healthy = (boxes.isfinite().all(dim=2) & logits.isfinite().all(dim=2)).all(dim=1)
    return [image_id for image_id, ok in zip(image_ids, healthy.tolist(), strict=True) if not ok]


def _first_bad_module(model: nn.Module, images: Float[Tensor, "B 3 H W"]) -> str | None:
    """Which module is the first to end with a tensor that is not finite, by its path; the innermost of those."""
    found: list[str] = []

    def look_at(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and not output.isfinite().all():
                found.append(name)

        return look

    hooks = [module.register_forward_hook(look_at(name)) for name, module in model.named_modules() if name]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards every module, a frozen batch norm too, is in the mode it had before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
