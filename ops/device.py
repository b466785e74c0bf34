"""The device that a run computes on, and the number of processor cores."""

import os

import torch

from config.errors import UserError


def pick_device(name: str = "auto", allow_cuda: bool = True) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> the device. Raises `UserError` when this machine does not have it.

    `auto` is the first GPU, or the CPU when there is no GPU or `allow_cuda` is False.
    """
    if name == "auto":
        name = "cuda:0" if allow_cuda and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device={name}: give auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={name}: Mars computes on cpu and cuda only")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device={name}: torch {torch.__version__} finds no CUDA GPU here; leave out the cuda tag, or add "
            "--set device=cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"device={name}: the last GPU of this machine is cuda:{last}")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # otherwise page-locked memory and new streams would also use the first GPU
    return device


def usable_cores() -> int:
    """Cores that this process may use: in a container or under a scheduler fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Let torch compute on all usable cores (its default may be half of them), unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
