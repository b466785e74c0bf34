"""What a weights file holds, whichever kind it is of: tensors by our names, and what it says of itself.

Understood: our own checkpoints (`best.pth`, `last.pth`), Ultralytics' `.pt`, plain state dicts, and backbone files
whose keys are `backbone.l0.conv.weight` or `l0.conv.weight`; in half or full precision, with or without an average.
Nothing in a file runs: `torch.load(weights_only=True)` reads what is plain, `model.unpickle` the rest.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config.compare import completed
from config.errors import UserError
from model.base.backbone import Backbone
from model.base.head import class_branch_width
from model.base.scales import SCALES
from model.keys import our_key
from model.unpickle import StandIn, module_tensors, read_with_stand_ins, refuse_programs
from ops.seal import is_intact

StateDict = dict[str, Tensor]

CLASS_BRANCH, CLASS_ROWS = "head.cls.0.0.conv.weight", "head.cls.0.2.weight"
_FIRST, _BINS = "backbone.l0.conv.weight", "head.dfl.weight"
_FIRST_WIDTH = 64  # channels that the plan of all phases gives the first layer


class WeightsFile(NamedTuple):
    """What a weights file holds, and what it says of itself (nothing, when it is a plain one)."""

    tensors: StateDict
    class_list: tuple[str, ...] | None = None
    config: dict[str, Any] | None = None  # of the run that wrote it, or the fields of it that are known
    data: dict[str, str] | None = None  # identity of the data it was trained on
    kind: str = "a state dict"  # what it is, in a few words

    @property
    def is_backbone(self) -> bool:
        """Does it hold a backbone and nothing else?"""
        return all(key.startswith("backbone.") for key in self.tensors)

    @property
    def phase(self) -> str | None:
        """The phase whose first layer is as wide as the file's, or None."""
        width = self._length(_FIRST, 0)
        return next((phase for phase, scale in SCALES.items() if scale.channels(_FIRST_WIDTH) == width), None)

    @property
    def class_branch_width(self) -> int | None:
        """Channels of the class branch, or None without one."""
        return self._length(CLASS_BRANCH, 0)

    @property
    def num_classes(self) -> int | None:
        """Classes that its head tells apart, or None without one."""
        return self._length(CLASS_ROWS, 0)

    @property
    def reg_max(self) -> int | None:
        """Bins a side of the box distribution, or None without a head."""
        return self._length(_BINS, 1)

    def has_official_width(self, num_classes: int) -> bool:
        """Does its class branch fit into a network of `num_classes` that is built with `official_width`?"""
        channels = self._length(CLASS_BRANCH, 1)
        return channels is not None and self.class_branch_width == class_branch_width(channels, num_classes, True)

    def backbone(self) -> StateDict | None:
        """The tensors of its backbone; None when it is not the whole backbone of a YOLOv8."""
        if self.phase is None:
            return None
        with torch.device("meta"):
            wanted = Backbone(SCALES[self.phase]).state_dict()
        found = {key: value for key, value in self.tensors.items() if key.startswith("backbone.")}
        fits = {f"backbone.{key}": value.shape for key, value in wanted.items()} == {
            k: v.shape for k, v in found.items()
        }
        return found if fits else None

    def _length(self, key: str, dimension: int) -> int | None:
        tensor = self.tensors.get(key)
        return tensor.shape[dimension] if tensor is not None and tensor.dim() > dimension else None


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file; of raw and averaged weights the average. Raises `UserError` naming the file.

    A checkpoint of ours whose seal is broken is refused, and so are tensors that no network can take: not finite, not
    dense, without content.
    """
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        if is_intact(path) is False:
            raise UserError(f"{path}: is damaged (its checksum is not that of its content)")
        file = _understand(_read(path))
    except UserError:
        raise
    except (
        Exception,
        MemoryError,
    ) as error:  # torch raises many kinds for damaged files; all mean the same to the user
        raise UserError(
            f"{path}: cannot be read as weights, it is damaged, cut short or no weights file ({type(error).__name__})"
        ) from error
    if not file.tensors:
        raise UserError(f"{path}: holds no tensors; wanted is a .pth of Mars, an Ultralytics .pt or a plain state dict")
    for key, value in file.tensors.items():
        if complaint := _unusable(value):
            raise UserError(f"{path}: its tensor {key} {complaint}; take weights that are whole")
    return file


def _unusable(tensor: Tensor) -> str | None:
    """Why no network can take this tensor, or None."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return "is sparse, quantised, complex or without content"
    return None if torch.isfinite(tensor).all() else "holds values that are not finite (NaN or Inf)"


def _read(path: Path) -> Any:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        refuse_programs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols is no use to who reads the error
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not _holds_a_module(content):
            return content
    except pickle.UnpicklingError as error:
        if not is_archive:
            raise UserError(
                f"{path}: refused: reading it could run code that is in it; wanted is a .pth of Mars, an Ultralytics "
                ".pt or a state dict"
            ) from error
    return read_with_stand_ins(path)


def _holds_a_module(content: Any) -> bool:
    """So it does where this process has told torch that some classes of networks are safe: they are stood in for."""
    values = content.values() if isinstance(content, Mapping) else [content]
    return any(isinstance(value, nn.Module) for value in values)


def _understand(content: Any) -> WeightsFile:
    """What a file holds, whichever of the understood kinds it is of; no tensors, when it is of none."""
    if isinstance(content, StandIn):
        content = {"model": content}
    if not isinstance(content, Mapping):
        return WeightsFile({})
    for network in (content.get("ema"), content.get("model")):
        if isinstance(network, StandIn):
            tensors = {our_key(key): value for key, value in module_tensors(network)}
            return WeightsFile(tensors, _names_of(network), _config_of(content), kind=_kind_of(network))
    tensors = _with_our_keys(_find_tensors(content))
    if "class_list" in content and "config" in content:
        config = completed(json.loads(content["config"]))
        kind = " ".join(["a Mars network", *([f"of phase {config['phase']}"] if "phase" in config else [])])
        return WeightsFile(tensors, tuple(content["class_list"]), config, content.get("data"), kind)
    file = WeightsFile(tensors)
    return file._replace(kind="a backbone") if tensors and file.is_backbone else file


def _find_tensors(content: Mapping[str, Any]) -> StateDict:
    for name in ("ema", "model", "state_dict"):
        if isinstance(content.get(name), Mapping):
            return _find_tensors(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _with_our_keys(state: StateDict) -> StateDict:
    state = {our_key(key.removeprefix("module.")): value for key, value in state.items()}
    if state and all(re.match(r"l\d+\.", key) for key in state):
        return {f"backbone.{key}": value for key, value in state.items()}
    return state


def _names_of(network: StandIn) -> tuple[str, ...] | None:
    names = network.attribute("names")
    if isinstance(names, dict):
        names = [names[index] for index in range(len(names))] if set(names) == set(range(len(names))) else None
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None


def _config_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Ultralytics' settings of a training say in our words: the input size."""
    settings = content.get("train_args")
    side = settings.get("imgsz") if isinstance(settings, dict) else None
    return {"inputShape": [side, side]} if isinstance(side, int) and side > 0 and side % 32 == 0 else None


def _kind_of(network: StandIn) -> str:
    """`Ultralytics DetectionModel of yolov8n.yaml`."""
    recipe = network.attribute("yaml")
    name = recipe.get("yaml_file") if isinstance(recipe, dict) else None
    owner, _, class_name = network.place.rpartition(".")
    return f"{'Ultralytics' if owner.startswith('ultralytics') else owner} {class_name}{f' of {name}' if name else ''}"
