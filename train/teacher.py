"""The teacher: a trained network that looks at the student's images and says what it sees.

It is no module of anything, so that no state dict, average, optimizer or count of parameters takes it in.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from config.errors import UserError
from config.mconfig import ModelConfig
from dl.annotations import Annotation
from eval.evaluator import Evaluator
from model import YoloModel
from model.fuse import fused
from model.pretrained import load_weights
from model.weightsfile import WeightsFile, read_weights
from ops.precision import autocast
from ops.seal import file_digest
from runs.start import weights_at
from train.distilloss import ModelOutputs

log = logging.getLogger("mars")

HARDLY_ANYTHING = 0.05  # mAP50 on its own classes below which a teacher has nothing to teach
_NEVER = -20.0  # the logit of a class that the teacher does not know


class TeacherClasses(NamedTuple):
    """The classes that a teacher knows, in one order: the student's indexes of them, and the teacher's own."""

    names: tuple[str, ...]
    student: tuple[int, ...]
    teacher: tuple[int, ...]


class Teacher:
    """A frozen, fused network: eval mode always, no gradients, the same answer for the same images."""

    def __init__(
        self,
        model: YoloModel,
        known: TeacherClasses,
        precision: torch.dtype = torch.float32,
        checksum: str | None = None,
    ):
        """`model` is copied. The network computes in `precision`, as the student does. `checksum`: of its file."""
        self.known, self.precision, self.checksum = known, precision, checksum
        self.phase, self.num_classes, self.reg_max = model.phase, model.num_classes, model.reg_max
        self._network = fused(model).requires_grad_(False)
        self.device = next(self._network.parameters()).device

    @classmethod
    def from_config(cls, mcfg: ModelConfig, device: torch.device, precision: torch.dtype) -> "Teacher":
        """The teacher of a student's config; phase, head and classes are what its file holds.

        Raises `UserError` when there is no such file, when it is no whole network, and when its classes are not among
        the student's.
        """
        path, model, class_list, known = read_teacher(mcfg)
        report = load_weights(model, path, class_list)
        log.info("teacher: %s of %s, knows %s", model.phase, path, ", ".join(known.names))
        log.debug("%s", report)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(model, known, precision, file_digest(path))

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> ModelOutputs:
        """Raw maps and features of a batch; the classes are the teacher's own."""
        if self._network.training:
            raise RuntimeError("the teacher is in train mode: its statistics would follow the student's batches")
        with autocast(self.device, self.precision):
            return ModelOutputs(*self._network.forward_features(images))

    def feature_widths(self, names: Sequence[str], student: YoloModel) -> dict[str, tuple[int, int]]:
        """Channels of the named maps in student and teacher."""
        ours, theirs = (_widths(network) for network in (student, self._network))
        return {name: (ours[name], theirs[name]) for name in names}

    def as_student(self, num_classes: int) -> "TeacherView":
        """The teacher as a network with the student's classes, to be evaluated like one."""
        return TeacherView(self._network, self.known, num_classes)


