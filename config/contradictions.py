"""What no single field can get wrong: values that do not go together. One sentence each, with the way out."""

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
    yield from _unheard(mcfg)
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


def _unheard(mcfg: ModelConfig) -> Iterator[str]:
    """A field that was changed but that the chosen augmentation, schedule or answer does not read."""
    by_steps = ("linear", "cosine")
    for chooser, heard, fields in (
        ("augmentation", ("modern",), ("mosaic", "closeMosaic", "scaleRange", "translate", "flip", "hsv")),
        ("schedulerType", by_steps, ("warmupEpochs", "warmupMomentum", "warmupBiasRate")),
        ("onBadStep", ("skip",), ("badStepsInARow",)),
    ):
        choice = getattr(mcfg, chooser)
        changed = [name for name in fields if checked_value(name, getattr(mcfg, name)) != field_default(name)]
        if choice not in heard and changed:
            yield (
                f"{changed[0]}={getattr(mcfg, changed[0])}: only {chooser}={' or '.join(heard)} reads it, and "
                f"{chooser} is {choice}; set that too, or leave it out"
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
        return  # found out from the data; the config is loaded again with it then
    for field in ("trainSelectedClasses", "testSelectedClasses", "distilSelectedClasses"):
        for name in getattr(mcfg, field) or ():
            if name not in mcfg.classList:
                known = listed(mcfg.classList)
                yield f"{field}={name}: not in classList{nearest(name, mcfg.classList)}; the classes are {known}"


def _groups(mcfg: ModelConfig) -> Iterator[str]:
    base, known = mcfg.baseClasses, mcfg.classList
    if mcfg.replayImages and base is None:
        yield f"replayImages={mcfg.replayImages}: shows base classes again; say which they are: --set baseClasses=NAMES"
    if base is None or known is None or isinstance(known, str):
        return
    names = listed(known)
    for name in () if isinstance(base, int) else base:
        if name not in known:
            yield f"baseClasses={name}: not in classList{nearest(name, known)}; the classes are {names}"
    if (base if isinstance(base, int) else len(base)) >= len(known):
        count = len(known)
        yield f"baseClasses: leaves no class of {count} novel; name fewer, or leave it out; the classes are {names}"


def _teacher(mcfg: ModelConfig) -> Iterator[str]:
    if mcfg.unlabelledClasses == "pseudo" and mcfg.modelName != "distillation":
        yield "unlabelledClasses=pseudo: the labels are a teacher's, and modelName=base has none; take mask"
    if mcfg.modelName == "distillation" and mcfg.teacherModelFile is None:
        yield (
            "modelName=distillation: a student needs a teacher; give its weights, "
            "e.g. --set teacherModelFile=ROOT/c1.nano.teacher/weights/best.pth"
        )
    if mcfg.modelName == "distillation":
        yield from _taught(mcfg)
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


def _taught(mcfg: ModelConfig) -> Iterator[str]:
    """A student whose teacher would teach nothing."""
    _, cwd, response = mcfg.distilLossWeights
    if cwd and not mcfg.distilFeatures:
        yield f"distilFeatures: names no map, and CWD has the weight {cwd}; name one, or give CWD the weight 0"
    if not (cwd or response or mcfg.boxResponseWeight):
        yield "distilLossWeights: nothing is left of the teacher; give it a weight, or train with modelName=base"
    if mcfg.distilEpochs and not any(mcfg.startEpoch <= epoch < mcfg.maxEpoch for epoch in mcfg.distilEpochs):
        yield (
            f"distilEpochs={listed(mcfg.distilEpochs)}: none of them is trained, for epochs run from "
            f"{mcfg.startEpoch} to {mcfg.maxEpoch - 1}"
        )
    is_all_labelled = mcfg.distilSelectedClasses is None and mcfg.trainSelectedClasses is None
    if mcfg.unlabelledClasses == "pseudo" and is_all_labelled:
        yield (
            "unlabelledClasses=pseudo: every class counts as labelled; say which are, "
            "e.g. --set distilSelectedClasses=NAMES"
        )
