"""Read weights from a file, map their names to ours, and say what matched.

Understood: our own checkpoints (`best.pth`, `last.pth`), Ultralytics' `.pt`, plain state dicts, and backbone files
whose keys are `backbone.l0.conv.weight` or `l0.conv.weight`; in half or full precision, with or without an average.
Nothing in a file runs: `torch.load(weights_only=True)` reads what is plain, `model.unpickle` the rest.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from config.errors import UserError
from model.base.head import class_branch_width
from model.base.scales import SCALES
from model.base.yolomodel import YoloModel
from model.keys import our_key
from model.unpickle import StandIn, module_tensors, read_with_stand_ins, refuse_programs
from ops.text import shortened

StateDict = dict[str, Tensor]
_FIRST, _BINS = "backbone.l0.conv.weight", "head.dfl.weight"
_CLASS_BRANCH, _CLASS_ROWS = "head.cls.0.0.conv.weight", "head.cls.0.2.weight"
_FIRST_WIDTH = 64  # channels that the plan of all phases gives the first layer


class WeightsFile(NamedTuple):
    """What a weights file holds: tensors by our names, and what it says of itself (nothing, when it is a plain one)."""

    tensors: StateDict
    class_list: tuple[str, ...] | None = None
    config: dict[str, Any] | None = None  # of the run that wrote it, or the fields of it that are known
    data: dict[str, str] | None = None  # identity of the data it was trained on
    kind: str = "tensors"  # what it is, in a few words

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
        return self._length(_CLASS_BRANCH, 0)

    @property
    def num_classes(self) -> int | None:
        """Classes that its head tells apart, or None without one."""
        return self._length(_CLASS_ROWS, 0)

    def has_official_width(self, num_classes: int) -> bool:
        """Does its class branch fit into a network of `num_classes` that is built with `official_width`?"""
        channels = self._length(_CLASS_BRANCH, 1)
        return channels is not None and self.class_branch_width == class_branch_width(channels, num_classes, True)

    @property
    def reg_max(self) -> int | None:
        """Bins a side of the box distribution, or None without a head."""
        return self._length(_BINS, 1)

    def _length(self, key: str, dimension: int) -> int | None:
        tensor = self.tensors.get(key)
        return tensor.shape[dimension] if tensor is not None and tensor.dim() > dimension else None


@dataclass
class LoadReport:
    """What became of a file's tensors: `skipped` have no place in the model, `missing` keep their random start."""

    source: str
    matched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)  # classes whose final rows were carried over by their name
    class_list: tuple[str, ...] | None = None  # what the file was trained on, when it says so
    kind: str = "tensors"

    def __str__(self) -> str:
        lines = [f"weights from {self.source} ({self.kind})", f"  matched {len(self.matched):>4} tensors"]
        for title, names, what in (
            ("skipped", self.skipped, "tensors without a place, or of another shape"),
            ("missing", self.missing, "tensors, random at first"),
            ("carried", self.carried, "classes over, by their names"),
        ):
            if names:
                shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                lines.append(f"  {title} {len(names):>4} {what}: {shown}")
        return "\n".join(lines)


def load_weights(model: YoloModel, path: str | Path, class_list: Sequence[str] | None = None) -> LoadReport:
    """Copy every tensor of the file whose name and shape fit into `model`, in place.

    `class_list` names the model's classes. When the file was trained on others, only the final rows of classes that
    both know are carried over, by their names: the other rows mean other things, even where the numbers agree.

    A file of a whole model must fill everything but final rows, and the class branch where that is of another width
    (see `keepHeadWidth`); a backbone file must fill the backbone. Anything less is a `UserError` that says what the
    file is and what was wanted, and the model stays as it was: no part is left random in silence.
    """
    path = Path(path)
    file = read_weights(path)
    if complaint := _misfit(model, file):
        raise UserError(f"{path}: {complaint}")
    state, knows_other_classes = file.tensors, False
    if class_list is not None and file.class_list not in (None, tuple(class_list)):
        knows_other_classes = True
        state = {key: value for key, value in state.items() if not _is_final(key)}
    report = _compare(model, state, str(path))
    report.class_list, report.kind = file.class_list, file.kind
    may_miss = _may_miss(model, file, class_list)
    unfilled = [key for key in report.missing if not may_miss.match(key)]
    if unfilled:
        raise UserError(
            f"{path}: {file.kind} that does not fit the {model.phase} network: {len(unfilled)} tensors are missing or "
            f"have another shape, first {unfilled[0]}; take weights of a YOLOv8 detector of this phase"
        )
    with torch.no_grad():
        own = model.state_dict()  # shares memory with the model
        for key in report.matched:
            own[key].copy_(state[key])  # to the model's dtype and device
    if knows_other_classes:
        report.skipped += [key for key in file.tensors if _is_final(key)]
        report.carried = _carry_over(model, file, tuple(class_list or ()))
    return report


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file; of raw and averaged weights the average. Raises `UserError` naming the file."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        content = _read(path)
    except UserError:
        raise
    except (EOFError, RuntimeError, zipfile.BadZipFile, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as weights, it is damaged, cut short or no weights file ({type(error).__name__})"
        ) from error
    file = _understand(content)
    if not file.tensors:
        raise UserError(f"{path}: holds no tensors; wanted is a .pth of Mars, an Ultralytics .pt or a plain state dict")
    return file


