"""Layers 0 to 9 of YOLOv8: from an image to four feature maps.

Source: `yolov8.yaml` of Ultralytics. The layers keep its numbers (l0 to l9), so that its weights can be mapped by name.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from model.base.components import SPPF, Block, C2f, ConvModule
from model.base.scales import Scale


class BackboneFeatures(NamedTuple):
    """Four maps at strides 4, 8, 16 and 32. The neck uses the last three; distillation can compare all four."""

    feat0: Float[Tensor, "B c0 h4 w4"]
    feat1: Float[Tensor, "B c1 h8 w8"]
    feat2: Float[Tensor, "B c2 h16 w16"]
    feat3: Float[Tensor, "B c3 h32 w32"]


class Backbone(nn.Module):
    """Five convolutions with stride 2. A C2f with shortcuts follows each of them except the first; SPPF ends it.

    `block` takes the place of C2f.
    """

    def __init__(self, scale: Scale, block: Block = C2f):
        super().__init__()
        # Widths and repeats of the plan for scale 1; each phase multiplies them (see `scales.py`).
        c0, c1, c2, c3, c4 = (scale.channels(width) for width in (64, 128, 256, 512, 1024))
        r2, r4, r6, r8 = (scale.repeats(count) for count in (3, 6, 6, 3))
        # Each convolution with kernel 3 and stride 2 halves the map. Most channels are added where the maps are small,
        # because there they cost little.
        self.l0 = ConvModule(3, c0, 3, 2)
        self.l1 = ConvModule(c0, c1, 3, 2)
        self.l2 = block(c1, c1, r2, add=True)
        self.l3 = ConvModule(c1, c2, 3, 2)
        self.l4 = block(c2, c2, r4, add=True)
        self.l5 = ConvModule(c2, c3, 3, 2)
        self.l6 = block(c3, c3, r6, add=True)
        self.l7 = ConvModule(c3, c4, 3, 2)
        self.l8 = block(c4, c4, r8, add=True)
        # SPPF enlarges the receptive field of the coarsest map, so that large objects are seen with their surroundings.
        self.l9 = SPPF(c4, c4)
        self.out_channels = (c2, c3, c4)  # of feat1, feat2, feat3

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> BackboneFeatures:
        # Stride:  4 (feat0), 8 (feat1), 16 (feat2), 32 (feat3)
        feat0 = self.l2(self.l1(self.l0(images)))
        feat1 = self.l4(self.l3(feat0))
        feat2 = self.l6(self.l5(feat1))
        feat3 = self.l9(self.l8(self.l7(feat2)))
        return BackboneFeatures(feat0, feat1, feat2, feat3)
