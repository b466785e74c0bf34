"""Checks of the teacher: does it fit the student, stay unchanged, and detect its classes?"""

from collections.abc import Iterator

import torch

from debug.doctor.data_check import select_images
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.batch import Batch, network_input
from ops.text import counted, shown
from train.objective import DetectionObjective, DistillationObjective
from train.setup import TrainingSetup
from train.teacher_file import LOWEST_MAP50, check_teacher, split_for_teacher

_EVALUATED = 48  # images, so that it takes seconds


def examine_teacher(setup: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """No finding without a teacher. One that cannot be used is left out, so that the other checks can run."""
    if "teacher" in setup.errors:
        yield Finding(WRONG, "teacher", f"{setup.errors['teacher']}; train would stop here")
        return
    objective = setup.objective
    if not isinstance(objective, DistillationObjective):
        return
    if changed := _why_it_changes(objective, batch.to(setup.device)):
        yield Finding(WRONG, "teacher", f"{changed}; it must stay in eval mode: do not call train() on it")
        setup.objective = DetectionObjective(setup.detection_loss)
        return
    teacher = objective.teacher
    known, classes = teacher.classes.names, tuple(setup.mcfg.classList or ())
    novel = [name for name in classes if name not in known]
    projected = list(objective.loss.projectors)
    text = f"{teacher.phase}, knows {len(known)} of {counted(len(classes), 'class', 'classes')}"
    text += f", not {shown(novel)}" if novel else ""
    text += f"; {shown(projected)} go through trained projections because their widths differ" if projected else ""
    split = split_for_teacher(setup.mcfg)
    map50 = check_teacher(teacher, setup.mcfg, split, setup.data.splits[split][:_EVALUATED])
    if map50 is None:
        text += f"; not evaluated: the first images of '{split}' have no object of its classes"
        yield Finding(LOOK, "teacher", text)
    elif map50 >= LOWEST_MAP50:
        yield Finding(OK, "teacher", f"{text}; mAP50 {map50:.3f} on its classes in '{split}'")


def _why_it_changes(objective: DistillationObjective, batch: Batch) -> str | None:
    """In train mode, its output for an image depends on the images before. None when nothing is wrong."""
    images = network_input(select_images(batch, min(2, len(batch))).images)
    try:
        first = objective.teacher(images)
        objective.teacher(1 - images)
        second = objective.teacher(images)
    except RuntimeError as error:
        return str(error)
    if any(raw.requires_grad for raw in first.raw_maps):
        return "a gradient would reach the teacher"
    is_equal = all(torch.equal(a, b) for a, b in zip(first.raw_maps, second.raw_maps, strict=True))
    return None if is_equal else "the teacher gives different outputs for the same images"
