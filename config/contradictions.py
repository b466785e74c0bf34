"""Checks of several fields together: values that contradict each other. One message each, with a correction."""

from collections.abc import Iterator
from pathlib import Path

from config.errors import UserError
from config.fields import listed, nearest
from config.mconfig import OFFICIAL_WEIGHTS, ModelConfig, checked_value, field_default


def refuse_contradictions(mcfg: ModelConfig, code_dir: Path) -> None:
    """Raise `UserError` for the first contradiction in a config whose names and paths are settled."""
    for complaint in _complaints(mcfg, code_dir):
        raise UserError(complaint)


def _complaints(mcfg: ModelConfig, code_dir: Path) -> Iterator[str]:
    yield from _root(mcfg, code_dir)
    yield from _schedule(mcfg)
    yield from _unused_fields(mcfg)
    yield from _pretrained(mcfg)
    yield from _classes(mcfg)
    yield from _groups(mcfg)
    yield from _teacher(mcfg)


def _root(mcfg: ModelConfig, code_dir: Path) -> Iterator[str]:
    root = Path(mcfg.root).resolve()
    if code_dir in (root, *root.parents):
        yield (
            f"root={mcfg.root}: lies inside the code folder {code_dir}; runs belong outside of it, "
            f"e.g. --root {code_dir.parent / 'mars-running'}"
        )
    elif root.exists() and not root.is_dir():
        yield f"root={mcfg.root}: is a file; give the folder that is to hold the runs"


def _schedule(mcfg: ModelConfig) -> Iterator[str]:
    if mcfg.minLearningRate > mcfg.baseLearningRate:
        yield (
            f"minLearningRate={mcfg.minLearningRate}: above baseLearningRate={mcfg.baseLearningRate}, "
            "where the schedule starts; lower it, e.g. to a hundredth of that"
        )
    if mcfg.startEpoch >= mcfg.maxEpoch:
        yield (
            f"startEpoch={mcfg.startEpoch}: no epoch is left before maxEpoch={mcfg.maxEpoch}; "
            "epochs are counted from 0, so raise maxEpoch"
        )


def _unused_fields(mcfg: ModelConfig) -> Iterator[str]:
    """A changed field that the chosen augmentation, schedule or reaction to bad steps does not use."""
    by_steps = ("linear", "cosine")
    for chooser, readers, fields in (
        ("augmentation", ("modern",), ("mosaic", "closeMosaic", "scaleRange", "translate", "flip", "hsv")),
        ("schedulerType", by_steps, ("warmupEpochs", "warmupMomentum", "warmupBiasRate")),
        ("onBadStep", ("skip",), ("badStepsInARow",)),
    ):
        choice = getattr(mcfg, chooser)
        changed = [name for name in fields if checked_value(name, getattr(mcfg, name)) != field_default(name)]
        if choice not in readers and changed:
            yield (
                f"{changed[0]}={getattr(mcfg, changed[0])}: only {chooser}={' or '.join(readers)} uses it, and "
                f"{chooser} is {choice}; set {chooser}={readers[0]}, or do not set {changed[0]}"
            )


def _pretrained(mcfg: ModelConfig) -> Iterator[str]:
    if mcfg.pretrained is None:
        return
    fitting = OFFICIAL_WEIGHTS[mcfg.phase]
    if mcfg.pretrained != fitting:
        yield f"pretrained={mcfg.pretrained}: is not of phase {mcfg.phase}, whose official weights are {fitting}"
    if mcfg.checkpointModelFile is not None:
        yield (
            f"pretrained={mcfg.pretrained}: and checkpointModelFile={mcfg.checkpointModelFile}; training starts from "
            "one of them, leave the other out"
        )


def _classes(mcfg: ModelConfig) -> Iterator[str]:
    if mcfg.classList is None or isinstance(mcfg.classList, str):
        return  # the data set has the class list; the config is loaded again with it
    for field in ("trainSelectedClasses", "testSelectedClasses", "distilSelectedClasses"):
        for name in getattr(mcfg, field) or ():
            if name not in mcfg.classList:
                known = listed(mcfg.classList)
                yield f"{field}={name}: not in classList{nearest(name, mcfg.classList)}; the classes are {known}"


def _groups(mcfg: ModelConfig) -> Iterator[str]:
    base, known = mcfg.baseClasses, mcfg.classList
    if mcfg.replayImages and base is None:
        yield (
            f"replayImages={mcfg.replayImages}: replays images of base classes, but baseClasses is not set; "
            "add --set baseClasses=NAMES"
        )
    if base is None or known is None or isinstance(known, str):
        return
    names = listed(known)
    for name in () if isinstance(base, int) else base:
        if name not in known:
            yield f"baseClasses={name}: not in classList{nearest(name, known)}; the classes are {names}"
    if (base if isinstance(base, int) else len(base)) >= len(known):
        count = len(known)
        yield (
            f"baseClasses: all {count} classes are base classes, so none is novel; name fewer, or leave it out; "
            f"the classes are {names}"
        )


def _teacher(mcfg: ModelConfig) -> Iterator[str]:
    if mcfg.unlabelledClasses == "pseudo" and mcfg.modelName != "distillation":
        yield (
            "unlabelledClasses=pseudo: the labels come from a teacher, but modelName=base has no teacher; "
            "use unlabelledClasses=mask"
        )
    if mcfg.modelName == "distillation" and mcfg.teacherModelFile is None:
        yield (
            "modelName=distillation: a student needs a teacher; give its weights, "
            "e.g. --set teacherModelFile=ROOT/c1.nano.teacher/weights/best.pth"
        )
    if mcfg.modelName == "distillation":
        yield from _distillation(mcfg)
    if mcfg.teacherClassIndexes is None or mcfg.classList is None:
        return
    if len(set(mcfg.teacherClassIndexes)) < len(mcfg.teacherClassIndexes):
        yield f"teacherClassIndexes={listed(mcfg.teacherClassIndexes)}: names a class more than once"
    last = len(mcfg.classList) - 1
    for index in mcfg.teacherClassIndexes:
        if index > last:
            yield (
                f"teacherClassIndexes={index}: classList holds {last + 1} classes, so the indexes run from 0 to {last}"
            )


def _distillation(mcfg: ModelConfig) -> Iterator[str]:
    """A student whose teacher would have no effect."""
    _, cwd, response = mcfg.distilLossWeights
    if cwd and not mcfg.distilFeatures:
        yield f"distilFeatures: names no map, and CWD has the weight {cwd}; name one, or give CWD the weight 0"
    if not (cwd or response or mcfg.boxResponseWeight):
        yield (
            "distilLossWeights: all weights of the distillation losses are 0, so the teacher has no effect; "
            "set one above 0, or use modelName=base"
        )
    if mcfg.distilEpochs and not any(mcfg.startEpoch <= epoch < mcfg.maxEpoch for epoch in mcfg.distilEpochs):
        yield (
            f"distilEpochs={listed(mcfg.distilEpochs)}: this run trains none of them: its epochs run from "
            f"{mcfg.startEpoch} to {mcfg.maxEpoch - 1}"
        )
    is_all_labelled = mcfg.distilSelectedClasses is None and mcfg.trainSelectedClasses is None
    if mcfg.unlabelledClasses == "pseudo" and is_all_labelled:
        yield (
            "unlabelledClasses=pseudo: every class counts as labelled; name the labelled classes, "
            "e.g. --set distilSelectedClasses=NAMES"
        )
