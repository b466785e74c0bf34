"""Optimizers, with the three parameter groups that detectors are trained with."""

import math
from numbers import Real
from typing import Any

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
    rate, momentum = mcfg.baseLearningRate, mcfg.optimizerMomentum
    fused = True if next(models[0].parameters()).is_cuda else None  # can be held back by a flag on the device
    if mcfg.optimizerType == "AdamW":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), fused=fused)
    nesterov = momentum > 0  # Nesterov without momentum is an error in torch
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=fused, nesterov=nesterov)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD's parameters that have a gradient and no momentum yet one of zeros, which is what the first step makes.

    Fused SGD leaves it as uninitialised memory when its first step is held back, and fails where only some have one,
    as after a frozen backbone.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """What `optimizer.state_dict()` gave, maybe on another device: fused or not is this one's own affair.

    Raises `ValueError`, `TypeError` and others for the state of another optimizer.
    """
    own = [{"fused": group["fused"]} for group in optimizer.param_groups]
    groups = [{**saved, **mine} for saved, mine in zip(state["param_groups"], own, strict=True)]
    kinds = [{name: _kind(value) for name, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "param_groups": groups})
    if kinds != [{name: _kind(value) for name, value in group.items()} for group in optimizer.param_groups]:
        raise ValueError("the groups of the optimizer have other fields")
    for parameter, kept in optimizer.state.items():
        tensors = [value for value in kept.values() if isinstance(value, torch.Tensor)]  # others keep what they like
        if any(value.dim() > 0 and value.shape != parameter.shape for value in tensors):
            raise ValueError("the optimizer keeps tensors of another shape than its parameter")


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def set_pace(optimizer: torch.optim.Optimizer, pace: Pace) -> None:
    """Learning rates by group, and the momentum where the optimizer has one (AdamW's betas stay).

    Raises `FloatingPointError` on NaN and Inf in these and in every other number of a group, such as its weight decay
    and AdamW's betas: they would be all that is left of the weights.
    """
    if not all(math.isfinite(value) for value in (pace.rate, pace.bias_rate, pace.momentum)):
        raise FloatingPointError(
            f"the schedule is not finite: learning rate {pace.rate}, of biases {pace.bias_rate}, momentum "
            f"{pace.momentum}; nothing has moved since the step before"
        )
    for group in optimizer.param_groups:
        group["lr"] = pace.bias_rate if group["name"] == "biases" else pace.rate
        if "momentum" in group:
            group["momentum"] = pace.momentum
        for name, value in group.items():
            if name != "params" and not _is_finite(value):
                raise FloatingPointError(
                    f"the optimizer's {name} of the {group['name']} is {value}; nothing has moved since the step before"
                )


def _is_finite(value: Any) -> bool:
    """Is every number in it finite? What is no number, such as a flag or None, counts as finite."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, Real) or math.isfinite(value)
