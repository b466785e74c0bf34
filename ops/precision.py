"""Which floating-point type the network computes in: measured on this device, not guessed."""

import copy
import time
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import nn

from config.errors import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

_SECONDS_A_TYPE = 0.8  # of trying; two types and their first, slower step stay near two seconds
_IMAGES = {"cpu": 4, "cuda": 16}  # a GPU is not kept busy by four
_WORTH_IT = 0.95  # a half precision that gains less than this is not worth its rounding


class Precision(NamedTuple):
    """The type the network computes in, why, and how long a forward and backward pass takes it for one image."""

    dtype: torch.dtype
    why: str  # for the log
    seconds: float | None  # None when nothing was timed


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Within the block, convolutions and products compute in `dtype`; for float32 the block changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within the block nothing is cast, inside an `autocast` too: what must be exact stays so. Free outside of one."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def cpu_has_bfloat16() -> bool:
    """Does oneDNN compute in bfloat16 on this processor? Builds without oneDNN, as on Apple's processors, do not."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def half_dtypes(device: torch.device) -> tuple[torch.dtype, ...]:
    """The half precisions the device has, the better one first; empty when it has none.

    bfloat16 has the range of float32, so nothing overflows. A CPU without its instructions still says yes: it is the
    timing that tells. float16 needs a gradient scaler, which Mars has on CUDA only.
    """
    if device.type == "cuda":
        is_ampere = torch.cuda.get_device_capability(device) >= (8, 0)  # or later: it has bfloat16
        return (torch.bfloat16, torch.float16) if is_ampere else (torch.float16,)
    return (torch.bfloat16,) if cpu_has_bfloat16() else ()


def pick_precision(
    word: str, device: torch.device, model: nn.Module, input_shape: tuple[int, int], must_time: bool = False
) -> Precision:
    """What `word` (auto, bfloat16, float16, float32) means here.

    `auto` tries the device's best half precision against float32 on a copy of `model` (forward and backward at
    `input_shape`, height and width) for about two seconds. `must_time`: the chosen type is timed even when there is no
    choice. Raises `UserError` for float16 without CUDA.
    """
    if word == "float16" and device.type != "cuda":
        raise UserError(f"precision=float16: needs a CUDA GPU, this run is on {device.type}; use bfloat16 or auto")
    halves = half_dtypes(device)[:1]
    if word == "bfloat16" and torch.bfloat16 not in half_dtypes(device):
        raise UserError(f"precision=bfloat16: {device} here has none; use auto or float32")
    if word != "auto":
        candidates, why = (DTYPES[word],), "as set"
    elif not halves:
        candidates, why = (torch.float32,), "for this processor has no bfloat16"
    else:
        candidates, why = (torch.float32, *halves), ""
    if len(candidates) == 1 and not must_time:
        return Precision(candidates[0], f"precision: {dtype_name(candidates[0])}, {why}", None)
    seconds = {dtype: _time_step(model, device, input_shape, dtype) for dtype in candidates}
    chosen = candidates[-1] if seconds[candidates[-1]] < _WORTH_IT * seconds[candidates[0]] else candidates[0]
    tried = ", ".join(f"{dtype_name(dtype)} {1000 * value:.1f} ms" for dtype, value in seconds.items())
    why = f"{why}; " if why else ""
    return Precision(
        chosen, f"precision: {dtype_name(chosen)} ({why}forward and backward of one image: {tried})", seconds[chosen]
    )


def resumed_precision(word: str, device: torch.device) -> Precision:
    """The type of a run that goes on: what it began in, or float32 where the device has no such type."""
    if word == "float32" or DTYPES[word] in half_dtypes(device):
        return Precision(DTYPES[word], f"precision: {word}, as begun", None)
    return Precision(torch.float32, f"precision: float32, for {device} has no {word}, in which this run began", None)


def dtype_name(dtype: torch.dtype) -> str:
    """The word of a type, as the config and the checkpoint write it."""
    return str(dtype).removeprefix("torch.")


def _time_step(model: nn.Module, device: torch.device, input_shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Seconds an image of the fastest forward and backward pass; model, statistics and random state stay."""
    model = copy.deepcopy(model).train()
    generator = torch.Generator().manual_seed(0)
    count = _IMAGES[device.type]
    images = torch.rand(count, 3, *input_shape, generator=generator).to(device, memory_format=torch.channels_last)
    best, end = float("inf"), float("inf")
    while time.perf_counter() < end:
        started = time.perf_counter()
        with autocast(device, dtype):
            raw_maps = model(images)
        torch.stack([one.float().square().mean() for one in raw_maps]).sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if end == float("inf"):  # the first pass also plans its kernels
            end = time.perf_counter() + _SECONDS_A_TYPE
        else:
            best = min(best, time.perf_counter() - started)
    return min(best, _SECONDS_A_TYPE) / count
