"""The network (`model.base`), and reading of its weights from files."""

from functools import partial

import torch
from torch import nn

from config.errors import UserError
from config.mconfig import ModelConfig, field_default
from config.parts import PartText
from model.base.head import DetectionHead
from model.base.yolomodel import YoloModel
from ops.anchors import STRIDES
from ops.random_states import seeded

__all__ = ["YoloModel", "build_model", "network"]


def build_model(mcfg: ModelConfig) -> YoloModel:
    """The network that a config describes, with random weights from its seed.

    The random state of the caller does not change. Raises `UserError` if the config has no class names.
    """
    if not mcfg.classList or isinstance(mcfg.classList, str):
        raise UserError(
            f"classList={mcfg.classList!r}: the network needs class names; set classList, or give --data DIR"
        )
    with seeded(mcfg.seed):
        return network(mcfg.phase, len(mcfg.classList), mcfg.regMax, bool(mcfg.keepHeadWidth), mcfg.head, mcfg.block)


def network(
    phase: str, num_classes: int, reg_max: int, official_width: bool, head: PartText, block: PartText
) -> YoloModel:
    """The network with the head and the blocks that the config fields `head` and `block` name.

    Raises `UserError` if a class of a recipe fails, or gives maps of another shape.
    """
    build_head = partial(head.build, "head", "model.base.head", kind=DetectionHead)
    build_block = partial(block.build, "block", "model.base.components", kind=nn.Module)
    if (head, block) != (field_default("head"), field_default("block")):
        try:
            with torch.device("meta"):  # shapes alone, nothing is computed
                trial = YoloModel(phase, num_classes, reg_max, official_width, build_head, build_block)
                shapes = [tuple(raw.shape) for raw in trial(torch.zeros(1, 3, 64, 64))]
        except (RuntimeError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            raise UserError(f"head={head}, block={block}: a forward pass fails ({error}); correct the class") from error
        expected = [(1, 4 * reg_max + num_classes, 64 // stride, 64 // stride) for stride in STRIDES]
        if shapes != expected:
            raise UserError(f"head={head}, block={block}: raw maps have shapes {shapes}, but {expected} are required")
    return YoloModel(phase, num_classes, reg_max, official_width, build_head, build_block)
