"""What all exported files have in common: the network that they hold, how they end, and libraries that keep quiet.

Legend: B images, A anchor points, C classes.
"""

import copy
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.base.yolomodel import YoloModel
from ops.anchors import anchors_of, decode_boxes, flatten_maps

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "ultralytics": ".pt"}


class DecodedModel(nn.Module):
    """A copy of a network on the CPU, in float32 and eval mode, that answers with boxes and scores.

    Anchor points are constants of the one input shape (height, width); the number of images is free.
    """

    points: Tensor
    strides: Tensor

    def __init__(self, model: YoloModel, shape: tuple[int, int]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format)
        self.eval()
        with torch.no_grad():
            anchors = anchors_of(self.model(torch.zeros(1, 3, *shape)), model.strides)
        self.register_buffer("points", anchors.points.clone(), persistent=False)
        self.register_buffer("strides", anchors.strides.clone(), persistent=False)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, Tensor]:
        distributions, logits = flatten_maps(self.model(images), self.model.reg_max)
        return decode_boxes(distributions, self.points, self.strides), logits.sigmoid()


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters tell of their progress, and warn of their own future."""
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
