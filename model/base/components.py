"""The building blocks of YOLOv8. Checkpoints are mapped by the names of the submodules, so these must not change.

Legend: B images, h and w cells of a map.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Values of Ultralytics, not the defaults of PyTorch (1e-5 and 0.1). They are part of what the weights compute.
BN_EPS = 1e-3
BN_MOMENTUM = 0.03


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, SiLU. With odd kernels and stride 1, h and w stay the same."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1):
        super().__init__()
        # No bias: batch norm subtracts the mean, so a bias would have no effect.
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
        # An identity in the copy that `fused` of `model.base.yolomodel` makes.
        self.bn: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B out_channels h2 w2"]:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two 3 x 3 convolutions of equal width. With `add`, the input is added to the result (a residual connection)."""

    def __init__(self, channels: int, add: bool):
        super().__init__()
        self.cv1 = ConvModule(channels, channels, 3)
        self.cv2 = ConvModule(channels, channels, 3)
        self.add = add

    def forward(self, x: Float[Tensor, "B channels h w"]) -> Float[Tensor, "B channels h w"]:
        # x + f(x): the block learns a correction, and the gradient reaches earlier layers unchanged (He et al., 2016).
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """CSP layer with two convolutions (CSPLayer_2Conv in the assignment), made for YOLOv8.

    The output of the first convolution is split into two halves. A chain of bottlenecks processes the second half. Both
    halves and the output of every bottleneck are concatenated for the last convolution. Compare CSPNet (Wang et al.,
    2019), which concatenates only the end of the chain; here gradients reach each bottleneck on a short path.
    """

    def __init__(self, in_channels: int, out_channels: int, repeats: int, add: bool):
        super().__init__()
        hidden = out_channels // 2
        self.cv1 = ConvModule(in_channels, 2 * hidden)
        # Two halves and one map from each bottleneck, `hidden` channels each.
        self.cv2 = ConvModule((2 + repeats) * hidden, out_channels)
        self.m = nn.ModuleList(Bottleneck(hidden, add) for _ in range(repeats))

    def forward(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B out_channels h w"]:
        # The bottlenecks process only half of the channels, so they cost a quarter: a convolution's cost is the product
        # of its input and output channels. The first half carries the input past them.
        parts = list(self.cv1(x).chunk(2, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


# Builds a layer like C2f from its arguments (in_channels, out_channels, repeats, add); the size of the map stays.
Block = Callable[..., nn.Module]


class SPPF(nn.Module):
    """Fast spatial pyramid pooling (YOLOv5): max-pooling at several scales, concatenated.

    Three 5 x 5 poolings in a row cover 5, 9 and 13 cells: the same result as three parallel poolings of these sizes
    (SPP, He et al., 2014), but cheaper.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        hidden = in_channels // 2
        self.cv1 = ConvModule(in_channels, hidden)
        self.cv2 = ConvModule(4 * hidden, out_channels)  # the input of the poolings and their three outputs
        # Padding 2 keeps h and w, so that all four maps can be concatenated.
        self.pool = nn.MaxPool2d(kernel_size=5, stride=1, padding=2)

    def forward(self, x: Float[Tensor, "B in_channels h w"]) -> Float[Tensor, "B out_channels h w"]:
        parts = [self.cv1(x)]
        # Each pooling adds 2 cells on every side: 1 + 2 * 2 = 5, then 9, then 13 cells.
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))
