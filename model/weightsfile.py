"""Read a weights file of any supported kind: tensors with the names of Mars, and a description of the weights.

Supported: checkpoints of Mars (`best.pth`, `last.pth`), `.pt` files of Ultralytics, plain state dicts, and backbone
files with keys such as `backbone.l0.conv.weight` or `l0.conv.weight`; in half or full precision, with or without EMA.
Code in a file is never run: see `model.unpickle`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from config.checks import printable
from config.compare import config_from_text
from config.errors import UserError
from config.load import absolute
from model.base.backbone import Backbone
from model.base.head import class_branch_width
from model.base.scales import SCALES
from model.picklescan import Refused
from model.unpickle import (
    LONGEST_NAME,
    OtherTensor,
    StandIn,
    entries_of,
    module_tensors,
    read_untrusted,
    reading_untrusted,
)
from ops.text import shortened

StateDict = dict[str, Tensor]

CLASS_BRANCH, CLASS_ROWS = "head.cls.0.0.conv.weight", "head.cls.0.2.weight"
_FIRST, _BINS = "backbone.l0.conv.weight", "head.dfl.weight"
_FIRST_WIDTH = 64  # planned channels of the first layer, see `model.base.scales`

# Ultralytics numbers the 23 layers of YOLOv8. Layer 22 is the head, whose branches it numbers, too; Mars names them.
_HEAD = (("cv2.", "head.box."), ("cv3.", "head.cls."), ("dfl.conv.", "head.dfl."))
_LAST_OF_BACKBONE, _HEAD_LAYER = 9, 22


class WeightsFile(NamedTuple):
    """The tensors of a weights file and their description. A plain state dict has no description."""

    tensors: StateDict
    class_list: tuple[str, ...] | None = None
    config: dict[str, Any] | None = None  # of the run that wrote the file, or some of its fields
    data: dict[str, str] | None = None  # identity of the training data
    kind: str = "a state dict"  # a short description for messages
    path: Path = Path()  # where the file is, for messages

    @property
    def is_backbone(self) -> bool:
        """Does the file contain only a backbone?"""
        return all(key.startswith("backbone.") for key in self.tensors)

    @property
    def phase(self) -> str | None:
        """The phase whose first layer has as many channels as that of the file, or None."""
        width = self._length(_FIRST, 0)
        return next((phase for phase, scale in SCALES.items() if scale.channels(_FIRST_WIDTH) == width), None)

    @property
    def class_branch_width(self) -> int | None:
        """Channels of the class branch, or None without a head."""
        return self._length(CLASS_BRANCH, 0)

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the head, or None without a head."""
        return self._length(CLASS_ROWS, 0)

    @property
    def reg_max(self) -> int | None:
        """Bins per side of the box distribution, or None without a head."""
        return self._length(_BINS, 1)

    def has_official_width(self, num_classes: int) -> bool:
        """Does the class branch fit a network of `num_classes` that is built with `official_width`?"""
        channels = self._length(CLASS_BRANCH, 1)
        return channels is not None and self.class_branch_width == class_branch_width(channels, num_classes, True)

    def backbone(self) -> StateDict | None:
        """The tensors of the backbone; None if they are not the complete backbone of a YOLOv8."""
        if self.phase is None:
            return None
        with torch.device("meta"):
            expected = Backbone(SCALES[self.phase]).state_dict()
        found = {key: value for key, value in self.tensors.items() if key.startswith("backbone.")}
        shapes = {key.removeprefix("backbone."): value.shape for key, value in found.items()}
        return found if shapes == {key: value.shape for key, value in expected.items()} else None

    def _length(self, key: str, dimension: int) -> int | None:
        tensor = self.tensors.get(key)
        return tensor.shape[dimension] if tensor is not None and tensor.dim() > dimension else None


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file. If it contains raw weights and EMA weights, the EMA weights are used.

    Raises `UserError`, with the name of the file, if it is missing, damaged or of another kind, and for tensors that no
    network can use: not finite, not dense or without values.
    """
    path = Path(absolute(path))
    if not path.is_file():
        raise UserError(f"{path}: no such weights file; correct the path")
    content = read_untrusted(path)
    with reading_untrusted(path):
        file = _understand(content)._replace(path=path)
    if not file.tensors:
        raise UserError(
            f"{path}: contains no tensors; expected a .pth of Mars, an Ultralytics .pt or a plain state dict"
        )
    for key, value in file.tensors.items():
        if isinstance(value, OtherTensor):
            kind = value.place.rpartition(".")[2].removeprefix("_rebuild_")
            fault = f"is not dense, or its type is not used in networks ({kind})"
        elif not torch.isfinite(value).all():
            fault = "contains values that are not finite (NaN or Inf)"
        else:
            continue
        raise UserError(f"{path}: its tensor {key} {fault}; use an undamaged copy, or other weights")
    return file


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


def _understand(content: Any) -> WeightsFile:
    """The content of a file of any supported kind. A file of another kind gives no tensors."""
    entries = entries_of({"model": content} if isinstance(content, StandIn) else content)
    for network in (entries.get("ema"), entries.get("model")):
        if isinstance(network, StandIn):
            return _of_ultralytics(network, entries.get("train_args"))
    tensors = {our_key(key.removeprefix("module.")): value for key, value in _find_tensors(entries).items()}
    if tensors and all(re.match(r"l\d+\.", key) for key in tensors):
        tensors = {f"backbone.{key}": value for key, value in tensors.items()}
    tensors = _named(tensors)
    if not {"class_list", "config"} <= entries.keys():
        is_backbone = bool(tensors) and WeightsFile(tensors).is_backbone
        return WeightsFile(tensors, kind="a backbone" if is_backbone else "a state dict")
    # A checkpoint of Mars
    config = config_from_text(entries["config"])
    phase, data, names = config.get("phase"), entries.get("data"), entries["class_list"]
    kind = f"a Mars network of phase {phase}" if isinstance(phase, str) and phase in SCALES else "a Mars network"
    is_text = isinstance(data, dict) and all(
        isinstance(text, str) for pair in entries_of(data).items() for text in pair
    )
    if not isinstance(names, (list, tuple)) or not (data is None or is_text):
        raise Refused("has a class list or a data identity of another type than Mars writes")
    return WeightsFile(tensors, _class_names(cast("Sequence[Any]", names)), config, data, kind)


def _of_ultralytics(network: StandIn, settings: Any) -> WeightsFile:
    """The network of a file of Ultralytics, its class names, and the input size of its training settings."""
    tensors = _named({our_key(key): value for key, value in module_tensors(network)})
    names = network.attribute("names")
    if isinstance(names, dict):
        by_index = entries_of(names)
        indexes = range(len(by_index))
        names = [by_index[index] for index in indexes] if set(by_index) == set(indexes) else None
    side = entries_of(settings).get("imgsz")
    has_side = isinstance(side, int) and side > 0 and side % 32 == 0
    # The kind: `Ultralytics DetectionModel of yolov8n.yaml`.
    recipe_name = entries_of(network.attribute("yaml")).get("yaml_file")
    owner, _, class_name = network.place.rpartition(".")
    kind = f"{'Ultralytics' if owner.startswith('ultralytics') else owner} {class_name}"
    if isinstance(recipe_name, str):
        kind += " of " + shortened(recipe_name).strip('"')
    return WeightsFile(
        tensors,
        _class_names(cast("Sequence[Any]", names)) if isinstance(names, (list, tuple)) else None,
        {"inputShape": [side, side]} if has_side else None,
        kind=kind,
    )


def _find_tensors(content: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("ema", "model", "state_dict"):
        if isinstance(content.get(name), Mapping):
            return _find_tensors(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, (Tensor, OtherTensor))}


def _named(state: dict[str, Any]) -> dict[str, Any]:
    """The same tensors. Raises `Refused` for names that cannot be printed, because messages and tables show them."""
    if unprintable := next((key for key in state if len(key) > LONGEST_NAME or printable(key)), None):
        raise Refused(f"has a tensor named {shortened(unprintable)}")
    return state


def _class_names(names: Sequence[Any]) -> tuple[str, ...]:
    """The class names as texts; numbers are also accepted as names. Raises `Refused` for others."""
    if not all(isinstance(name, (str, int)) for name in names):
        raise Refused("has class names that are not texts")
    texts = tuple(map(str, names))
    if unprintable := next((text for text in texts if printable(text)), None):
        raise Refused(f"has a class name with control characters ({shortened(unprintable)})")
    return texts
