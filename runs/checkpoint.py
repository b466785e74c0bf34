"""Checkpoints: everything that a run needs to continue, in one file with a checksum.

A checkpoint holds only plain values and tensors. Therefore `torch.load(weights_only=True)` can read it, and reading it
never runs code from the file. The bundle of a non-finite step (`debug.tracer.bundle`) uses the same functions.

The keys of the parts are a file format: checkpoints of earlier versions must stay readable.
"""

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from config.compare import config_from_text
from config.errors import UserError, reading
from model.unpickle import DamagedFile, read_untrusted, reading_untrusted
from ops.device import DTYPES
from ops.files import atomic_writer, has_seal, sealed
from ops.random_states import are_random_states
from runs.provenance import checked_origin, origin_from_text

FORMAT = "mars-checkpoint-2"
FIRST_FORMAT = "mars-checkpoint-1"  # no checksum, no gradient scaler, no position inside an epoch; only read
LARGEST_COUNT = 10**9  # of epochs, steps and images: more than any training has, and small enough not to overflow
JSON_PARTS = ("config", "history")

Check = Callable[[Any], bool]


class FileParts(dict[str, Any]):
    """The parts of a checkpoint or bundle. A missing part is an error of the file, so it raises `UserError`."""

    def __init__(self, path: Path, parts: Mapping[str, Any]):
        super().__init__(parts)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.path}: the part '{name}' is missing; use a file that this version of Mars wrote")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as a checkpoint. Raises as `atomic_writer` does."""
    write_sealed(path, {"format": FORMAT, **content})


def load_checkpoint(path: Path) -> FileParts:
    """Read what `save_checkpoint` wrote, on the CPU. A file of the first format is converted to the current one.

    Raises `DamagedFile` if any bit changed or is missing. Raises `UserError` for other files and versions, and for
    parts of a wrong type or range.
    """
    advice = "use the version of Mars that wrote it, or train under another --name, or start again with --nobuf"
    parts = read_sealed(path, (FORMAT, FIRST_FORMAT), "a checkpoint", advice)
    if parts["format"] == FIRST_FORMAT:
        origin = origin_from_text(parts["weights_origin"])
        new_parts = {"scaler": {}, "precision": "float32", "progress": None, "gradients": None, "pending": 0}
        parts = FileParts(path, {**new_parts, **parts, "format": FORMAT, "weights_origin": origin})
    check_parts(parts, {**METADATA, **STATE})
    return parts


def weights_content(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The content of `best.pth`: the weights to evaluate (the EMA if the run has one) and the metadata."""
    model = checkpoint["model"] if checkpoint["ema"] is None else checkpoint["ema"]
    return {"model": model, **{name: checkpoint[name] for name in METADATA}}


# Files with a checksum


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write with `torch.save` and add a checksum. The file is complete or absent. Raises as `atomic_writer` does."""
    archive = io.BytesIO()  # torch.save to a file would replace the error of a full disk by its own
    torch.save(content, archive)
    with atomic_writer(path) as file:
        file.write(sealed(archive.getvalue()))


def read_sealed(path: Path, formats: Sequence[str], kind: str, advice: str) -> FileParts:
    """Read what `write_sealed` wrote, after its checksum and its part `format` are verified.

    `formats`: the accepted values of that part, the current one first; only earlier ones may lack a checksum. `kind`:
    what the file should be, with an article; `advice`: what to do about a file of another format. Raises `DamagedFile`
    for an incomplete or changed file, `UserError` for a file that cannot be opened, has another format, or contains
    more than values and tensors.
    """
    with reading(path, kind):
        is_sealed = has_seal(path)
    try:
        content = read_untrusted(path, is_plain=True)
    except UserError as error:
        if is_sealed:
            raise
        reason = str(error).removeprefix(f"{path}: ")
        raise DamagedFile(f"{path}: is damaged, incomplete or not {kind} ({reason})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found not in formats:
        found = found if isinstance(found, str) else "none"
        raise UserError(f"{path}: is not {kind} of this version (format: {found}, expected: {formats[0]}); {advice}")
    if found == formats[0] and not is_sealed:
        raise DamagedFile(f"{path}: is damaged: the end of the file with its checksum is missing; copy it again")
    return FileParts(path, content)


def check_parts(parts: FileParts, checks: Mapping[str, Check]) -> None:
    """Raise `UserError` for the first part that exists and does not pass its check."""
    for name in [name for name in checks if name in parts]:
        place = f"{parts.path}: its part '{name}'"
        try:
            with reading_untrusted(place, "JSON" if name in JSON_PARTS else "what Mars writes there"):
                is_right = checks[name](parts[name])
        except UserError as error:
            raise error if str(error).startswith(place) else UserError(f"{place}: {error}") from error
        if not is_right:
            raise UserError(f"{place} has another type or range than what Mars writes there; use an undamaged copy")


# Checks of single parts. They may raise any exception for a value of another type: `check_parts` converts it.


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def is_config(value: Any) -> bool:
    return is_text(value) and config_from_text(value) is not None


def is_precision(value: Any) -> bool:
    return is_text(value) and value in DTYPES


def or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


def dict_of(check: Check) -> Check:
    """A dictionary from text to values that pass `check`."""
    return lambda value: isinstance(value, dict) and all(is_text(key) and check(entry) for key, entry in value.items())


def dict_with(**checks: Check) -> Check:
    """A dictionary that has at least these keys."""
    return lambda value: isinstance(value, dict) and all(key in value and checks[key](value[key]) for key in checks)


_is_limits = dict_with(start_epoch=is_count, max_epoch=is_count, minutes=or_none(is_number), min_epochs=is_count)
_is_row = dict_with(epoch=is_count, is_best=lambda value: type(value) is bool)

# Every weights file has these parts: they describe the weights.
METADATA: dict[str, Check] = {
    "epoch": is_count,
    "fitness": or_none(is_number),
    "config": is_config,
    "class_list": list_of(is_text),
    "phase": is_text,
    "weights_origin": lambda value: isinstance(value, dict) and checked_origin(value) is not None,
    "data": dict_of(is_text),
    "commit": is_text,
}
# The other parts of a checkpoint. `optimizer`, `scaler` and `schedule` are checked by what restores them.
STATE: dict[str, Check] = {
    "model": dict_of(is_tensor),
    "ema": or_none(dict_of(is_tensor)),
    "ema_steps": is_count,
    "teacher": or_none(is_text),  # checksum of the teacher's file
    "learned": list_of(dict_of(is_tensor)),  # states of the modules that are trained beside the network
    "precision": is_precision,
    "plan": dict_with(
        limits=_is_limits,
        end=is_count,
        position=is_number,
        used=is_number,
        in_epoch=is_number,
        measured=list_of(is_number),
        num_measured=is_count,
    ),  # of the number of epochs
    "best": or_none(is_number),
    "history": lambda value: is_text(value) and list_of(_is_row)(json.loads(value)),
    "spikes": dict_with(
        logs=dict_of(list_of(is_number)), count=is_count, worst=or_none(lambda value: len(list(value)) == 4)
    ),
    # The position inside an epoch; None between epochs.
    "progress": or_none(
        dict_with(
            batches=is_count,
            images=is_count,
            seconds=is_number,
            sums=dict_of(lambda value: True),
            counts=dict_of(is_count),
        )
    ),
    "gradients": or_none(list_of(or_none(is_tensor))),  # of batches whose optimizer step has not run yet
    "pending": is_count,  # number of these batches
    "random": are_random_states,
}
