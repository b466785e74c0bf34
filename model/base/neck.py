"""Layers 10 to 21 of YOLOv8: the neck combines features of different strides.

Top-down path (FPN, Lin et al., 2017): coarse maps, which know what an object is, are added to fine maps, which know
where it is. Bottom-up path (PANet, Liu et al., 2018): the precise positions return to the coarse maps. Numbers that are
missing here (10, 11, 13, ...) are upsampling and concatenation in `yolov8.yaml`; they have no weights.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.base.components import Block, C2f, ConvModule
from model.base.scales import Scale


class NeckFeatures(NamedTuple):
    """The four maps that the neck computes; X, Y and Z go to the head.

    Names of the assignment: C = TopDownLayer2, X = TopDownLayer1, Y = BottomUpLayer0, Z = BottomUpLayer1.
    """

    C: Float[Tensor, "B c2 h16 w16"]
    X: Float[Tensor, "B c1 h8 w8"]
    Y: Float[Tensor, "B c2 h16 w16"]
    Z: Float[Tensor, "B c3 h32 w32"]


class Neck(nn.Module):
    """Two top-down steps (upsample, concatenate, C2f), then two bottom-up steps.

    A bottom-up step is a convolution with stride 2, a concatenation and a C2f. The bottlenecks of the neck have no
    shortcuts (`add=False`). `block` takes the place of C2f.
    """

    def __init__(self, in_channels: tuple[int, int, int], scale: Scale, block: Block = C2f):
        super().__init__()
        c1, c2, c3 = in_channels
        repeats = scale.repeats(3)
        # Top-down: the input widths are those of the upsampled map plus those of the backbone's map.
        self.l12 = block(c3 + c2, c2, repeats, add=False)
        self.l15 = block(c2 + c1, c1, repeats, add=False)
        # Bottom-up
        self.l16 = ConvModule(c1, c1, 3, 2)
        self.l18 = block(c1 + c2, c2, repeats, add=False)
        self.l19 = ConvModule(c2, c2, 3, 2)
        self.l21 = block(c2 + c3, c3, repeats, add=False)
        self.out_channels = in_channels  # of X, Y, Z

    def forward(
        self,
        feat1: Float[Tensor, "B c1 h8 w8"],
        feat2: Float[Tensor, "B c2 h16 w16"],
        feat3: Float[Tensor, "B c3 h32 w32"],
    ) -> NeckFeatures:
        # Concatenation needs maps of equal size. That is why the input must be a multiple of 32.
        # The backbone's map of the same stride joins each step: it still has the details that the coarse map has lost.
        c = self.l12(torch.cat((_double(feat3), feat2), dim=1))
        x = self.l15(torch.cat((_double(c), feat1), dim=1))
        y = self.l18(torch.cat((self.l16(x), c), dim=1))
        z = self.l21(torch.cat((self.l19(y), feat3), dim=1))
        return NeckFeatures(c, x, y, z)


def _double(x: Tensor) -> Tensor:
    # The nearest value, as in the network that the official weights were trained in: interpolation would change them.
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
