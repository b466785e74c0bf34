"""Where the weights of a run began: which file, whose, under which licence; and which code trains them.

It is kept through every fine-tuning.
"""

import pickle
import re
import subprocess
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ops.seal import file_digest

Origin = dict[str, Any]  # path, sha256, licence, from: of the file before it, None where nothing is known

AGPL = "AGPL-3.0 (Ultralytics)"
# Classes of Ultralytics' own code, or its names of the tensors: ours begin with backbone, neck and head.
_ULTRALYTICS = re.compile(rb"ultralytics|(?:^|[^\w.])(?:module\.)?(?:model\.)+\d+\.(?:conv|cv\d|m|bn|dfl)\b")


def random_origin() -> Origin:
    """Of weights that were drawn."""
    return {"path": None, "sha256": None, "licence": None, "from": None}


def file_origin(path: Path | str) -> Origin:
    """Of weights that were read from a file: its checksum, and what it says of its own origin and licence.

    A file that is Ultralytics' by its classes or tensor names is under their licence, and so is every file that was
    trained from it. Nothing in the file is run. Raises `OSError` when it cannot be read.
    """
    path = Path(path).expanduser().absolute()
    before = _origin_inside(path)
    own_licence = AGPL if before is None and _is_ultralytics(path) else None
    licence = before["licence"] if before else own_licence
    return {"path": str(path), "sha256": file_digest(path), "licence": licence, "from": before}


def origin_from_text(text: str) -> Origin:
    """Of what the first format of checkpoints kept: a path, or the word random."""
    return random_origin() if text == "random" else {**random_origin(), "path": text}


def origin_in_words(origin: Origin) -> str:
    """One line for a person: `a.pth, from b.pt, under AGPL-3.0 (Ultralytics)`."""
    steps, step = [], origin
    while step is not None and step["path"] is not None:
        steps.append(step["path"])
        step = step["from"]
    if not steps:
        return "random"
    licence = f", under {origin['licence']}" if origin["licence"] else ""
    return ", from ".join(steps) + licence


def _origin_inside(path: Path) -> Origin | None:
    """What a file of ours says of its origin; None for others."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # it holds more than plain values, so it is none of ours
        return None
    if not isinstance(content, dict):
        return None
    origin = content.get("weights_origin") or _metadata_of(content).get("weights_origin")
    return origin_from_text(origin) if isinstance(origin, str) else origin


def _metadata_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a backbone file says of itself, beside its tensors."""
    return getattr(state, "_metadata", {}).get("", {})


def _is_ultralytics(path: Path) -> bool:
    """Looked up in the bytes of the pickle, which holds every name in plain letters."""
    if not zipfile.is_zipfile(path):
        return _ULTRALYTICS.search(path.read_bytes()) is not None
    with zipfile.ZipFile(path) as archive:
        return any(_ULTRALYTICS.search(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl"))


def origin_for_others(origin: Origin) -> str:
    """One line for a file that leaves this machine: names and checksums instead of paths."""
    steps, step = [], origin
    while step is not None and step["path"] is not None:
        digest = f" (sha256 {step['sha256'][:16]})" if step["sha256"] else ""
        steps.append(f"{Path(step['path']).name}{digest}")
        step = step["from"]
    licence = f", under {origin['licence']}" if origin["licence"] else ""
    return (", from ".join(steps) or "random") + licence


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The commit of this code, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
