"""Layer 22 of YOLOv8: the head.

Decoupled: boxes and classes have separate branches (YOLOX, Ge et al., 2021). Anchor-free: each cell predicts the
distances from its centre to the four sides of a box. Each distance is a distribution over R bins (Distribution Focal
Loss, Li et al., 2020), so that the network can express an uncertain side. There is no objectness output: a cell without
an object has low scores for all classes.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.base.components import ConvModule
from ops.anchors import STRIDES, expected_distances

BOX_BIAS = 2.0  # as in Ultralytics today; its release of 2023 had 1.0
OBJECTS_AN_IMAGE = 5  # expected objects on an image of 640 pixels; sets the initial class bias
REFERENCE_SIDE = 640
OFFICIAL_CLASSES = 80  # of COCO, which the official weights were trained on


class DetectionHead(nn.Module):
    """For each of three maps, one branch for box distributions and one for class logits, concatenated to a raw map.

    `official_width`: the class branch is as wide as for 80 classes, so that the official weights fit. This changes only
    phase nano, whose branch is 64 wide for few classes; all other phases are wider than 80 in any case.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, reg_max: int, official_width: bool = False):
        super().__init__()
        if reg_max < 2 and type(self).distances is DetectionHead.distances:
            raise ValueError(
                f"regMax={reg_max}: a distribution needs two bins or more; set regMax=16, or use a head that predicts "
                "the distance directly (docs/extending.md)"
            )
        box_width = max(16, in_channels[0] // 4, 4 * reg_max)
        cls_width = class_branch_width(in_channels[0], num_classes, official_width)
        # 4 * reg_max channels: one distribution of reg_max bins for each of left, top, right and bottom.
        self.box = nn.ModuleList(_branch(width, box_width, 4 * reg_max, BOX_BIAS) for width in in_channels)
        self.cls = nn.ModuleList(
            _branch(width, cls_width, num_classes, _class_bias(num_classes, stride))
            for width, stride in zip(in_channels, STRIDES, strict=True)
        )
        # Ultralytics stores the bins 0, 1, ... as the weights of a frozen convolution and counts them as parameters.
        # They exist here only so that checkpoints have the same tensors; `ops.anchors` decodes without them.
        self.dfl = nn.Conv2d(reg_max, 1, 1, bias=False).requires_grad_(False)
        self.dfl.weight.data.copy_(torch.arange(reg_max).view(1, reg_max, 1, 1))

    def forward(self, features: Sequence[Float[Tensor, "B _ _ _"]]) -> list[Tensor]:
        """Three maps (B, c, h, w) -> three raw maps (B, 4R + C, h, w), box channels first."""
        return [torch.cat((box(x), cls(x)), dim=1) for box, cls, x in zip(self.box, self.cls, features, strict=True)]

    @staticmethod
    def distances(box_channels: Float[Tensor, "*A four_R"]) -> Float[Tensor, "*A 4"]:
        """The box channels of a raw map -> distances to the four sides, in strides. Loss and predictor call it."""
        return expected_distances(box_channels)


def class_branch_width(channels: int, num_classes: int, official_width: bool = False) -> int:
    """Channels of the class branch, if the first of the three maps has `channels`."""
    # 100: the limit of Ultralytics. With more classes the branch does not become wider.
    return max(channels, min(max(num_classes, OFFICIAL_CLASSES if official_width else 0), 100))


def _branch(in_channels: int, width: int, out_channels: int, bias: float) -> nn.Sequential:
    # The last layer is a plain convolution with bias: its outputs are logits, so no batch norm and no activation.
    last = nn.Conv2d(width, out_channels, 1)
    nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
    return nn.Sequential(ConvModule(in_channels, width, 3), ConvModule(width, width, 3), last)


def _class_bias(num_classes: int, stride: int) -> float:
    """The initial class logit: at this score, the whole map expects `OBJECTS_AN_IMAGE` objects.

    Without it every cell would start with a score of 0.5, and the background would dominate the first losses (the prior
    of RetinaNet, Lin et al., 2017).
    """
    return math.log(OBJECTS_AN_IMAGE / num_classes / (REFERENCE_SIDE / stride) ** 2)
