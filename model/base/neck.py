"""Layers 10 to 21: features go down to fine maps and up again to coarse ones (PAN-FPN)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from model.base.components import C2f, ConvModule
from model.base.scales import Scale


class NeckFeatures(NamedTuple):
    """The assignment's names: C = TopDownLayer2, X = TopDownLayer1, Y = BottomUpLayer0, Z = BottomUpLayer1."""

    C: Float[Tensor, "B c2 h16 w16"]
    X: Float[Tensor, "B c1 h8 w8"]
    Y: Float[Tensor, "B c2 h16 w16"]
    Z: Float[Tensor, "B c3 h32 w32"]


class Neck(nn.Module):
    """Two steps down (upsample, join, C2f), two steps up (strided convolution, join, C2f); no shortcuts inside."""

    def __init__(self, in_channels: tuple[int, int, int], scale: Scale):
        super().__init__()
        c1, c2, c3 = in_channels
        repeats = scale.repeats(3)
        self.l12 = C2f(c3 + c2, c2, repeats, add=False)
        self.l15 = C2f(c2 + c1, c1, repeats, add=False)
        self.l16 = ConvModule(c1, c1, 3, 2)
        self.l18 = C2f(c1 + c2, c2, repeats, add=False)
        self.l19 = ConvModule(c2, c2, 3, 2)
        self.l21 = C2f(c2 + c3, c3, repeats, add=False)
        self.out_channels = in_channels  # of X, Y, Z

    def forward(
        self,
        feat1: Float[Tensor, "B c1 h8 w8"],
        feat2: Float[Tensor, "B c2 h16 w16"],
        feat3: Float[Tensor, "B c3 h32 w32"],
    ) -> NeckFeatures:
        c = self.l12(torch.cat((_double(feat3), feat2), dim=1))
        x = self.l15(torch.cat((_double(c), feat1), dim=1))
        y = self.l18(torch.cat((self.l16(x), c), dim=1))
        z = self.l21(torch.cat((self.l19(y), feat3), dim=1))
        return NeckFeatures(c, x, y, z)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
