"""Which device a run computes on, and how many cores it takes."""

import os

import torch

from config.errors import UserError


def pick_device(word: str = "auto", allow_cuda: bool = True) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> a device that is there. Raises `UserError` when it is not.

    `auto` is the first GPU, or the CPU when there is none or `allow_cuda` is False.
    """
    if word == "auto":
        word = "cuda:0" if allow_cuda and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(word)
    except RuntimeError:
        raise UserError(f"device={word}: wants auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={word}: Mars computes on cpu and cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device={word}: torch {torch.__version__} sees no CUDA GPU here; leave the tag out, or --set device=cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise UserError(f"device={word}: the last GPU here is cuda:{last}")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)  # else page-locked memory and new streams would open the first GPU, too
    return device


def usable_cores() -> int:
    """Cores this process may use: fewer than the machine has in a container or under a scheduler."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_all_cores() -> None:
    """Let torch compute on every usable core, for by itself it may take half; OMP_NUM_THREADS wins."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
