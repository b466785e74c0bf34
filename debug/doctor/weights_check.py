"""Checks of what a training starts from: the folder of the run, the starting weights and the teacher."""

from collections.abc import Iterator

import torch

from config.errors import UserError
from config.mconfig import ModelConfig
from debug.doctor.data_check import select_images
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.check import CheckedData
from dl.label_selection import splits_to_train
from model import YoloModel
from model.pretrained import LoadReport
from model.weightsfile import read_weights
from ops.batch import Batch, network_input
from ops.text import counted, shown
from runs.folder import RunFolder
from runs.provenance import identity_of
from train.objective import DetectionObjective, DistillationObjective
from train.setup import TrainingSetup
from train.teacher_file import LOWEST_MAP50, check_teacher, split_for_teacher

_EVALUATED = 48  # images of the teacher, so that it takes seconds
_NEARLY_ALL = 0.9  # of the network's numbers; below it, loaded weights deserve a look


def examine_folder(mcfg: ModelConfig, data: CheckedData) -> Iterator[Finding]:
    """Would `train` start here, continue, or refuse? Nothing is locked, so it may run beside a training."""
    folder = RunFolder.of(mcfg)
    try:
        checkpoint, changes = folder.checkpoint_to_resume(mcfg, identity_of(data, splits_to_train(mcfg)))
    except UserError as error:
        yield Finding(WRONG, "folder", str(error))
        return
    if checkpoint is None:
        yield Finding(OK, "folder", f"a new run starts in {folder.path}")
        return
    done = f"{folder.path} holds a run of {counted(checkpoint['epoch'], 'epoch')}"
    changed = f", with {changes}" if changes else ""
    yield Finding(OK, "folder", f"{done}; train continues it{changed}. All other checks are about a new start")


def examine_weights(setup: TrainingSetup) -> Iterator[Finding]:
    """The weights that the network starts from."""
    if setup.start is None:
        yield Finding(OK, "weights", f"random, from seed={setup.mcfg.seed}; all parts are trained from scratch")
    elif "weights" in setup.errors:
        try:
            tensors = read_weights(setup.start.path).tensors
        except UserError:
            matching = ""
        else:
            own = setup.model.state_dict()
            count = sum(name in tensors and tensors[name].shape == value.shape for name, value in own.items())
            matching = f" ({count} of the network's {len(own)} tensors match; the file has {len(tensors)})"
        yield Finding(WRONG, "weights", f"{setup.errors['weights']}{matching}; train would stop here")
    elif setup.load_report is not None:
        yield describe_loaded(setup.model, setup.load_report, setup.start.backbone_only)


def describe_loaded(model: YoloModel, report: LoadReport, is_backbone_only: bool) -> Finding:
    """How much of the network was loaded, and what stays random."""
    sizes = {
        name: value.numel()
        for name, value in model.state_dict().items()
        if not is_backbone_only or name.startswith("backbone.")
    }
    matched = [name for name in report.matched if name in sizes]
    share = sum(sizes[name] for name in matched) / max(sum(sizes.values()), 1)
    of_backbone = " of the backbone" if is_backbone_only else ""
    text = f"{len(matched)} of {len(sizes)} tensors{of_backbone} matched ({100 * share:.0f} % of the numbers), "
    text += f"from {report.source} ({report.kind})"
    # The modules that hold the tensors, each once.
    missing = dict.fromkeys(name.rpartition(".")[0] for name in report.missing if name in sizes)
    if missing:
        text += f"; random: {shown(list(missing))}"
    if report.carried:
        text += f"; output rows taken over by class name: {shown(report.carried)}"
    if share < _NEARLY_ALL:
        return Finding(LOOK, "weights", f"{text}; check that this is the right file")
    return Finding(OK, "weights", text)


def is_backbone_random(setup: TrainingSetup) -> bool:
    """Does any tensor of the backbone start from random values?"""
    return setup.load_report is None or any(name.startswith("backbone.") for name in setup.load_report.missing)


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
