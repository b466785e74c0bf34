"""All that a run needs to go on, in one file that is either whole or absent, and that tells whether it was changed.

A checkpoint holds plain values and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it runs.
"""

import io
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from config.errors import UserError
from model.unpickle import read_plain
from ops.files import writing_whole
from ops.seal import is_intact, sealed
from runs.contents import ABOUT, STATE, Contents, check_contents, is_tensor, list_of
from runs.origin import origin_from_text

FORMAT = "mars-checkpoint-2"
FIRST_FORMAT = "mars-checkpoint-1"  # no seal, no scaler, nothing inside an epoch; read, and written no more


class DamagedCheckpoint(UserError):
    """A file that is not what was once written, or was not written whole."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` under `path`, sealed, so that a reader never sees half of it. Raises as `writing_whole` does."""
    write_sealed(path, {"format": FORMAT, **content})


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` into a file that is whole or not there, with a checksum. Raises as `writing_whole` does."""
    archive = io.BytesIO()  # torch would hide a full disk behind an error of its own
    torch.save(content, archive)
    with writing_whole(path) as file:
        file.write(sealed(archive.getvalue()))


def load_checkpoint(path: Path) -> Contents:
    """What `save_checkpoint` wrote, on the CPU; a file of the first format as if it had been written today.

    Raises `DamagedCheckpoint` when any bit was changed or is missing, `UserError` for other files and versions, and for
    parts that are not what Mars writes.
    """
    try:
        is_whole = is_intact(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); make it readable for this user") from error
    if is_whole is False:
        raise DamagedCheckpoint(f"{path}: is damaged (its checksum is not that of its content)")
    try:
        content = read_plain(path)
    except UserError as error:
        if is_whole:
            raise
        reason = str(error).removeprefix(f"{path}: ")
        raise DamagedCheckpoint(f"{path}: is damaged, cut short or no checkpoint ({reason})") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found == FIRST_FORMAT:
        return _checked(path, _from_first_format(Contents(path, content)))
    if found != FORMAT:
        said = found if isinstance(found, str) else "no format"
        raise UserError(
            f"{path}: is not a checkpoint of this version ({said}, wanted is {FORMAT}); "
            "go on with the version that wrote it, or use --name for a new run, or --nobuf"
        )
    if not is_whole:
        raise DamagedCheckpoint(f"{path}: is cut short (its checksum is missing)")
    return _checked(path, content)


def _checked(path: Path, content: dict[str, Any]) -> Contents:
    contents = Contents(path, content)
    check_contents(contents, {**ABOUT, **STATE, "random": are_random_states})
    return contents


def first_not_finite(content: Any, name: str = "") -> str | None:
    """Where in dictionaries and lists a tensor holds NaN or Inf: its keys joined by points; None where none does."""
    if isinstance(content, torch.Tensor):
        return None if not content.is_floating_point() or content.isfinite().all() else name
    if not isinstance(content, (dict, list, tuple)):
        return None
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    names = (first_not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in entries)
    return next((found for found in names if found), None)


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights that a checkpoint evaluates, the average where there is one, and what it says of itself."""
    model = checkpoint["model"] if checkpoint["ema"] is None else checkpoint["ema"]
    return {"model": model, **{key: checkpoint[key] for key in ABOUT}}


def _from_first_format(content: dict[str, Any]) -> dict[str, Any]:
    origin = origin_from_text(content["weights_origin"])
    news = {"scaler": {}, "precision": "float32", "progress": None, "gradients": None, "pending": 0}
    return {**news, **content, "format": FORMAT, "weights_origin": origin}


def seed_random_states(seed: int) -> None:
    """Start every global random generator from `seed`, so that a run depends on nothing that came before it."""
    torch.manual_seed(seed)  # every GPU's, too
    np.random.seed(seed % 2**32)
    random.seed(seed)


class TakenStates(NamedTuple):
    """The state of every global random generator as the libraries give it: copies, taken in a few microseconds."""

    cpu: torch.Tensor
    cuda: list[torch.Tensor]
    numpy: Mapping[str, Any]
    python: tuple[Any, ...]


def take_random_states() -> TakenStates:
    """Copy the states. `random_states` turns them into what a checkpoint can hold, which takes five times as long."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return TakenStates(torch.get_rng_state(), cuda, np.random.get_state(legacy=False), random.getstate())


def random_states(taken: TakenStates | None = None) -> dict[str, Any]:
    """The state of every global random generator, as plain values and tensors; None: as they are now."""
    taken = taken or take_random_states()
    numpy_state = taken.numpy
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": taken.cpu,
        "cuda": taken.cuda,
        "numpy": [keys, numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": json.dumps(taken.python),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` took; GPU states only where as many GPUs are there."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    np.random.set_state(_numpy_state(states))
    random.setstate(_python_state(states))


def are_random_states(states: dict[str, Any]) -> bool:
    """Would `restore_random_states` take these? Tried with generators of its own; raises what those raise."""
    torch.Generator().set_state(states["torch"])
    random.Random().setstate(_python_state(states))
    _, keys, position, *_ = state = _numpy_state(states)
    np.random.RandomState().set_state(state)
    return 0 <= position <= len(keys) and list_of(is_tensor)(states["cuda"])


def _numpy_state(states: dict[str, Any]) -> tuple[Any, ...]:
    keys, *rest = states["numpy"]
    return ("MT19937", keys.numpy().astype(np.uint32), *rest)


def _python_state(states: dict[str, Any]) -> tuple[Any, ...]:
    version, internal, gauss_next = json.loads(states["python"])
    return (version, tuple(internal), gauss_next)
