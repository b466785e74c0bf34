"""Tensor names of Mars, and tensor names of Ultralytics, which numbers the 23 layers of YOLOv8."""

import re

# Layer 22 is the head. Ultralytics numbers its branches; Mars names them.
_HEAD = (("cv2.", "head.box."), ("cv3.", "head.cls."), ("dfl.conv.", "head.dfl."))
_LAST_OF_BACKBONE, _HEAD_LAYER = 9, 22


def our_key(key: str) -> str:
    """Name in Ultralytics -> name in Mars: `model.22.cv2.0.2.bias` -> `head.box.0.2.bias`. Others stay unchanged."""
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
    """Name in Mars -> name in Ultralytics, the inverse of `our_key`. Raises `ValueError` for other names."""
    if match := re.fullmatch(r"(?:backbone|neck)\.l(\d+)\.(.+)", key):
        return f"model.{match[1]}.{match[2]}"
    for theirs, ours in _HEAD:
        if key.startswith(ours):
            return f"model.{_HEAD_LAYER}.{theirs}{key[len(ours) :]}"
    raise ValueError(f"{key}: is not a tensor of YOLOv8")
