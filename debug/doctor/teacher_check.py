"""Do teacher and student fit, and has the teacher anything to teach?"""

from collections.abc import Iterator

import torch

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.batch import Batch, network_input
from ops.text import counted, shown
from train.distilloss import ModelOutputs
from train.objective import DetectionObjective, DistillationObjective
from train.setup import TrainingSetup, some_images
from train.teacher import HARDLY_ANYTHING, check_teacher, split_to_try

_TRIED_ON = 48  # images, so that a teacher is tried in seconds


def examine_teacher(patient: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Nothing where there is no teacher. One that cannot be used stands aside, so that the other checks can go on."""
    if patient.teacher_refusal is not None:
        yield Finding(WRONG, "teacher", f"{patient.teacher_refusal}; train would stop here")
        return
    if not isinstance(patient.objective, DistillationObjective):
        return
    teacher = patient.objective.teacher
    if complaint := _unrest(patient.objective, batch.to(patient.device)):
        yield Finding(WRONG, "teacher", f"{complaint}; it must be in eval mode, and nobody may call train() on it")
        patient.objective = DetectionObjective(patient.detection_loss)
        return
    known, classes = teacher.known.names, tuple(patient.mcfg.classList or ())
    novel = [name for name in classes if name not in known]
    widths = patient.objective.loss.projectors
    text = f"{teacher.phase}, knows {len(known)} of {counted(len(classes), 'class', 'classes')}"
    text += f", not {shown(novel)}" if novel else ""
    text += f"; {shown(list(widths))} through learned projections, for the widths differ" if len(widths) else ""
    split = split_to_try(patient.mcfg)
    figure = check_teacher(teacher, patient.mcfg, split, patient.data.splits[split][:_TRIED_ON])
    if figure is None:
        yield Finding(LOOK, "teacher", f"{text}; '{split}' begins with no object of its classes, so it was not tried")
    elif figure >= HARDLY_ANYTHING:
        yield Finding(OK, "teacher", f"{text}; mAP50 {figure:.3f} on its classes in '{split}'")


def _unrest(objective: DistillationObjective, batch: Batch) -> str | None:
    """How a teacher shows that it is in train mode or learns: it says another thing once it has seen other images."""
    images = network_input(some_images(batch, min(2, len(batch))).images)
    try:
        first: ModelOutputs = objective.teacher(images)
        objective.teacher(1 - images)
        second: ModelOutputs = objective.teacher(images)
    except RuntimeError as error:
        return str(error)
    pairs = zip(first.raw_maps, second.raw_maps, strict=True)
    if any(raw.requires_grad for raw in first.raw_maps):
        return "a gradient would reach it"
    return None if all(torch.equal(*pair) for pair in pairs) else "it does not say the same of the same images twice"
