"""Weights from a file into a network: what matches is copied, and what became of the rest is said.

`model.weightsfile` says which files are understood.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from config.errors import UserError
from model.base.yolomodel import YoloModel
from model.weightsfile import CLASS_BRANCH, StateDict, WeightsFile, read_weights
from ops.text import shortened

_FINAL = re.compile(r"head\.cls\.\d+\.2\.")  # the last layer of the class branch, with a row for each class


@dataclass
class LoadReport:
    """What became of a file's tensors: `skipped` have no place in the model, `missing` keep their random start."""

    source: str
    matched: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)  # classes whose final rows were carried over by their name
    class_list: tuple[str, ...] | None = None  # what the file was trained on, when it says so
    kind: str = "a state dict"

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


def load_weights(
    model: YoloModel, path: str | Path, class_list: Sequence[str] | None = None, backbone_only: bool = False
) -> LoadReport:
    """Copy every tensor of the file whose name and shape fit into `model`, in place.

    `class_list` names the model's classes. When the file was trained on others, only the final rows of classes that
    both know are carried over, by their names: the other rows mean other things, even where the numbers agree.
    `backbone_only`: whatever else the file holds is skipped.

    A file of a whole model must fill everything but final rows, and the class branch where that is of another width
    (see `keepHeadWidth`); a backbone must be filled whole. Anything less is a `UserError` that says what the file is
    and what was wanted, and the model stays as it was: no part is left random in silence.
    """
    return fill(model, read_weights(path), Path(path), class_list, backbone_only)


def fill(
    model: YoloModel,
    file: WeightsFile,
    path: Path,
    class_list: Sequence[str] | None = None,
    backbone_only: bool = False,
) -> LoadReport:
    """`load_weights` of a file that was read before; `path` is where it lies, for the messages."""
    if backbone_only:
        file = file._replace(tensors={key: value for key, value in file.tensors.items() if key.startswith("backbone.")})
    if complaint := _misfit(model, file, class_list):
        raise UserError(f"{path}: {complaint}")
    knows_others = class_list is not None and file.class_list not in (None, tuple(class_list))
    state = {key: value for key, value in file.tensors.items() if not (knows_others and _is_final(key))}
    report = _compare(model, state, str(path))
    report.class_list, report.kind = file.class_list, file.kind
    if unfilled := _unfilled(report.missing, model, file, class_list):
        raise UserError(
            f"{path}: {file.kind} that does not fit the {model.phase} network: {len(unfilled)} tensors are missing or "
            f"of another shape or type, first {unfilled[0]}; take weights of a YOLOv8 detector of this phase"
        )
    _copy(model, {key: state[key] for key in report.matched})
    if knows_others:
        report.skipped += [key for key in file.tensors if _is_final(key)]
        report.carried = _carry_over(model, file, tuple(class_list or ()))
    return report


def _misfit(model: YoloModel, file: WeightsFile, class_list: Sequence[str] | None) -> str | None:
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
    width, wanted = file.class_branch_width, _width(model)
    if _has_same_classes(file, class_list) and width not in (None, wanted):
        return (
            f"has a class branch {width} channels wide for the same classes, and the network's has {wanted}; leave "
            "keepHeadWidth out, and the file decides"
        )
    return None


def _is_final(key: str) -> bool:
    return _FINAL.match(key) is not None


def _width(model: YoloModel) -> int:
    return model.state_dict()[CLASS_BRANCH].shape[0]


def _has_same_classes(file: WeightsFile, class_list: Sequence[str] | None) -> bool:
    return class_list is not None and file.class_list == tuple(class_list)


def _unfilled(missing: list[str], model: YoloModel, file: WeightsFile, class_list: Sequence[str] | None) -> list[str]:
    """Those of the missing tensors that a file of this kind, width and class list should have filled."""
    if file.is_backbone:
        return [key for key in missing if key.startswith("backbone.")]
    if _has_same_classes(file, class_list):
        return missing
    has_other_width = file.class_branch_width not in (None, _width(model))
    return [key for key in missing if not (_is_final(key) or (has_other_width and key.startswith("head.cls.")))]


def _compare(model: YoloModel, state: StateDict, source: str) -> LoadReport:
    """Which tensors have a place in the model; nothing is copied yet."""
    own = model.state_dict()

    def fits(key: str) -> bool:
        return (
            key in state
            and key in own
            and own[key].shape == state[key].shape
            and (state[key].is_floating_point() or not own[key].is_floating_point())
        )

    return LoadReport(
        source,
        matched=[key for key in state if fits(key)],
        skipped=[key for key in state if not fits(key)],
        missing=[key for key in own if not fits(key)],
    )


@torch.no_grad()
def _copy(model: YoloModel, state: StateDict) -> None:
    own = model.state_dict()  # shares memory with the model
    for key, value in state.items():
        own[key].copy_(value)  # to the model's dtype and device


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
