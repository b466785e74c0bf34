"""Optimizers with three parameter groups: weights (with weight decay), norm weights and biases (without)."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, cast

import torch
from torch import nn

from config.mconfig import ModelConfig
from train.sched import Pace


def parameter_groups(weight_decay: float, *models: nn.Module) -> list[dict[str, Any]]:
    """Convolution weights with weight decay; norm weights and biases without. Frozen parameters are left out.

    A backbone that is frozen only in some epochs has to be included: call this before freezing. While it is frozen, its
    parameters have no gradient, and optimizers skip them.
    """
    decayed: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for module in (module for model in models for module in model.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
                norms.append(parameter)
            else:
                decayed.append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "weights"},
        {"params": norms, "weight_decay": 0.0, "name": "norms"},
        {"params": biases, "weight_decay": 0.0, "name": "biases"},
    ]


def build_optimizer(mcfg: ModelConfig, *models: nn.Module) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW with the momentum as its first beta, for all parameters of `models`.

    Any other class is called with the parameter groups and the learning rate, as the optimizers of torch.
    With `nominalBatch`, weight decay is scaled by the share of the nominal batch that a step really contains.
    """
    # Ultralytics' recipe: the decay is meant for a step of `nominalBatch` images; fewer images per step, less decay.
    decay = mcfg.optimizerWeightDecay
    if mcfg.nominalBatch:
        images = mcfg.batchSize * max(round(mcfg.nominalBatch / mcfg.batchSize), 1)  # per optimizer step
        decay *= images / mcfg.nominalBatch
    groups = parameter_groups(decay, *models)
    rate, momentum = mcfg.baseLearningRate, mcfg.optimizerMomentum
    # On CUDA one kernel for all parameters. The guard calls `start_momentum` before each step of a fused optimizer.
    fused = True if next(models[0].parameters()).is_cuda else None
    if mcfg.optimizerType == "AdamW":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999), fused=fused)
    if mcfg.optimizerType != "SGD":
        return mcfg.optimizerType.build("optimizerType", __name__, groups, rate, kind=torch.optim.Optimizer)
    # Nesterov: the step is gradient + momentum * v, where v sums up the gradients so far, each decayed by momentum.
    nesterov = momentum > 0  # Nesterov without momentum is an error in torch
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=fused, nesterov=nesterov)


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Create the missing momentum buffers of fused SGD as zeros, for parameters that have a gradient.

    It leaves a buffer uninitialised if its first step is skipped, and fails if only some parameters have one, as
    after a frozen backbone.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") and group.get("momentum") else ():
            state = optimizer.state[parameter]
            if parameter.grad is not None and state.get("momentum_buffer") is None:
                state["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict()`, which may come from another device. Whether the optimizer is fused does not change.

    Raises `ValueError`, `TypeError` and others for the state of a different optimizer.
    """
    # The optimizer of a recipe may have no such flag.
    fused = [{"fused": group["fused"]} if "fused" in group else {} for group in optimizer.param_groups]
    groups = [{**saved, **current} for saved, current in zip(state["param_groups"], fused, strict=True)]
    kinds = [{name: _kind(value) for name, value in group.items()} for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "param_groups": groups})
    if kinds != [{name: _kind(value) for name, value in group.items()} for group in optimizer.param_groups]:
        raise ValueError("the groups of the optimizer have different fields")
    for parameter, entry in optimizer.state.items():
        tensors = [value for value in entry.values() if isinstance(value, torch.Tensor)]
        if any(value.dim() > 0 and value.shape != parameter.shape for value in tensors):
            raise ValueError("a tensor of the optimizer has a different shape than its parameter")


def _kind(value: object) -> type:
    return float if type(value) is int else type(value)


def set_pace(optimizer: torch.optim.Optimizer, pace: Pace) -> None:
    """Set the learning rate of each group, and the momentum of SGD (AdamW's betas stay).

    Raises `FloatingPointError` if these or any other number of a group (weight decay, betas) is NaN or Inf: the weights
    would become NaN, too.
    """
    if not all(math.isfinite(value) for value in (pace.rate, pace.bias_rate, pace.momentum)):
        raise FloatingPointError(
            f"the schedule is not finite: learning rate {pace.rate}, of biases {pace.bias_rate}, momentum "
            f"{pace.momentum}; the weights are unchanged since the step before"
        )
    for group in optimizer.param_groups:
        group["lr"] = pace.bias_rate if group["name"] == "biases" else pace.rate
        if "momentum" in group:
            group["momentum"] = pace.momentum
        for name, value in group.items():
            if name != "params" and not _is_finite(value):
                raise FloatingPointError(
                    f"the optimizer's {name} of the {group['name']} is {value}; the weights are unchanged "
                    "since the step before"
                )


def _is_finite(value: Any) -> bool:
    """Is every number in `value` finite? Flags, None and other values count as finite."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, cast("Sequence[Any]", value)))
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, Real) or math.isfinite(value)
