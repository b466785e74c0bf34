"""The weights file of the teacher that a config names: find it, read it, check that it fits and detects something."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from config.errors import UserError
from config.mconfig import ModelConfig, field_default
from config.parts import PartText
from dl.annotations import Annotation
from eval.evaluator import Evaluator
from model import YoloModel, network
from model.pretrained import load_weights
from model.weightsfile import WeightsFile, read_weights
from ops.files import file_digest
from runs.start import weights_at
from train.teacher import Teacher, TeacherClasses

log = logging.getLogger("mars")

LOWEST_MAP50 = 0.05  # a teacher below this mAP50 on its own classes gets a warning


class TeacherFile(NamedTuple):
    """A teacher's file, a network that fits its weights, and the classes that it shares with the student."""

    file: WeightsFile
    model: YoloModel
    classes: TeacherClasses


def load_teacher(mcfg: ModelConfig, device: torch.device, precision: torch.dtype) -> Teacher:
    """The teacher of a student's config. Phase, head and classes are read from its file.

    Raises `UserError` if the file is missing, is not a complete network, or has classes that the student has not.
    """
    file, model, classes = read_teacher(mcfg)
    report = load_weights(model, file, file.class_list)
    log.info("teacher: %s from %s, trained on %s", model.phase, file.path, ", ".join(classes.names))
    log.debug("%s", report)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Teacher(model, classes, precision, file_digest(file.path))


def read_teacher(mcfg: ModelConfig) -> TeacherFile:
    """Check that the teacher of a config fits the student. Raises `UserError` if it does not."""
    path = teacher_file(mcfg)
    file = read_weights(path)
    if file.phase is None or file.num_classes is None or file.reg_max is None:
        raise UserError(f"{path}: {file.kind} without a complete YOLOv8 network; a teacher also needs its head")
    if file.reg_max != mcfg.regMax:
        raise UserError(f"regMax={mcfg.regMax}: the teacher has {file.reg_max} bins a side; set regMax={file.reg_max}")
    classes = shared_classes(file, mcfg)
    official = file.has_official_width(file.num_classes)
    config = file.config or {}
    head, block = (PartText.of(config.get(field) or field_default(field)) for field in ("head", "block"))
    if head != mcfg.head and mcfg.boxResponseWeight:
        raise UserError(
            f"boxResponseWeight={mcfg.boxResponseWeight}: the teacher has another head ({head}), so its box channels "
            "cannot be compared; set boxResponseWeight=0"
        )
    model = network(file.phase, file.num_classes, file.reg_max, official, head, block)
    return TeacherFile(file, model, classes)


def teacher_file(mcfg: ModelConfig) -> Path:
    """The path of the teacher's weights. Raises `UserError` with the command that trains one."""
    path = weights_at(Path(mcfg.teacherModelFile or ""))
    if not path.is_file():
        recipe = mcfg.cfgname.partition(".")[0]
        raise UserError(
            f"{path}: no such teacher; train it first: python mars.py {recipe}.{mcfg.phase}.teacher on the same data, "
            "or set teacherModelFile"
        )
    return path


def shared_classes(file: WeightsFile, mcfg: ModelConfig) -> TeacherClasses:
    """The student's classes that the teacher was trained on. Raises `UserError` if the two class lists do not fit."""
    ours = tuple(mcfg.classList or ())
    asked = None if mcfg.teacherClassIndexes is None else tuple(ours[index] for index in mcfg.teacherClassIndexes)
    own = file.class_list
    if own is None:  # a file without names: as many classes as the config names are those classes
        own = next((names for names in (asked, ours) if names is not None and len(names) == file.num_classes), None)
    if own is None:
        raise UserError(
            f"{file.path}: has {file.num_classes} classes without names, and the student has {len(ours)}; "
            "set teacherClassIndexes to the student's indexes of them, in the teacher's order"
        )
    names = asked or _trained_on(file, own)
    if unknown_to_student := [name for name in names if name not in ours]:
        raise UserError(
            f"{file.path}: the teacher was trained on {', '.join(unknown_to_student[:5])}, which the student's class "
            f"list ({', '.join(ours)}) does not contain; use another teacher, or set teacherClassIndexes to the "
            "classes that both have"
        )
    if unknown_to_teacher := [name for name in names if name not in own]:
        raise UserError(
            f"{file.path}: the teacher was not trained on {unknown_to_teacher[0]}, which teacherClassIndexes names; it "
            f"was trained on {', '.join(own)}"
        )
    return TeacherClasses(names, tuple(ours.index(name) for name in names), tuple(own.index(name) for name in names))


def _trained_on(file: WeightsFile, own: tuple[str, ...]) -> tuple[str, ...]:
    """The classes whose labels the teacher was trained with. Its head may have more."""
    config = file.config or {}
    is_student = config.get("modelName") == "distillation"  # it learned more classes than those labelled
    selected = None if is_student else config.get("trainSelectedClasses")
    return tuple(name for name in own if name in selected) if selected else own


def split_for_teacher(mcfg: ModelConfig) -> str:
    """The split on which a teacher is evaluated: validation if there is one, else the student's training images."""
    return mcfg.validationSplitName if mcfg.epochValidation else mcfg.trainSplitName


def check_teacher(teacher: Teacher, mcfg: ModelConfig, split: str, annotations: Sequence[Annotation]) -> float | None:
    """Log mAP50 of the teacher on its own classes and return it; None if the split has no object of these classes.

    A teacher that detects almost nothing gets a warning: the student would learn to detect nothing.
    """
    asked = {**mcfg.to_dict(), "apStyle": "coco", "testSelectedClasses": teacher.classes.names, "baseClasses": None}
    evaluator = Evaluator(ModelConfig.from_dict(asked), teacher.precision)
    try:
        result = evaluator.evaluate(teacher.as_student(len(mcfg.classList or ())), split, annotations)
    except FloatingPointError as error:
        raise FloatingPointError(f"teacher: {error}") from error
    if result.map50 is None:
        log.info("teacher: split '%s' has no object of its classes, so it was not evaluated", split)
    elif result.map50 < LOWEST_MAP50:
        log.warning(
            "teacher: mAP50 %.3f on its own classes in '%s': it detects almost nothing, and the student would learn "
            "that; check teacherModelFile and inputShape",
            result.map50, split,
        )  # fmt: skip
    else:
        log.info("teacher: mAP50 %.3f on its %d classes in '%s'", result.map50, len(teacher.classes.names), split)
    return result.map50
