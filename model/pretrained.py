"""Copy weights from a file into a network, and report which tensors matched. Files: see `model.weightsfile`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from config.errors import UserError
from model.base.yolomodel import YoloModel
from model.weightsfile import CLASS_BRANCH, StateDict, WeightsFile, read_weights
from ops.text import shortened, shown

# The last layers of the class branches, with a row for each class.
_FINAL = tuple(f"head.cls.{branch}.2." for branch in range(3))


@dataclass
class LoadReport:
    """How the tensors of a file were used. `skipped`: not in the model; `missing`: the model keeps random values."""

    source: str
    matched: list[str] = field(default_factory=list[str])
    skipped: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    carried: list[str] = field(default_factory=list[str])  # classes whose final rows were copied by name
    class_list: tuple[str, ...] | None = None  # classes of the file, if it names them
    kind: str = "a state dict"

    def __str__(self) -> str:
        lines = [f"weights from {self.source} ({self.kind})", f"  matched {len(self.matched):>4} tensors"]
        for title, names, what in (
            ("skipped", self.skipped, "tensors that the model does not have, or of another shape"),
            ("missing", self.missing, "tensors of the model that keep random values"),
            ("carried", self.carried, "classes, matched by name"),
        ):
            if names:
                lines.append(f"  {title} {len(names):>4} {what}: {shown(names, 6)}")
        return "\n".join(lines)


@torch.no_grad()
def load_weights(
    model: YoloModel,
    path: str | Path | WeightsFile,
    class_list: Sequence[str] | None = None,
    backbone_only: bool = False,
) -> LoadReport:
    """Copy every tensor of the file whose name and shape match into `model`, in place.

    `path`: the file, or what `read_weights` read from it. `class_list`: the class names of the model. If the file has
    other classes, the final rows are copied only for classes that both have, matched by name, because a row with the
    same number belongs to another class. `backbone_only`: skip all other tensors of the file.

    A whole model must fill everything except final rows and a class branch of another width (see `keepHeadWidth`). A
    backbone must be complete. Otherwise `UserError` is raised and the model does not change, so that no part of it
    keeps random values unnoticed. The message says what the file is and what was expected.
    """
    file = path if isinstance(path, WeightsFile) else read_weights(path)
    if backbone_only:
        file = file._replace(tensors={key: value for key, value in file.tensors.items() if key.startswith("backbone.")})
    own = model.state_dict()  # its tensors share memory with the model
    has_same_classes = class_list is not None and file.class_list == tuple(class_list)
    has_other_classes = class_list is not None and file.class_list is not None and not has_same_classes
    if fault := _misfit(model, file, has_same_classes):
        raise UserError(f"{file.path}: {fault}")

    state = {key: value for key, value in file.tensors.items() if not (has_other_classes and key.startswith(_FINAL))}
    report = _compare(own, state, file)
    # Tensors that a file of this kind, width and class list need not contain.
    if file.is_backbone:
        optional = ("neck.", "head.")
    elif has_same_classes:
        optional = ()
    else:
        has_own_width = file.class_branch_width in (None, own[CLASS_BRANCH].shape[0])
        optional = _FINAL if has_own_width else ("head.cls.",)
    if unfilled := [key for key in report.missing if not key.startswith(optional)]:
        raise UserError(
            f"{file.path}: {file.kind} that does not fit the {model.phase} network: {len(unfilled)} tensors are "
            f"missing or of a different shape or type, first {unfilled[0]}; use weights of a YOLOv8 detector of this "
            "phase"
        )
    for key in report.matched:
        own[key].copy_(state[key])  # converts to the dtype and device of the model
    if has_other_classes:
        report.skipped += [key for key in file.tensors if key.startswith(_FINAL)]
        report.carried = _copy_rows_by_name(model, file, tuple(class_list or ()))
    return report


def _misfit(model: YoloModel, file: WeightsFile, has_same_classes: bool) -> str | None:
    """Why the file cannot be weights for this network, as far as this can be recognised; None if no reason is found."""
    if "backbone.l0.conv.bias" in file.tensors:
        return "a network that was fused for inference (it has no batch norms); use the weights from before fusing"
    if not any(key in file.tensors for key in model.state_dict()):
        first = shortened(list(file.tensors))
        return f"{file.kind}, not a YOLOv8 detector: the network has none of its tensors ({first})"
    if file.phase is not None and file.phase != model.phase:
        return (
            f"contains the {file.phase} network, but phase is {model.phase}; use weights of this phase, or set "
            f"phase={file.phase}"
        )
    if file.reg_max is not None and file.reg_max != model.reg_max:
        return f"has {file.reg_max} bins per side, but regMax is {model.reg_max}; set regMax={file.reg_max}"
    if foreign := [key for key in file.tensors if re.match(r"(model\.)+\d+\.", key)]:
        return f"{file.kind}, not a YOLOv8 detector: it has layers that YOLOv8 does not have ({shortened(foreign)})"
    width, own_width = file.class_branch_width, model.state_dict()[CLASS_BRANCH].shape[0]
    if has_same_classes and width not in (None, own_width):
        return (
            f"has a class branch {width} channels wide for the same classes, but that of the network has {own_width}; "
            "remove the setting keepHeadWidth, then the file decides"
        )
    return None


def _compare(own: StateDict, state: StateDict, file: WeightsFile) -> LoadReport:
    """Compare names, shapes and types of the tensors of model and file. Nothing is copied yet."""
    fitting = {
        key
        for key in own.keys() & state.keys()
        if own[key].shape == state[key].shape and (state[key].is_floating_point() or not own[key].is_floating_point())
    }
    return LoadReport(
        str(file.path),
        matched=[key for key in state if key in fitting],
        skipped=[key for key in state if key not in fitting],
        missing=[key for key in own if key not in fitting],
        class_list=file.class_list,
        kind=file.kind,
    )


def _copy_rows_by_name(model: YoloModel, file: WeightsFile, class_list: tuple[str, ...]) -> list[str]:
    """Copy the final rows of the classes that both lists have; returns these classes. Different widths: no class."""
    file_names = file.class_list or ()
    names = [name for name in class_list if name in file_names]
    rows, sources = [class_list.index(name) for name in names], [file_names.index(name) for name in names]
    for key, own in model.state_dict().items():
        if not key.startswith(_FINAL):
            continue
        value = file.tensors.get(key)
        if value is None or value.shape[1:] != own.shape[1:] or value.shape[0] != len(file_names):
            return []
        own[rows] = value[sources].to(own)
    return names
