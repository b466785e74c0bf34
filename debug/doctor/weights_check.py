"""Where a training begins: the run's folder, the starting weights, and whether every tensor is one of its own."""

from collections.abc import Iterator

from torch import nn

from config.errors import UserError
from config.mconfig import ModelConfig
from debug.doctor.aliases import Declared, find_aliases, grouped
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from dl.check import CheckedData
from dl.label_selection import splits_to_train
from model import YoloModel
from model.pretrained import LoadReport
from model.weightsfile import read_weights
from ops.text import counted, shown
from runs.folder import RunFolder
from runs.identity import identity_of
from train.setup import TrainingSetup

DECLARED: Declared = ()  # pairs of names that are meant to be one tensor: Mars's network has none
_NEARLY_ALL = 0.9  # of the network's numbers, below which weights that were loaded deserve a look


def examine_folder(mcfg: ModelConfig, data: CheckedData) -> Iterator[Finding]:
    """Would `train` begin here, go on, or refuse? Nothing is locked, so it may be asked while a run trains."""
    folder = RunFolder.of(mcfg)
    try:
        checkpoint, changes = folder.checkpoint_to_resume(mcfg, identity_of(data, splits_to_train(mcfg)))
    except UserError as error:
        yield Finding(WRONG, "folder", str(error))
        return
    if checkpoint is None:
        yield Finding(OK, "folder", f"a new run begins in {folder.path}")
        return
    done = f"{folder.path} holds a run of {counted(checkpoint['epoch'], 'epoch')}"
    changed = f", with {changes}" if changes else ""
    yield Finding(OK, "folder", f"{done}; train goes on with it{changed}. What follows is about a fresh start")


def examine_weights(patient: TrainingSetup) -> Iterator[Finding]:
    """What the network starts from, in figures."""
    if patient.start is None:
        yield Finding(OK, "weights", f"random, drawn from seed={patient.mcfg.seed}; every part has to learn")
    elif patient.weights_refusal is not None:
        figures = _matching(patient.model, patient)
        yield Finding(WRONG, "weights", f"{patient.weights_refusal}{figures}; train would stop here")
    elif patient.report is not None:
        yield _loaded(patient.model, patient.report, patient.start.backbone_only)


def examine_aliases(*modules: nn.Module) -> Iterator[Finding]:
    """Tensors that are one under two names."""
    for module in modules:
        if aliases := grouped(module, find_aliases(module, DECLARED)):
            more = f" and {len(aliases) - 5} more pairs" if len(aliases) > 5 else ""
            text = f"{'; '.join(map(str, aliases[:5]))}{more}: what is written under one name changes the other; make "
            yield Finding(WRONG, "aliases", f"{text}copies of them, or declare them (debug/doctor/weights_check.py)")
            return
    count = sum(len(list(module.state_dict())) for module in modules)
    yield Finding(OK, "aliases", f"each of {counted(count, 'tensor')} has memory of its own")


def is_backbone_random(patient: TrainingSetup) -> bool:
    """Does any of the backbone's tensors keep its random start?"""
    if patient.report is None:
        return True
    return any(name.startswith("backbone.") for name in patient.report.missing)


def _loaded(model: YoloModel, report: LoadReport, is_backbone: bool) -> Finding:
    tensors = {name: value.numel() for name, value in model.state_dict().items()}
    wanted = {name: size for name, size in tensors.items() if not is_backbone or name.startswith("backbone.")}
    matched = [name for name in report.matched if name in wanted]
    share = sum(wanted[name] for name in matched) / max(sum(wanted.values()), 1)
    text = f"matched {len(matched)} of {len(wanted)} tensors{' of the backbone' if is_backbone else ''}, "
    text += f"{100 * share:.0f} % of its numbers, from {report.source} ({report.kind})"
    missing = [name for name in report.missing if name in wanted]
    if missing:
        text += f"; random at first: {shown(_parts(missing))}"
    if report.carried:
        text += f"; final rows carried over: {shown(report.carried)}"
    if share < _NEARLY_ALL:
        return Finding(LOOK, "weights", f"{text}; are these the weights that were meant?")
    return Finding(OK, "weights", text)


def _matching(model: YoloModel, patient: TrainingSetup) -> str:
    """How much of a file that was refused would have fitted; nothing when it cannot be read."""
    assert patient.start is not None
    try:
        tensors = read_weights(patient.start.path).tensors
    except UserError:
        return ""
    own = model.state_dict()
    fitting = [name for name, value in own.items() if name in tensors and tensors[name].shape == value.shape]
    return f" (of the network's {len(own)} tensors {len(fitting)} match, of the file's {len(tensors)})"


def _parts(names: list[str]) -> list[str]:
    """Tensors put together to the modules that hold them."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name in names))