def _read(path: Path) -> Any:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        refuse_programs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols is no use to who reads the error
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not is_archive:
            raise UserError(
                f"{path}: refused: reading it could run code that is in it; wanted is a .pth of Mars, an Ultralytics "
                ".pt or a state dict"
            ) from error
    return read_with_stand_ins(path)


def _understand(content: Any) -> WeightsFile:
    """What a file holds, whichever of the understood kinds it is of; no tensors, when it is of none."""
    if isinstance(content, StandIn):
        content = {"model": content}
    if not isinstance(content, Mapping):
        return WeightsFile({})
    network = content.get("ema") if content.get("ema") else content.get("model")
    if isinstance(network, StandIn):
        tensors = {our_key(key): value for key, value in module_tensors(network)}
        return WeightsFile(tensors, _names_of(network), _config_of(content), kind=_kind_of(network))
    tensors = _with_our_keys(_find_tensors(content))
    if "class_list" in content and "config" in content:
        config = json.loads(content["config"])
        kind = f"Mars {config.get('phase', '')} network".replace("  ", " ")
        return WeightsFile(tensors, tuple(content["class_list"]), config, content.get("data"), kind)
    file = WeightsFile(tensors)
    return file._replace(kind="a backbone" if tensors and file.is_backbone else "a state dict")


def _names_of(network: StandIn) -> tuple[str, ...] | None:
    names = network.attribute("names")
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[index] for index in range(len(names))]
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


def _misfit(model: YoloModel, file: WeightsFile) -> str | None:
    """What the file is instead of weights for this network, as far as that can be told; None when nothing is wrong."""
    if "backbone.l0.conv.bias" in file.tensors:
        return "a network that was fused for inference (its batch norms are gone); take the weights before fusing"
    if not any(key in file.tensors for key in model.state_dict()):
        first = shortened(list(file.tensors))
        return f"{file.kind}, no YOLOv8 detector: none of its tensors has a place ({first})"
    if file.phase is not None and file.phase != model.phase:
        return (
            f"holds the {file.phase} network, and phase is {model.phase}; take weights of this phase, or set "
            f"phase={file.phase}"
        )
    if file.reg_max is not None and file.reg_max != model.reg_max:
        return f"has {file.reg_max} bins a side, and regMax is {model.reg_max}; set regMax={file.reg_max}"
    if foreign := [key for key in file.tensors if re.match(r"(model\.)+\d+\.", key)]:
        return f"{file.kind}, no YOLOv8 detector: it has layers that this has not ({shortened(foreign)})"
    return None


def _may_miss(model: YoloModel, file: WeightsFile, class_list: Sequence[str] | None) -> re.Pattern[str]:
    """Names that may stay random: what a file of another kind, width or class list cannot know."""
    if file.is_backbone:
        return re.compile(r"(?!backbone\.)")
    has_same_classes = class_list is not None and file.class_list == tuple(class_list)
    has_same_width = file.class_branch_width == model.state_dict()[_CLASS_BRANCH].shape[0]
    if has_same_classes:
        return re.compile(r"(?!)")  # nothing
    return re.compile(_FINAL.pattern if has_same_width else r"head\.cls\.")


_FINAL = re.compile(r"head\.cls\.\d+\.2\.")


def _is_final(key: str) -> bool:
    """The last layer of the class branch, with a row for each class."""
    return _FINAL.match(key) is not None


def _compare(model: YoloModel, state: StateDict, source: str) -> LoadReport:
    """Which tensors have a place in the model; nothing is copied yet."""
    own = model.state_dict()
    fits = {key: key in own and own[key].shape == value.shape for key, value in state.items()}
    return LoadReport(
        source,
        matched=[key for key in fits if fits[key]],
        skipped=[key for key in fits if not fits[key]],
        missing=[key for key in own if not fits.get(key)],
    )


@torch.no_grad()
def _carry_over(model: YoloModel, file: WeightsFile, class_list: tuple[str, ...]) -> list[str]:
    """Copy the final rows of the classes that both lists name; which they are. None where the widths differ."""
    theirs = file.class_list or ()
    names = [name for name in class_list if name in theirs]
    rows, sources = [class_list.index(name) for name in names], [theirs.index(name) for name in names]
    for key, own in model.state_dict().items():
        if not _is_final(key):
            continue
        value = file.tensors.get(key)
        if value is None or value.shape[1:] != own.shape[1:] or value.shape[0] != len(theirs):
            return []
        own[rows] = value[sources].to(own)
    return names
