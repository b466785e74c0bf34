"""Layer 22: the decoupled, anchor-free head."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.base.components import ConvModule
from ops.anchors import STRIDES

BOX_BIAS = 2.0  # today's reference; 1.0 in the release of 2023
OBJECTS_AN_IMAGE = 5  # the class bias starts at this many objects on a 640 pixel image
REFERENCE_SIDE = 640
OFFICIAL_CLASSES = 80  # of COCO, which the official weights were trained on


class Head(nn.Module):
    """For each of three maps one branch for box distributions and one for class logits, joined to a raw map.

    `official_width`: the class branch is as wide as for 80 classes, so that the official weights fit into it. Only
    nano, 64 wide for few classes, is another network then.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, reg_max: int, official_width: bool = False):
        super().__init__()
        box_width = max(16, in_channels[0] // 4, 4 * reg_max)
        cls_width = class_branch_width(in_channels[0], num_classes, official_width)
        self.box = nn.ModuleList(_branch(width, box_width, 4 * reg_max, BOX_BIAS) for width in in_channels)
        self.cls = nn.ModuleList(
            _branch(width, cls_width, num_classes, _class_bias(num_classes, stride))
            for width, stride in zip(in_channels, STRIDES, strict=True)
        )
        # The reference keeps the bins of the box distribution as a frozen convolution and counts them among its
        # parameters. They are kept here so that checkpoints map one to one; decoding computes the same numbers itself.
        self.dfl = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data.copy_(torch.arange(reg_max).view(1, reg_max, 1, 1))

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Tensor]:
        """Three maps (B, c, h, w) -> three raw maps (B, 4R + C, h, w), box channels first."""
        return [torch.cat((box(x), cls(x)), dim=1) for box, cls, x in zip(self.box, self.cls, features, strict=True)]


def class_branch_width(channels: int, num_classes: int, official_width: bool = False) -> int:
    """Channels of the class branch where the first of the three maps has `channels`."""
    return max(channels, min(max(num_classes, OFFICIAL_CLASSES if official_width else 0), 100))


def _branch(in_channels: int, width: int, out_channels: int, bias: float) -> nn.Sequential:
    last = nn.Conv2d(width, out_channels, 1)
    nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    return nn.Sequential(ConvModule(in_channels, width, 3), ConvModule(width, width, 3), last)


def _class_bias(num_classes: int, stride: int) -> float:
    """The logit at which the whole map expects `OBJECTS_AN_IMAGE` objects, so that training starts calmly."""
    return math.log(OBJECTS_AN_IMAGE / num_classes / (REFERENCE_SIDE / stride) ** 2)
