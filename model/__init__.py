"""From a batch to raw maps: the network, and where its weights come from."""

import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from model.base.yolomodel import YoloModel

__all__ = ["YoloModel", "build_model"]


def build_model(mcfg: ModelConfig) -> YoloModel:
    """The network that a config describes, with random weights drawn from its seed.

    The caller's random state is left as it was. Raises `UserError` when the classes are not known.
    """
    if not mcfg.classList or isinstance(mcfg.classList, str):
        raise UserError(f"classList={mcfg.classList!r}: the network needs it; name the classes, or give --data DIR")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mcfg.seed)
        return YoloModel(mcfg.phase, len(mcfg.classList), mcfg.regMax, bool(mcfg.keepHeadWidth))
