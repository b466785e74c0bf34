"""The origin of weights: from which files they were trained, and under which licence; and the commit of this code.

Every fine-tuning adds one step to the origin, so the licence of the first file is never lost.
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
from model.unpickle import StandIn, read_untrusted, reading_untrusted
from ops.seal import file_digest

Origin = dict[str, Any]  # keys path, sha256, licence, and from: the origin of that file; None: unknown

MOST_STEPS = 200  # of an origin: each fine-tuning adds one, and Python cannot pickle much deeper nesting
AGPL = "AGPL-3.0 (Ultralytics)"
# Class names of Ultralytics, or its tensor names. Tensor names of Mars begin with backbone, neck or head.
_ULTRALYTICS = re.compile(rb"ultralytics|(?:^|[^\w.])(?:module\.)?(?:model\.)+\d+\.(?:conv|cv\d|m|bn|dfl)\b")


def random_origin() -> Origin:
    """The origin of randomly initialised weights."""
    return {"path": None, "sha256": None, "licence": None, "from": None}


def file_origin(path: Path | str) -> Origin:
    """The origin of weights that come from a file: its checksum, and the origin and licence that are stored in it.

    If class or tensor names show that the file is from Ultralytics, its licence is AGPL-3.0. Every file that is trained
    from it inherits this licence. No code from the file is run. Raises `UserError` if the file cannot be read.
    """
    path = Path(absolute(path))
    stored = _stored_origin(path)
    own_licence = AGPL if stored is None and _is_ultralytics(path) else None
    licence = stored["licence"] if stored else own_licence
    return {"path": str(path), "sha256": file_digest(path), "licence": licence, "from": stored}


def origin_from_text(text: str) -> Origin:
    """The origin as the first checkpoint format stored it: a path, or the word `random`."""
    return random_origin() if text == "random" else {**random_origin(), "path": text}


def checked_origin(value: Any) -> Origin:
    """An origin that was read from a file, after a check. Raises `Refused`, or `KeyError` if a key is missing."""
    steps: list[Origin] = []
    while value is not None:
        if len(steps) > MOST_STEPS:  # for example an origin that contains itself
            raise Refused(f"was fine-tuned more than {MOST_STEPS} times, or its weights_origin contains itself")
        if not isinstance(value, dict):
            raise Refused("has a weights_origin that is not a dictionary")
        step = {name: value[name] for name in ("path", "sha256", "licence")}
        if not all(text is None or isinstance(text, str) for text in step.values()):
            raise Refused("has a weights_origin whose values are not texts")
        steps.append(step)
        value = value["from"]
    origin = None
    for step in reversed(steps):
        origin = {**step, "from": origin}
    return origin or random_origin()


def origin_text(origin: Origin) -> str:
    """One line for the log: `a.pth, from b.pt, under AGPL-3.0 (Ultralytics)`."""
    return _chain_text(origin, lambda step: step["path"])


def origin_text_without_paths(origin: Origin) -> str:
    """One line for exported files: file names and checksums instead of the paths of this machine."""
    return _chain_text(origin, _name_and_checksum)


def _chain_text(origin: Origin, describe: Callable[[Origin], str]) -> str:
    licence = f", under {origin['licence']}" if origin["licence"] else ""
    return (", from ".join(map(describe, _files_of(origin))) or "random") + licence


def _files_of(origin: Origin) -> Iterator[Origin]:
    """All files of an origin, the latest first; none for randomly initialised weights."""
    step: Origin | None = origin
    while step is not None and step["path"] is not None:
        yield step
        step = step["from"]


def _name_and_checksum(step: Origin) -> str:
    digest = f" (sha256 {step['sha256'][:16]})" if step["sha256"] else ""
    return f"{Path(step['path']).name}{digest}"


def _stored_origin(path: Path) -> Origin | None:
    """The origin that is stored in a file of Mars; None for other files."""
    content = read_untrusted(path)
    if not isinstance(content, dict) or any(isinstance(value, StandIn) for value in content.values()):
        return None
    with reading_untrusted(path):
        # A backbone file is a plain state dict: its origin is in the metadata that torch keeps with a state dict.
        metadata = getattr(content, "_metadata", {}).get("", {})
        origin = content.get("weights_origin") or metadata.get("weights_origin")
        if origin is None:
            return None
        return origin_from_text(origin) if isinstance(origin, str) else checked_origin(origin)


def _is_ultralytics(path: Path) -> bool:
    """Search for names of Ultralytics in the bytes of the pickle, where every name is plain text."""
    with reading_untrusted(path), open_archive(path) as archive:
        return _ULTRALYTICS.search(archive.pickled()) is not None


@lru_cache(maxsize=1)
def code_commit() -> str:
    """The git commit of this code, or "unknown" outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