class TeacherView(nn.Module):
    """Raw maps with the student's class channels; classes that the teacher does not know are never seen."""

    def __init__(self, network: YoloModel, known: TeacherClasses, num_classes: int):
        super().__init__()
        self.network, self.known, self.num_classes = network, known, num_classes
        self.reg_max, self.strides = network.reg_max, network.strides

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        return [self._relabelled(raw) for raw in self.network(images)]

    def _relabelled(self, raw: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B _ h w"]:
        boxes, logits = raw.split((4 * self.reg_max, raw.shape[1] - 4 * self.reg_max), dim=1)
        ours = logits.new_full((raw.shape[0], self.num_classes, *raw.shape[2:]), _NEVER)
        ours[:, list(self.known.student)] = logits[:, list(self.known.teacher)]
        return torch.cat((boxes, ours), dim=1)


class Found(NamedTuple):
    """A teacher's file: where, a network that its weights fit, the classes it names, and what it knows of ours."""

    path: Path
    model: YoloModel
    class_list: tuple[str, ...] | None
    known: TeacherClasses


def read_teacher(mcfg: ModelConfig) -> Found:
    """Look whether the teacher of a config fits the student. Raises `UserError` when it does not."""
    path = teacher_file(mcfg)
    file = read_weights(path)
    if file.phase is None or file.num_classes is None or file.reg_max is None:
        raise UserError(f"{path}: {file.kind} that is no whole YOLOv8; a teacher needs its head, too")
    if file.reg_max != mcfg.regMax:
        raise UserError(f"regMax={mcfg.regMax}: the teacher has {file.reg_max} bins a side; set regMax={file.reg_max}")
    known = known_classes(path, file, mcfg)
    official = file.has_official_width(file.num_classes)
    return Found(path, YoloModel(file.phase, file.num_classes, file.reg_max, official), file.class_list, known)


def teacher_file(mcfg: ModelConfig) -> Path:
    """The weights of the teacher that a config names. Raises `UserError` with the command that makes them."""
    place = Path(mcfg.teacherModelFile or "")
    path = weights_at(place)
    if not path.is_file():
        recipe = mcfg.cfgname.partition(".")[0]
        raise UserError(
            f"{path}: no such teacher; train it first: python mars.py {recipe}.{mcfg.phase}.teacher on the same data, "
            "or set teacherModelFile"
        )
    return path


def known_classes(path: Path, file: WeightsFile, mcfg: ModelConfig) -> TeacherClasses:
    """What the teacher in `path` knows of the student's classes. Raises `UserError` when the two do not fit."""
    ours = tuple(mcfg.classList or ())
    asked = None if mcfg.teacherClassIndexes is None else tuple(ours[index] for index in mcfg.teacherClassIndexes)
    own = file.class_list or _guessed(path, file, ours, asked)
    names = asked or _trained_on(file, own)
    if strangers := [name for name in names if name not in ours]:
        raise UserError(
            f"{path}: the teacher knows {', '.join(strangers[:5])}, which are not among the student's classes "
            f"({', '.join(ours)}); teach with a teacher of these, or set teacherClassIndexes to those that they share"
        )
    if unknown := [name for name in names if name not in own]:
        raise UserError(
            f"{path}: the teacher does not know {unknown[0]}, which teacherClassIndexes names; it knows "
            f"{', '.join(own)}"
        )
    return TeacherClasses(names, tuple(ours.index(name) for name in names), tuple(own.index(name) for name in names))


def _trained_on(file: WeightsFile, own: tuple[str, ...]) -> tuple[str, ...]:
    """The classes whose labels the teacher saw: its head may have room for more."""
    config = file.config or {}
    is_student = config.get("modelName") == "distillation"  # which was taught the classes that it saw no labels of
    selected = None if is_student else config.get("trainSelectedClasses")
    return tuple(name for name in own if name in selected) if selected else own


def _guessed(path: Path, file: WeightsFile, ours: tuple[str, ...], asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The class list of a file that does not say its own."""
    for names in (asked, ours):
        if names is not None and len(names) == file.num_classes:
            return names
    raise UserError(
        f"{path}: does not say its {file.num_classes} classes, and the student has {len(ours)}; "
        "set teacherClassIndexes to the student's indexes of them, in the teacher's order"
    )


def split_to_try(mcfg: ModelConfig) -> str:
    """Where a teacher is tried: the validation split where there is one, else the images that it will teach with."""
    return mcfg.validationSplitName if mcfg.epochValidation else mcfg.trainSplitName


def check_teacher(teacher: Teacher, mcfg: ModelConfig, split: str, annotations: Sequence[Annotation]) -> float | None:
    """mAP50 of the teacher on its own classes, which is logged; None when the split has none of them.

    A teacher that sees hardly anything gets a warning: it would teach the student not to see.
    """
    asked = {**mcfg.to_dict(), "apStyle": "coco", "testSelectedClasses": teacher.known.names, "baseClasses": None}
    evaluator = Evaluator(ModelConfig.from_dict(asked), teacher.precision)
    try:
        result = evaluator.evaluate(teacher.as_student(len(mcfg.classList or ())), split, annotations)
    except FloatingPointError as error:
        raise FloatingPointError(f"teacher: {error}") from error
    if result.map50 is None:
        log.info("teacher: the split '%s' has no object of its classes, so it was not tried", split)
    elif result.map50 < HARDLY_ANYTHING:
        log.warning(
            "teacher: mAP50 %.3f on its own classes in '%s': it sees hardly anything, and would teach just that; "
            "check teacherModelFile and inputShape",
            result.map50, split,
        )  # fmt: skip
    else:
        log.info("teacher: mAP50 %.3f on its %d classes in '%s'", result.map50, len(teacher.known.names), split)
    return result.map50


def _widths(network: YoloModel) -> dict[str, int]:
    """Channels of every named map, by looking at one small image on no device."""
    with torch.device("meta"):
        twin = YoloModel(network.phase, 1)
        _, features = twin.forward_features(torch.zeros(1, 3, 64, 64))
    return {name: value.shape[1] for name, value in features.items()}
