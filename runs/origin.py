"""Where the weights of a run began: which file, whose, under which licence; and which code trains them.

It is kept through every fine-tuning.
"""

import re
import subprocess
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from config.load import absolute
from model.archive import open_archive
from model.picklescan import Refused
from model.unpickle import StandIn, read_with_stand_ins, reading_untrusted
from ops.seal import file_digest

Origin = dict[str, Any]  # path, sha256, licence, from: of the file before it, None where nothing is known

MOST_STEPS = 200  # files on the way back: each fine-tuning adds one, and Python cannot pickle much deeper nesting
AGPL = "AGPL-3.0 (Ultralytics)"
# Classes of Ultralytics' own code, or its names of the tensors: ours begin with backbone, neck and head.
_ULTRALYTICS = re.compile(rb"ultralytics|(?:^|[^\w.])(?:module\.)?(?:model\.)+\d+\.(?:conv|cv\d|m|bn|dfl)\b")


def random_origin() -> Origin:
    """Of weights that were drawn."""
    return {"path": None, "sha256": None, "licence": None, "from": None}


def file_origin(path: Path | str) -> Origin:
    """Of weights that were read from a file: its checksum, and what it says of its own origin and licence.

    A file that is Ultralytics' by its classes or tensor names is under their licence, and so is every file that was
    trained from it. Nothing in the file is run. Raises `UserError` when it cannot be read.
    """
    path = Path(absolute(path))
    before = _origin_inside(path)
    own_licence = AGPL if before is None and _is_ultralytics(path) else None
    licence = before["licence"] if before else own_licence
    return {"path": str(path), "sha256": file_digest(path), "licence": licence, "from": before}


def origin_from_text(text: str) -> Origin:
    """Of what the first format of checkpoints kept: a path, or the word random."""
    return random_origin() if text == "random" else {**random_origin(), "path": text}


def checked_origin(value: Any) -> Origin:
    """An origin that was read from a file, when it is one. Raises `Refused`, or `KeyError` where a part is missing."""
    steps: list[Origin] = []
    while value is not None:
        if len(steps) > MOST_STEPS:  # as one that contains itself
            raise Refused(f"was fine-tuned more than {MOST_STEPS} times, or its weights_origin contains itself")
        if not isinstance(value, dict):
            raise Refused("has a weights_origin that is no dictionary")
        step = {name: value[name] for name in ("path", "sha256", "licence")}
        if not all(text is None or isinstance(text, str) for text in step.values()):
            raise Refused("has a weights_origin with other things than texts")
        steps.append(step)
        value = value["from"]
    origin = None
    for step in reversed(steps):
        origin = {**step, "from": origin}
    return origin or random_origin()


def origin_text(origin: Origin) -> str:
    """One line for a person: `a.pth, from b.pt, under AGPL-3.0 (Ultralytics)`."""
    return _in_words(origin, lambda step: step["path"])


def origin_text_without_paths(origin: Origin) -> str:
    """One line for a file that leaves this machine: names and checksums instead of paths."""
    return _in_words(origin, _name_and_checksum)


def _in_words(origin: Origin, describe: Callable[[Origin], str]) -> str:
    licence = f", under {origin['licence']}" if origin["licence"] else ""
    return (", from ".join(map(describe, _files_of(origin))) or "random") + licence


def _files_of(origin: Origin) -> Iterator[Origin]:
    """Every file on the way back, the latest first; none where the weights were drawn."""
    step: Origin | None = origin
    while step is not None and step["path"] is not None:
        yield step
        step = step["from"]


def _name_and_checksum(step: Origin) -> str:
    digest = f" (sha256 {step['sha256'][:16]})" if step["sha256"] else ""
    return f"{Path(step['path']).name}{digest}"


def _origin_inside(path: Path) -> Origin | None:
    """What a file of ours says of its origin; None for others."""
    content = read_with_stand_ins(path)
    if not isinstance(content, dict) or any(isinstance(value, StandIn) for value in content.values()):
        return None
    with reading_untrusted(path):
        origin = content.get("weights_origin") or _metadata_of(content).get("weights_origin")
        if origin is None:
            return None
        return origin_from_text(origin) if isinstance(origin, str) else checked_origin(origin)


def _metadata_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a backbone file says of itself, beside its tensors."""
    return getattr(state, "_metadata", {}).get("", {})


def _is_ultralytics(path: Path) -> bool:
    """Searched for in the bytes of the pickle, which holds every name in plain letters."""
    with reading_untrusted(path), open_archive(path) as archive:
        return _ULTRALYTICS.search(archive.pickled()) is not None


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The commit of this code, or "unknown" outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
