"""The whole network, freezing of its backbone, and folding of its batch norms for inference."""

import copy
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.base.backbone import Backbone
from model.base.components import Block, C2f, ConvModule
from model.base.head import DetectionHead
from model.base.neck import Neck
from model.base.scales import SCALES
from ops.anchors import STRIDES


class YoloModel(nn.Module):
    """YOLOv8: images (B, 3, H, W) in [0, 1] -> three raw maps (B, 4R + C, h, w) at strides 8, 16 and 32.

    R bins for each side of a box, C classes. H and W are multiples of 32. Train and eval mode return the same maps: the
    loss and the predictor decode them outside the network.
    """

    strides = STRIDES

    def __init__(
        self,
        phase: str,
        num_classes: int,
        reg_max: int = 16,
        official_width: bool = False,
        head: Callable[..., DetectionHead] = DetectionHead,
        block: Block = C2f,
    ):
        """`phase`: a key of `SCALES`. `official_width`: the class branch is as wide as in the official weights.

        `head` and `block` build the head and the layers of several convolutions, from the arguments of the default
        classes.
        """
        super().__init__()
        scale = SCALES[phase]
        self.phase, self.num_classes, self.reg_max = phase, num_classes, reg_max
        self.backbone = Backbone(scale, block)
        self.neck = Neck(self.backbone.out_channels, scale, block)
        self.head = head(self.neck.out_channels, num_classes, reg_max, official_width)
        self._trainable_before_freeze: list[nn.Parameter] | None = None

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return self.forward_features(images)[0]

    def forward_features(self, images: Float[Tensor, "B 3 H W"]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Raw maps, and the features by name: feat0 to feat3 of the backbone, C, X, Y and Z of the neck."""
        features = self.backbone(images)
        # The neck starts at stride 8: at stride 4 it would have four times the cells. Only distillation uses feat0.
        joined = self.neck(features.feat1, features.feat2, features.feat3)
        raw_maps = self.head((joined.X, joined.Y, joined.Z))
        return raw_maps, {**features._asdict(), **joined._asdict()}

    @property
    def feature_widths(self) -> dict[str, int]:
        """Channels of every feature map of `forward_features`."""
        feat1, feat2, feat3 = self.backbone.out_channels
        x, y, z = self.neck.out_channels
        feat0 = self.backbone.l1.conv.out_channels
        # C is at the stride of Y and is concatenated to it, with the same width.
        return {"feat0": feat0, "feat1": feat1, "feat2": feat2, "feat3": feat3, "C": y, "X": x, "Y": y, "Z": z}

    def distances(self, box_channels: Float[Tensor, "*A four_R"]) -> Float[Tensor, "*A 4"]:
        """The box channels of raw maps -> distances from the anchor points to the four sides, in strides."""
        return self.head.distances(box_channels)

    @property
    def is_backbone_frozen(self) -> bool:
        return self._trainable_before_freeze is not None

    def freezeBackbone(self) -> None:
        """Stop training the backbone: no gradients, and constant batch norm statistics. A second call has no effect."""
        if self._trainable_before_freeze is None:
            # A list, not a flag: what the user froze before must stay frozen when the backbone is trained again.
            self._trainable_before_freeze = [p for p in self.backbone.parameters() if p.requires_grad]
            for parameter in self._trainable_before_freeze:
                parameter.requires_grad_(False)
        self.backbone.eval()

    def unfreezeBackbone(self) -> None:
        """Make trainable what was trainable before `freezeBackbone`, and nothing else."""
        for parameter in self._trainable_before_freeze or ():
            parameter.requires_grad_(True)
        self._trainable_before_freeze = None
        self.backbone.train(self.training)

    def train(self, mode: bool = True) -> "YoloModel":
        super().train(mode)
        if self.is_backbone_frozen:
            # `requires_grad=False` does not stop batch norm: in train mode its running statistics would still change.
            self.backbone.eval()
        return self


def fused(model: YoloModel) -> YoloModel:
    """A copy in eval mode, with each batch norm folded into the convolution before it. It is no checkpoint.

    In eval mode a batch norm is a constant scale and shift for each channel, so the weights of the convolution can
    include it. The batch norms become identities: even in train mode no statistics can change.
    """
    # BN(w * x) = gamma * (w * x - mean) / sqrt(var + eps) + beta is a convolution with the weights w * s and the bias
    # beta - mean * s, where s = gamma / sqrt(var + eps).
    copied = copy.deepcopy(model).eval()
    for module in list(copied.modules()):
        if isinstance(module, ConvModule) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    return copied
