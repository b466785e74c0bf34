"""A block that leaves networks, batch and random states exactly as it found them, whatever happens in it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ops.random_states import random_states, restore_random_states


@contextmanager
def untouched(modules: Sequence[nn.Module], others: Sequence[Tensor] = ()) -> Iterator[None]:
    """Put back weights, buffers, gradients, what is trained, modes and every random state, also after an exception.

    And what is in `others`. Costs the memory of all these once more.
    """
    parameters = [one for module in modules for one in module.parameters()]
    tensors = [*parameters, *(one for module in modules for one in module.buffers()), *others]
    values = [one.detach().clone(memory_format=torch.preserve_format) for one in tensors]
    gradients = [(one.grad, None if one.grad is None else one.grad.clone()) for one in parameters]
    trained = [one.requires_grad for one in parameters]
    modes = [(one, one.training) for module in modules for one in module.modules()]
    states = random_states()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
            for parameter, (gradient, value), is_trained in zip(parameters, gradients, trained, strict=True):
                parameter.requires_grad_(is_trained)
                parameter.grad = _as_it_was(gradient, value)
        for module, mode in modes:
            module.training = mode
        restore_random_states(states)


def _as_it_was(gradient: Tensor | None, value: Tensor | None) -> Tensor | None:
    return None if gradient is None or value is None else gradient.copy_(value)
