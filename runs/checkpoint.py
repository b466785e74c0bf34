"""All that a run needs to go on, in one file that is either whole or absent, and that tells whether it was changed.

A checkpoint holds plain values and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it runs.
"""

import io
from pathlib import Path
from typing import Any

import torch

from config.errors import UserError
from model.unpickle import read_plain
from ops.files import atomic_writer
from ops.random_states import are_random_states
from ops.seal import is_intact, sealed
from runs.contents import ABOUT, STATE, Contents, check_contents
from runs.origin import origin_from_text

FORMAT = "mars-checkpoint-2"
FIRST_FORMAT = "mars-checkpoint-1"  # no seal, no scaler, nothing inside an epoch; read, and written no more


class DamagedCheckpoint(UserError):
    """A file that is not what was once written, or was not written whole."""


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` under `path`, sealed, so that a reader never sees half of it. Raises as `atomic_writer` does."""
    write_sealed(path, {"format": FORMAT, **content})


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """`torch.save` into a file that is whole or not there, with a checksum. Raises as `atomic_writer` does."""
    archive = io.BytesIO()  # torch would hide a full disk behind an error of its own
    torch.save(content, archive)
    with atomic_writer(path) as file:
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


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The weights that a checkpoint evaluates, the average where there is one, and what it says of itself."""
    model = checkpoint["model"] if checkpoint["ema"] is None else checkpoint["ema"]
    return {"model": model, **{key: checkpoint[key] for key in ABOUT}}


def _from_first_format(content: dict[str, Any]) -> dict[str, Any]:
    origin = origin_from_text(content["weights_origin"])
    news = {"scaler": {}, "precision": "float32", "progress": None, "gradients": None, "pending": 0}
    return {**news, **content, "format": FORMAT, "weights_origin": origin}
