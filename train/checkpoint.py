"""All that a run needs to go on, in one file that is either whole or absent.

A checkpoint holds plain values and tensors only, so that `torch.load(weights_only=True)` reads it: nothing in it runs.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.errors import UserError
from ops.files import writing_whole

FORMAT = "mars-checkpoint-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` under `path` so that a reader never sees half of it."""
    with writing_whole(path) as file:
        torch.save({"format": FORMAT, **content}, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote, on the CPU. Raises `UserError` for a file that it did not write whole."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files; each means the same to the user
        raise UserError(
            f"{path}: is damaged or no checkpoint ({type(error).__name__}); move it away, or start afresh: --nobuf"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: is not a checkpoint of this version ({FORMAT}); use --name for a new run, or --nobuf")
    return content


def seed_random_states(seed: int) -> None:
    """Start every global random generator from `seed`, so that a run depends on nothing that came before it."""
    torch.manual_seed(seed)  # every GPU's, too
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_states() -> dict[str, Any]:
    """The state of every global random generator, as plain values and tensors."""
    numpy_state = np.random.get_state(legacy=False)
    keys = torch.from_numpy(numpy_state["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [keys, numpy_state["state"]["pos"], numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": json.dumps(random.getstate()),
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` took; GPU states only where as many GPUs are there."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss_next = json.loads(states["python"])
    random.setstate((version, tuple(internal), gauss_next))
