"""A network for inference only: every batch norm is folded into the convolution before it."""

import copy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.base.components import ConvModule
from model.base.yolomodel import YoloModel


def fused(model: YoloModel) -> YoloModel:
    """A copy in eval mode that computes the same with fewer operations; its names are no longer those of checkpoints.

    The batch norms become identities, so nothing in it moves any more, whatever mode it is put into.
    """
    copied = copy.deepcopy(model).eval()
    for module in list(copied.modules()):
        if isinstance(module, ConvModule) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()  # type: ignore[assignment]
    return copied
