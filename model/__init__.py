"""The network (`model.base`), and reading of its weights from files."""

from functools import partial

import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from model.base.yolomodel import YoloModel

__all__ = ["YoloModel", "build_model"]


def build_model(mcfg: ModelConfig) -> YoloModel:
    """The network that a config describes, with random weights from its seed.

    The random state of the caller does not change. Raises `UserError` if the config has no class names.
    """
    if not mcfg.classList or isinstance(mcfg.classList, str):
        raise UserError(
            f"classList={mcfg.classList!r}: the network needs class names; set classList, or give --data DIR"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mcfg.seed)
        head = partial(mcfg.head.build, "head", "model.base.head")
        block = partial(mcfg.block.build, "block", "model.base.components")
        return YoloModel(mcfg.phase, len(mcfg.classList), mcfg.regMax, bool(mcfg.keepHeadWidth), head, block)
