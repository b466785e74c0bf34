"""Optimizers, with the three parameter groups that detectors are trained with."""

import torch
from torch import nn

from config.mconfig import ModelConfig
from train.sched import Pace


def parameter_groups(weight_decay: float, *models: nn.Module) -> list[dict]:
    """Convolution weights with decay; norm weights and biases without. Parameters that are always frozen stay out.

    A backbone that is frozen for some epochs only has to be in: call this before freezing. While frozen its parameters
    have no gradient, and optimizers leave those alone.
    """
    decayed, norms, biases = [], [], []
    for module in (module for model in models for module in model.modules()):
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


def build_optimizer(mcfg: ModelConfig, *models: nn.Module) -> torch.optim.Optimizer:
    """Of the parameters of all models: SGD with Nesterov momentum, or AdamW with the momentum as its first beta.

    Where steps sum up gradients to a nominal batch, weight decay is scaled by what a step really holds of it.
    """
    decay = mcfg.optimizerWeightDecay
    if mcfg.nominalBatch:
        held = mcfg.batchSize * max(round(mcfg.nominalBatch / mcfg.batchSize), 1)
        decay *= held / mcfg.nominalBatch
    groups = parameter_groups(decay, *models)
    if mcfg.optimizerType == "AdamW":
        return torch.optim.AdamW(groups, lr=mcfg.baseLearningRate, betas=(mcfg.optimizerMomentum, 0.999))
    nesterov = mcfg.optimizerMomentum > 0  # Nesterov without momentum is an error in torch
    return torch.optim.SGD(groups, lr=mcfg.baseLearningRate, momentum=mcfg.optimizerMomentum, nesterov=nesterov)


def set_pace(optimizer: torch.optim.Optimizer, pace: Pace) -> None:
    """Learning rates by group, and the momentum where the optimizer has one (AdamW's betas stay)."""
    for group in optimizer.param_groups:
        group["lr"] = pace.bias_rate if group["name"] == "biases" else pace.rate
        if "momentum" in group:
            group["momentum"] = pace.momentum
