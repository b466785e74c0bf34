"""Optimizers, with the three parameter groups that detectors are trained with."""

import torch
from torch import nn

from config.mconfig import ModelConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Convolution weights with decay; norm weights and biases without. Parameters that are always frozen stay out.

    A backbone that is frozen for some epochs only has to be in: call this before freezing. While frozen its parameters
    have no gradient, and optimizers leave those alone.
    """
    decayed, norms, biases = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                norms.append(parameter)
            else:
                decayed.append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "weights"},
        {"params": norms, "weight_decay": 0.0, "name": "norms"},
        {"params": biases, "weight_decay": 0.0, "name": "biases"},
    ]


def build_optimizer(mcfg: ModelConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW with the momentum as its first beta."""
    groups = parameter_groups(model, mcfg.optimizerWeightDecay)
    if mcfg.optimizerType == "AdamW":
        return torch.optim.AdamW(groups, lr=mcfg.baseLearningRate, betas=(mcfg.optimizerMomentum, 0.999))
    nesterov = mcfg.optimizerMomentum > 0  # Nesterov without momentum is an error in torch
    return torch.optim.SGD(groups, lr=mcfg.baseLearningRate, momentum=mcfg.optimizerMomentum, nesterov=nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
