"""Read weights from a file, map their names to ours, and say what matched.

Understood: our own checkpoints (`best.pth`, `last.pth`), plain state dicts, and backbone files whose keys are
`backbone.l0.conv.weight` or `l0.conv.weight`. `torch.load(weights_only=True)` reads them: nothing in a file runs.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from config.errors import UserError

StateDict = dict[str, Tensor]


class WeightsFile(NamedTuple):
    """What a weights file holds: tensors by name, and what it says of itself (nothing, when it is a plain one)."""

    tensors: StateDict
    class_list: tuple[str, ...] | None = None
    config: dict[str, Any] | None = None  # of the run that wrote it
    data: dict[str, str] | None = None  # identity of the data it was trained on


@dataclass
class LoadReport:
    """What became of a file's tensors: `skipped` have no place in the model, `missing` keep their random start."""

    source: str
    matched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    class_list: tuple[str, ...] | None = None  # what the file was trained on, when it says so

    def __str__(self) -> str:
        lines = [f"weights from {self.source}: {len(self.matched)} tensors matched"]
        for title, names in (("skipped (no place or another shape)", self.skipped), ("missing (random)", self.missing)):
            if names:
                shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
                lines.append(f"  {len(names)} {title}: {shown}")
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | Path, class_list: Sequence[str] | None = None) -> LoadReport:
    """Copy every tensor of the file whose name and shape fit into `model`, in place.

    `class_list` names the model's classes: when the file was trained on others, its last class layers are left out even
    where the numbers of classes agree, for their rows mean other things.

    A file of a whole model must fill everything except the class branch, whose shapes depend on the class list; a
    backbone file must fill the backbone. Anything less is a `UserError`: no part is left random in silence.
    """
    path = Path(path)
    file = read_weights(path)
    state = {our_key(key): value for key, value in file.tensors.items()}
    if class_list is not None and file.class_list not in (None, tuple(class_list)):
        state = {key: value for key, value in state.items() if not re.match(r"head\.cls\.\d+\.2\.", key)}
    if state and all(re.match(r"l\d+\.", key) for key in state):
        state = {f"backbone.{key}": value for key, value in state.items()}
    report = _copy(model, state, str(path))
    report.class_list = file.class_list
    wants_backbone_only = bool(state) and all(key.startswith("backbone.") for key in state)
    must_match = [key for key in report.missing if key.startswith("backbone.")] if wants_backbone_only else [
        key for key in report.missing if not key.startswith("head.cls.")
    ]  # fmt: skip
    if must_match:
        wanted = f"the {getattr(model, 'phase', 'given')} network"
        raise UserError(
            f"{path}: its tensors do not fit {wanted}: {len(must_match)} are missing or have another shape, first "
            f"{must_match[0]}; take weights of this phase and regMax, or set the phase of the file"
        )
    return report


def read_weights(path: str | Path) -> WeightsFile:
    """Read a weights file; of raw and averaged weights the average. Raises `UserError` naming the file."""
    path = Path(path).expanduser().absolute()
    if not path.is_file():
        raise UserError(f"{path}: no such weights file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickle protocols is no use to who reads the error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused: reading it could run code that is in it; wanted is a .pth of Mars or a state dict"
        ) from error
    except (EOFError, RuntimeError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: cannot be read as weights, it is damaged, cut short or no weights file ({type(error).__name__})"
        ) from error
    state = _find_tensors(content)
    if not state:
        raise UserError(f"{path}: holds no tensors; wanted is a .pth of Mars or a plain state dict")
    if "class_list" not in content:
        return WeightsFile(state)
    return WeightsFile(state, tuple(content["class_list"]), json.loads(content["config"]), content.get("data"))


def our_key(key: str) -> str:
    """Ultralytics' name of a tensor -> ours: `model.22.cv2.0.2.bias` is `head.box.0.2.bias`. Other names stay."""
    match = re.match(r"(?:model\.)+(\d+)\.(.+)", key)
    if not match:
        return key
    layer, rest = int(match[1]), match[2]
    if layer <= 9:
        return f"backbone.l{layer}.{rest}"
    if layer < 22:
        return f"neck.l{layer}.{rest}"
    for theirs, ours in (("cv2.", "head.box."), ("cv3.", "head.cls."), ("dfl.conv.", "head.dfl.")):
        if rest.startswith(theirs):
            return ours + rest[len(theirs) :]
    return key


def _find_tensors(content: Any) -> StateDict:
    if not isinstance(content, dict):
        return {}
    for name in ("ema", "model", "state_dict"):
        if isinstance(content.get(name), dict):
            return _find_tensors(content[name])
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


@torch.no_grad()
def _copy(model: nn.Module, state: StateDict, source: str) -> LoadReport:
    report = LoadReport(source)
    own = model.state_dict()  # shares memory with the model
    for key, value in state.items():
        if key in own and own[key].shape == value.shape:
            own[key].copy_(value)  # to the model's dtype and device
            report.matched.append(key)
        else:
            report.skipped.append(key)
    matched = set(report.matched)
    report.missing = [key for key in own if key not in matched]
    return report
