"""The states of all global random generators (torch, CUDA, numpy, Python): seed, copy, save and restore them."""

# manual_seed, fork_rng and from_numpy of torch have no annotations.
# pyright: reportUnknownMemberType=false

import json
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch


class CapturedStates(NamedTuple):
    """The states as the libraries return them. They are copies, and taking them needs a few microseconds."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: Mapping[str, Any]
    python: tuple[Any, ...]


def seed_random_states(seed: int) -> None:
    """Seed every global random generator, so that a run does not depend on code that ran before it."""
    torch.manual_seed(seed)  # also seeds all GPUs
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Generator[None, None, None]:
    """Within the block, torch draws on the CPU from this seed. Afterwards its generator continues where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which also changes the generators of GPUs
        yield


def capture_random_states() -> CapturedStates:
    """Copy the current states. To save them in a file, convert them with `random_states` (five times slower)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return CapturedStates(torch.get_rng_state(), cuda, np.random.get_state(legacy=False), random.getstate())


def random_states(captured: CapturedStates | None = None) -> dict[str, Any]:
    """The states as plain values and tensors, as a checkpoint stores them. None: the current states."""
    captured = captured or capture_random_states()
    numpy_state = captured.numpy
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": captured.cpu,
        "cuda": captured.cuda,
        "numpy": [keys, numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": json.dumps(captured.python),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore what `random_states` returned. GPU states are restored only if the number of GPUs is the same."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(_numpy_state(states))
    random.setstate(_python_state(states))


def are_random_states(states: dict[str, Any]) -> bool:
    """Can `restore_random_states` use these values? Tests them on separate generators.

    May raise any exception for values of another type; `runs.checkpoint` turns it into an error message.
    """
    torch.Generator().set_state(states["torch"])
    random.Random().setstate(_python_state(states))
    _, keys, position, *_ = state = _numpy_state(states)
    np.random.RandomState().set_state(state)
    is_cuda_list = isinstance(states["cuda"], (list, tuple))
    return 0 <= position <= len(keys) and is_cuda_list and all(isinstance(gpu, torch.Tensor) for gpu in states["cuda"])


def _numpy_state(states: dict[str, Any]) -> tuple[Any, ...]:
    keys, *other_values = states["numpy"]
    return ("MT19937", keys.numpy().astype(np.uint32), *other_values)


def _python_state(states: dict[str, Any]) -> tuple[Any, ...]:
    version, internal, gauss_next = json.loads(states["python"])
    return (version, tuple(internal), gauss_next)
