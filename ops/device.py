"""What a network computes on and in: the device, its processor cores, and the floating-point type (precision)."""

import copy
import math
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from config.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_SECONDS_PER_TYPE = 0.8  # of timing; two types and their slower first passes take about two seconds
_IMAGES = {"cpu": 4, "cuda": 16}  # images per pass, at most a batch; four do not load a GPU fully
_MAX_TIME_RATIO = 0.95  # a half precision that saves less than 5 % of the time is not worth its rounding


class Precision(NamedTuple):
    """The type that the network computes in, and the reason."""

    dtype: torch.dtype
    why: str  # for the log


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


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within the block, convolutions and matrix products compute in `dtype`. For float32 the block changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within the block nothing is cast to half precision, even inside an `autocast` block. No cost outside of one."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def cpu_has_bfloat16() -> bool:
    """Does oneDNN compute in bfloat16 on this processor? False for builds without oneDNN, as on Apple processors."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def half_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The half-precision types of the device, the better one first; empty when it has none."""
    # bfloat16 comes first: it has the range of float32, so nothing overflows. float16 needs a gradient scaler, which
    # Mars uses on CUDA only. A CPU may emulate bfloat16 slowly; `pick_precision` finds that out by timing.
    if device.type == "cuda":
        is_ampere = torch.cuda.get_device_capability(device) >= (8, 0)  # or later: it has bfloat16
        return (torch.bfloat16, torch.float16) if is_ampere else (torch.float16,)
    return (torch.bfloat16,) if cpu_has_bfloat16() else ()


def pick_precision(
    name: str, device: torch.device, model: nn.Module, input_shape: tuple[int, int], batch_size: int = 16
) -> Precision:
    """The type that `name` (auto, bfloat16, float16 or float32) stands for on this device.

    `auto` times the device's best half precision and float32 on a copy of `model` (forward and backward pass at
    `input_shape`, height and width) for about two seconds, and takes the faster one, or the one for which the memory is
    sufficient. Raises `UserError` for float16 without CUDA, and for bfloat16 on a device without it.
    """
    if name == "float16" and device.type != "cuda":
        raise UserError(f"precision=float16: needs a CUDA GPU, but this run is on {device.type}; use bfloat16 or auto")
    halves = half_dtypes(device)
    if name == "bfloat16" and torch.bfloat16 not in halves:
        raise UserError(f"precision=bfloat16: {device} does not support it; use auto or float32")
    if name != "auto":
        return Precision(DTYPES[name], f"precision: {name}, as set")
    if not halves:
        return Precision(torch.float32, "precision: float32, this processor has no bfloat16")
    half = halves[0]
    count = min(_IMAGES[device.type], batch_size)
    seconds = {dtype: _time_step(model, device, input_shape, dtype, count) for dtype in (half, torch.float32)}
    # Also if neither has enough memory, since half precision needs less; the training then reports it.
    is_slower = seconds[half] >= _MAX_TIME_RATIO * seconds[torch.float32]
    chosen = torch.float32 if is_slower and math.isfinite(seconds[torch.float32]) else half
    timings = ", ".join(
        f"{dtype_name(dtype)} {f'{1000 * value:.1f} ms' if math.isfinite(value) else 'out of memory'}"
        for dtype, value in seconds.items()
    )
    return Precision(chosen, f"precision: {dtype_name(chosen)} (forward and backward pass per image: {timings})")


def resumed_precision(name: str, device: torch.device) -> Precision:
    """The type of a resumed run: the type it started with, or float32 when this device does not support that type."""
    if name == "float32" or DTYPES[name] in half_dtypes(device):
        return Precision(DTYPES[name], f"precision: {name}, as before")
    return Precision(torch.float32, f"precision: float32; this run started in {name}, which {device} lacks")


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type as in the config and in checkpoints: "float32", not "torch.float32"."""
    return str(dtype).removeprefix("torch.")


def _time_step(
    model: nn.Module, device: torch.device, input_shape: tuple[int, int], dtype: torch.dtype, count: int
) -> float:
    """Seconds per image of the fastest forward and backward pass of `count` images; infinite if memory is too small.

    Model and random states do not change.
    """
    try:
        return _time_passes(model, device, input_shape, dtype, count)
    except torch.cuda.OutOfMemoryError:
        return math.inf
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the training needs other sizes


def _time_passes(
    model: nn.Module, device: torch.device, input_shape: tuple[int, int], dtype: torch.dtype, count: int
) -> float:
    # A copy, because a pass in train mode updates the batch norm statistics; a generator of its own for the images.
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, *input_shape, generator=generator).to(device, memory_format=torch.channels_last)
    best, end = float("inf"), float("inf")
    while time.perf_counter() < end:
        started = time.perf_counter()
        with autocast(device, dtype):
            raw_maps = model(images)
        torch.stack([raw.float().square().mean() for raw in raw_maps]).sum().backward()  # pyright: ignore[reportUnknownMemberType]
        if device.type == "cuda":  # kernels run asynchronously: wait for them before the clock is read
            torch.cuda.synchronize(device)
        if end == float("inf"):  # the first pass also selects kernels and allocates memory: not counted
            end = time.perf_counter() + _SECONDS_PER_TYPE
        else:
            best = min(best, time.perf_counter() - started)
    return min(best, _SECONDS_PER_TYPE) / count
