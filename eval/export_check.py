"""Is what a file gives what our network gives? It is run, and compared with the network and with our selection.

Legend: B images, A anchor points, C classes.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from eval.export_model import SUFFIXES, DecodedModel, quiet
from eval.onnx_selection import NmsSettings
from interop.ultralytics import run_checkpoint
from model.base.yolomodel import YoloModel
from ops.nms import select_detections

# More than float32 rounding gives on any machine, less than anyone could see.
_ALLOWED_PIXELS, _ALLOWED_SCORE, _ALLOWED_SHARE = 0.25, 1e-3, 0.01


class Difference(NamedTuple):
    """The largest ones between a file's output and ours. Detections: how many were compared, how many are not alike."""

    boxes: float  # pixels of the network input
    scores: float
    detections: int | None = None  # None: no selection inside
    unlike: int = 0

    @property
    def is_rounding(self) -> bool:
        """Nothing but rounding; NaN is none."""
        alike = self.unlike <= _ALLOWED_SHARE * (self.detections or 0)  # an overlap may round across the threshold
        return self.boxes <= _ALLOWED_PIXELS and self.scores <= _ALLOWED_SCORE and alike

    def __str__(self) -> str:
        text = f"boxes differ by {self.boxes:.1e} pixels at most, scores by {self.scores:.1e}"
        if self.detections is None:
            return text
        return f"{text}; {self.detections - self.unlike} of {self.detections} detections are those of our selection"


@torch.no_grad()
def verify(
    path: Path | str, model: YoloModel, images: Float[Tensor, "B 3 H W"], nms: NmsSettings | None = None
) -> Difference | None:
    """Run an exported file on images in [0, 1], all at once and the first alone, and compare with our network.

    `nms`: what the file selects by; its selection is compared with ours on the file's own boxes, and on drawn ones, for
    the images may show nothing. None when onnxruntime, which runs ONNX files, is not installed.
    """
    path = Path(path)
    if path.suffix == SUFFIXES["onnx"] and importlib.util.find_spec("onnxruntime") is None:
        return None
    ours, run = DecodedModel(model, (images.shape[2], images.shape[3])), _open(path, nms is not None)
    answers = [(ours(part), run(part)) for part in (images, images[:1])]
    boxes, scores = (
        torch.stack([(wanted[i] - given[i]).abs().max() for wanted, given in answers]).max().item() for i in (0, 1)
    )
    if nms is None:
        return Difference(boxes, scores)
    drawn = _draw_predictions(len(ours.points), model.num_classes, nms)
    cases = [*(given for _, given in answers), (*drawn, *_open_selection(path)(*drawn))]
    counts = [_compare_selections(case, nms) for case in cases]
    return Difference(boxes, scores, sum(found for found, _ in counts), sum(unlike for _, unlike in counts))


def check_images(shape: tuple[int, int]) -> Float[Tensor, "3 3 H W"]:
    """Three images to check a file with, the same on every call: blocks of colour with noise on them."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.rand(3, 3, -(-shape[0] // 32), -(-shape[1] // 32), generator=generator)
    blocks = blocks.repeat_interleave(32, dim=2).repeat_interleave(32, dim=3)[:, :, : shape[0], : shape[1]]
    return 0.8 * blocks + 0.2 * torch.rand(blocks.shape, generator=generator)


def _open(path: Path, selects: bool) -> Callable[[Tensor], Sequence[Tensor]]:
    """What the file makes of images: boxes and scores, and detections where it `selects`."""
    if path.suffix == SUFFIXES["torch"]:
        with quiet():
            return torch.export.load(path).module()
    if path.suffix == SUFFIXES["ultralytics"]:
        return lambda images: run_checkpoint(path, images)
    import onnx

    proto = onnx.load(path)
    if selects:  # the whole file, but what is inside is shown, too
        inner = [info for info in proto.graph.value_info if info.name in ("boxes", "scores")]
        proto.graph.output.extend(inner)
    run = _open_onnx(proto, ["boxes", "scores", "detections"] if selects else ["boxes", "scores"])
    return lambda images: run(images=images)


def _open_selection(path: Path) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    """The part of the file that makes detections out of boxes and scores."""
    import onnx

    part = onnx.utils.Extractor(onnx.load(path)).extract_model(["boxes", "scores"], ["detections"])
    run = _open_onnx(part, ["detections"])
    return lambda boxes, scores: run(boxes=boxes, scores=scores)


def _open_onnx(proto: Any, outputs: list[str]) -> Callable[..., list[Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda **inputs: [
        torch.from_numpy(one) for one in session.run(outputs, {name: one.numpy() for name, one in inputs.items()})
    ]


def _draw_predictions(num_points: int, num_classes: int, nms: NmsSettings) -> tuple[Tensor, Tensor]:
    """Three images: more on it than may be reported, a few around the threshold, nothing."""
    generator = torch.Generator().manual_seed(0)
    centres, sizes = (torch.rand(3, num_points, 2, generator=generator) * scale for scale in (300, 200))
    scores, lots = torch.rand(2, 3, num_points, num_classes, generator=generator)
    scores[1] = nms.score_threshold * (0.9 + 0.2 * scores[1])
    share = torch.tensor((200 / num_points, nms.max_detections / (2 * num_points * num_classes), 0.0))
    return torch.cat((centres - sizes / 2, centres + sizes / 2), dim=2), scores * (lots < share[:, None, None])


def _compare_selections(case: Sequence[Tensor], nms: NmsSettings) -> tuple[int, int]:
    """How many detections our selection makes of boxes and scores, and in how many those given beside are not alike."""
    boxes, scores, detections = case
    rows = []
    for image, one in enumerate(map(select_detections, boxes, scores, *([value] * len(boxes) for value in nms))):
        number = torch.full((len(one.scores), 1), float(image))
        rows.append(torch.cat((number, one.boxes, one.scores[:, None], one.labels[:, None].float()), dim=1))
    ours, theirs = ({tuple(row) for row in table.tolist()} for table in (torch.cat(rows), detections))
    return len(ours), max(len(ours - theirs), len(theirs - ours))
