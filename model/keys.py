"""Names of tensors: ours, and those of Ultralytics' YOLOv8, which counts its 23 layers."""

import re

# Layer 22 is the head; what it calls by number and kind has a name of its own here.
_HEAD = (("cv2.", "head.box."), ("cv3.", "head.cls."), ("dfl.conv.", "head.dfl."))
_LAST_OF_BACKBONE, _HEAD_LAYER = 9, 22


def our_key(key: str) -> str:
    """Ultralytics' name of a tensor -> ours: `model.22.cv2.0.2.bias` is `head.box.0.2.bias`. Other names stay."""
    match = re.match(r"(?:model\.)+(\d+)\.(.+)", key)
    if not match:
        return key
    layer, rest = int(match[1]), match[2]
    if layer <= _LAST_OF_BACKBONE:
        return f"backbone.l{layer}.{rest}"
    if layer < _HEAD_LAYER:
        return f"neck.l{layer}.{rest}"
    for theirs, ours in _HEAD if layer == _HEAD_LAYER else ():
        if rest.startswith(theirs):
            return ours + rest[len(theirs) :]
    return key


def their_key(key: str) -> str:
    """Our name of a tensor -> Ultralytics'; the inverse of `our_key`. Raises `ValueError` for a name of neither."""
    if match := re.fullmatch(r"(?:backbone|neck)\.l(\d+)\.(.+)", key):
        return f"model.{match[1]}.{match[2]}"
    for theirs, ours in _HEAD:
        if key.startswith(ours):
            return f"model.{_HEAD_LAYER}.{theirs}{key[len(ours) :]}"
    raise ValueError(f"{key}: no tensor of YOLOv8")
