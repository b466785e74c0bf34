"""Checks of several fields together: values that contradict each other. One message each, with a correction."""

from pathlib import Path

from config.errors import UserError
from config.fields import listed, nearest
from config.mconfig import OFFICIAL_WEIGHTS, ModelConfig, field_default
from config.recipes import CODE_DIR

# Fields that Mars reads only with certain values of another field: (that field, these values, the fields).
_CONDITIONAL_FIELDS = (
    (
        "augmentation", ("modern",),
        ("mosaic", "closeMosaic", "scaleRange", "translate", "flip", "hsv", "flipVertical", "rotate", "shear",
         "perspective"),
    ),
    ("modelName", ("distillation",), ("distilParts",)),
    ("schedulerType", ("linear", "cosine"), ("warmupEpochs", "warmupMomentum", "warmupBiasRate")),
    ("onBadStep", ("skip",), ("badStepsInARow",)),
)  # fmt: skip


def refuse_contradictions(mcfg: ModelConfig) -> None:
    """Raise `UserError` for the first contradiction in a config whose names and paths are final."""
    _check_run(mcfg)
    _check_classes(mcfg)
    _check_teacher(mcfg)


def _check_run(mcfg: ModelConfig) -> None:
    """The place of the run, its schedule, unused fields, and the weights to start from."""
    root = Path(mcfg.root).resolve()
    if root.is_relative_to(CODE_DIR):
        raise UserError(
            f"root={mcfg.root}: lies inside the code folder {CODE_DIR}; runs belong outside of it, "
            f"e.g. --root {CODE_DIR.parent / 'mars-running'}"
        )
    if root.exists() and not root.is_dir():
        raise UserError(f"root={mcfg.root}: is a file; give the folder for all runs")
    if mcfg.minLearningRate > mcfg.baseLearningRate:
        raise UserError(
            f"minLearningRate={mcfg.minLearningRate}: above baseLearningRate={mcfg.baseLearningRate}, "
            "where the schedule starts; lower it, e.g. to a hundredth of that"
        )
    if mcfg.startEpoch >= mcfg.maxEpoch:
        raise UserError(
            f"startEpoch={mcfg.startEpoch}: no epoch is left before maxEpoch={mcfg.maxEpoch}; "
            "epochs are counted from 0, so raise maxEpoch"
        )
    for chooser, readers, fields in _CONDITIONAL_FIELDS:
        choice = getattr(mcfg, chooser)
        changed = [name for name in fields if getattr(mcfg, name) != field_default(name)]
        if choice not in readers and ":" not in choice and changed:  # the class of a recipe may read any field
            raise UserError(
                f"{changed[0]}={getattr(mcfg, changed[0])}: only {chooser}={' or '.join(readers)} uses it, but "
                f"{chooser} is {choice}; set {chooser}={readers[0]}, or do not set {changed[0]}"
            )
    if mcfg.regMax < 2 and mcfg.head == field_default("head"):
        raise UserError(
            f"regMax={mcfg.regMax}: a distribution needs two bins or more; set regMax=16, or a head that predicts the "
            "distance directly (docs/extending.md)"
        )
    fitting = OFFICIAL_WEIGHTS[mcfg.phase]
    if mcfg.pretrained not in (None, fitting):
        raise UserError(
            f"pretrained={mcfg.pretrained}: does not fit phase={mcfg.phase}; set pretrained={fitting}, or change phase"
        )
    if mcfg.pretrained and mcfg.checkpointModelFile:
        raise UserError(
            f"pretrained={mcfg.pretrained}: checkpointModelFile={mcfg.checkpointModelFile} is also set, but training "
            "starts from only one of them; leave the other out"
        )


def _check_classes(mcfg: ModelConfig) -> None:
    """Names that are not in the class list, and groups of base and novel classes."""
    base, known = mcfg.baseClasses, mcfg.classList
    if mcfg.replayImages and base is None:
        raise UserError(
            f"replayImages={mcfg.replayImages}: replays images of base classes, but baseClasses is not set; "
            "add --set baseClasses=NAMES"
        )
    if known is None:
        return  # the data set has the class list; the config is loaded again with it
    for field in ("trainSelectedClasses", "testSelectedClasses", "distilSelectedClasses", "baseClasses"):
        names = getattr(mcfg, field)
        for name in names if isinstance(names, tuple) else ():
            if name not in known:
                raise UserError(
                    f"{field}={name}: not in classList{nearest(name, known)}; the classes are {listed(known)}"
                )
    if base is not None and (base if isinstance(base, int) else len(base)) >= len(known):
        raise UserError(
            f"baseClasses: all {len(known)} classes are base classes, so no class is novel; name fewer, or leave it "
            f"out; the classes are {listed(known)}"
        )


def _check_teacher(mcfg: ModelConfig) -> None:
    """A student without a teacher, or with a teacher that would have no effect."""
    indexes, classes = mcfg.teacherClassIndexes, mcfg.classList
    if indexes is not None and classes is not None:
        if len(set(indexes)) < len(indexes):
            raise UserError(f"teacherClassIndexes={listed(indexes)}: names a class more than once; name it once")
        last = len(classes) - 1
        if indexes and max(indexes) > last:
            raise UserError(
                f"teacherClassIndexes={max(indexes)}: classList has {last + 1} classes, so indexes run from 0 to {last}"
            )
    if mcfg.modelName != "distillation":
        if mcfg.unlabelledClasses == "pseudo":
            raise UserError(
                "unlabelledClasses=pseudo: the labels come from a teacher, but modelName=base has no teacher; "
                "use unlabelledClasses=mask"
            )
        return
    if mcfg.teacherModelFile is None:
        raise UserError(
            "modelName=distillation: a student needs a teacher; give its weights, "
            "e.g. --set teacherModelFile=ROOT/c1.nano.teacher/weights/best.pth"
        )
    _, cwd, response = mcfg.distilLossWeights
    if cwd and not mcfg.distilFeatures:
        raise UserError(
            f"distilFeatures: is empty, but the CWD loss has the weight {cwd}; name a feature map, or set the weight "
            "to 0"
        )
    if not (cwd or response or mcfg.boxResponseWeight):
        raise UserError(
            "distilLossWeights: all weights of the distillation losses are 0, so the teacher has no effect; "
            "set one above 0, or use modelName=base"
        )
    if mcfg.distilEpochs and not any(mcfg.startEpoch <= epoch < mcfg.maxEpoch for epoch in mcfg.distilEpochs):
        raise UserError(
            f"distilEpochs={listed(mcfg.distilEpochs)}: none of them is trained: the epochs of this run are "
            f"{mcfg.startEpoch} to {mcfg.maxEpoch - 1}"
        )
    is_all_labelled = mcfg.distilSelectedClasses is None and mcfg.trainSelectedClasses is None
    if mcfg.unlabelledClasses == "pseudo" and is_all_labelled:
        raise UserError(
            "unlabelledClasses=pseudo: every class counts as labelled; name the labelled classes, "
            "e.g. --set distilSelectedClasses=NAMES"
        )
