"""Does what is trained learn? Gradients that reach every part, and one batch overfitted in a few steps."""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.batch import Batch, network_input
from ops.precision import autocast
from ops.probe import listening
from ops.text import counted, shown
from train.opt import build_optimizer
from train.points import points_given
from train.setup import TrainingSetup

_STEPS, _LEAST_STEPS, _SECONDS = 24, 6, 15.0
_GOES, _GAINS = 0.12, 0.06  # share of the loss that must go in so many steps, or what the overlap must gain
_HARDLY = 0.02  # of either, is nothing
_LOUD = 4  # times the gains of the loss: what boxes and classes that are quite wrong cost
_MOVED = 1e-5  # relative to the weights: below this they stood still
_CONSTANT = "head.dfl"  # the bins of the box distribution


def examine_gradient(patient: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Which parts get no gradient, or nothing but zeros; which are frozen. Unfrozen, where any epoch is so."""
    model, epoch = patient.model, next((e for e in patient.epochs if e not in patient.frozen_epochs), None)
    _set_up(patient, patient.mcfg.startEpoch if epoch is None else epoch)
    batch = batch.to(patient.device)
    total = _loss(patient, batch)
    frozen = [part for part, tensors in _parts(patient).items() if not any(p.requires_grad for _, p in tensors)]
    if not total.requires_grad:
        yield Finding(
            WRONG, "gradient", "the loss depends on nothing that is trained: every part is frozen or detached"
        )
        return
    total.backward()
    reached, cut, zero = _sorted_by_gradient(patient)
    idle = _idle_branches(patient, batch)
    model.zero_grad(set_to_none=True)
    for module in patient.objective.extra_modules:
        module.zero_grad(set_to_none=True)
    if cut:
        yield Finding(
            WRONG, "gradient", f"none reaches {shown(cut)}: detached or unused, it would keep its first weights: look "
            "for detach() and no_grad() behind it",
        )  # fmt: skip
    if dead := [part for part in zero if part not in idle]:
        yield Finding(
            WRONG, "gradient", f"that of {shown(dead)} is zero everywhere: something multiplies it away, or its "
            "activation is dead",
        )  # fmt: skip
    unasked = [part for part in frozen if part != _CONSTANT and not part.startswith("backbone.")]
    if unasked:
        yield Finding(LOOK, "gradient", f"{shown(unasked)} is frozen, which no field asks for")
    if not cut and not dead:
        yield Finding(OK, "gradient", f"reaches {counted(len(reached), 'part')}{_asides(frozen, zero, epoch is None)}")


def examine_overfitting(patient: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """A few steps on these few images, at the highest learning rate, in the state of the first epoch."""
    if not batch.valid.any():
        yield Finding(LOOK, "overfit", "not tried, for no image of the first batches has an object")
        return
    _set_up(patient, patient.mcfg.startEpoch)
    tried = _overfit(patient, batch.to(patient.device))
    course = f"loss {tried.losses[0]:.3g} -> {tried.last:.3g}, overlap of each object's best box "
    course += f"{tried.overlaps[0]:.2f} -> {tried.overlaps[-1]:.2f}, on {counted(len(batch), 'image')} in "
    course += counted(tried.steps, "step")
    if tried.is_learning:
        yield Finding(OK, "overfit", f"{course}: it learns")
        return
    level = LOOK if tried.goes >= _HARDLY else WRONG
    yield Finding(level, "overfit", f"{course}: {_why_not(patient, tried, level)}")


class Tried(NamedTuple):
    """Before each step and after the last: the loss, and how well the best box of each object overlaps with it.

    A loss alone does not tell: while no box overlaps with any object nothing asks for boxes, and it is small.
    """

    losses: list[float]
    overlaps: list[float]
    ceiling: float  # a loss above it is no loss of objects that are being found
    moved: float = 0.0  # how far the weights went, relative to their size

    @property
    def steps(self) -> int:
        return len(self.losses) - 1

    @property
    def last(self) -> float:
        """Mean of the last three losses."""
        return sum(self.losses[-3:]) / len(self.losses[-3:])

    @property
    def goes(self) -> float:
        """Share of the loss that went; minus infinity when it is not finite."""
        if not all(map(math.isfinite, self.losses)):
            return -math.inf
        return 1 - self.last / self.losses[0] if self.losses[0] else 0.0

    @property
    def gains(self) -> float:
        """By how much the overlap grew; 0 when the loss ran away meanwhile."""
        is_sane = math.isfinite(self.goes) and self.last <= self.ceiling
        return self.overlaps[-1] - self.overlaps[0] if is_sane else 0.0

    @property
    def is_learning(self) -> bool:
        """Less is asked of fewer steps, where they take long."""
        part = self.steps / _STEPS
        return self.goes >= max(_HARDLY, _GOES * part) or self.gains >= max(_HARDLY, _GAINS * part)

    @property
    def is_clear(self) -> bool:
        """Has it learned so much that no more steps are needed to say so?"""
        return self.goes >= 2 * _GOES or self.gains >= 2 * _GAINS


def _overfit(patient: TrainingSetup, batch: Batch) -> Tried:
    mcfg, trained = patient.mcfg, [p for p in _all_parameters(patient) if p.requires_grad]
    optimizer = build_optimizer(mcfg, patient.model, *patient.objective.extra_modules)
    before = [parameter.detach().clone() for parameter in trained]
    weight, started = float(len(batch)) if mcfg.lossReduction == "sum" else 1.0, time.perf_counter()
    tried = Tried([], [], math.inf)
    while True:
        total, overlap = _loss_and_overlap(patient, batch)
        if not tried.losses:
            tried = tried._replace(ceiling=total.item() + _LOUD * sum(mcfg.lossWeights))
        tried.losses.append(total.item())
        tried.overlaps.append(overlap)
        is_late = time.perf_counter() - started > _SECONDS
        is_enough = tried.steps >= _LEAST_STEPS and (is_late or tried.is_clear)
        if tried.steps == _STEPS or is_enough or not math.isfinite(tried.losses[-1]) or not total.requires_grad:
            return tried._replace(moved=_distance(trained, before))
        (total * weight).backward()
        torch.nn.utils.clip_grad_norm_(trained, mcfg.gradientClip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _loss_and_overlap(patient: TrainingSetup, batch: Batch) -> tuple[Tensor, float]:
    """The overlap is the assigner's, of points inside the object, a mean over objects."""
    best: list[Tensor] = []

    def listen(name: str, value: Tensor) -> None:
        if name == "tal.overlap":
            best.append(value.amax(dim=-1)[batch.valid].mean())

    with listening(listen):
        total = _loss(patient, batch)
    return total, best[0].item() if best else 0.0


def _why_not(patient: TrainingSetup, tried: Tried, level: str) -> str:
    """What it means that the loss did not go, by what else was seen."""
    mcfg, rate = patient.mcfg, patient.mcfg.baseLearningRate
    if not math.isfinite(tried.losses[-1]):
        return f"it is not finite: lower baseLearningRate ({rate:g}); if that does not help, train once with --trace"
    if tried.goes < -_HARDLY and tried.moved >= _MOVED:
        return f"it grows: lower baseLearningRate ({rate:g}), tenfold at first"
    if tried.moved < _MOVED:
        is_frozen = patient.model.is_backbone_frozen
        frozen = f", or unfreeze the backbone (backboneFreezeEpochs={mcfg.backboneFreezeEpochs})" if is_frozen else ""
        return f"the weights hardly moved ({tried.moved:.1e} of their size): raise baseLearningRate ({rate:g}){frozen}"
    if level == LOOK:
        return "it goes slowly, as with a low learning rate or weights that know much already"
    frozen = "the frozen backbone (its features do not fit), " if patient.model.is_backbone_frozen else ""
    return (
        f"the weights moved, but nothing was learned: look at {frozen}the labels in the picture of the batch, and at "
        "the lines about points and gradient"
    )


def _set_up(patient: TrainingSetup, epoch: int) -> None:
    """Train mode, frozen or not, as in this epoch; the teacher speaks, where it does in any."""
    if epoch in patient.frozen_epochs:
        patient.model.freezeBackbone()
    else:
        patient.model.unfreezeBackbone()
    patient.model.train()
    patient.objective.set_epoch(min(patient.mcfg.distilEpochs, default=epoch))


def _loss(patient: TrainingSetup, batch: Batch) -> Tensor:
    with autocast(patient.device, patient.precision.dtype):
        return patient.objective(patient.model, network_input(batch.images), batch).total


def _parts(patient: TrainingSetup) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """backbone.l3, neck.l12, head.box.0 -> its parameters; what is learned beside the network by its own names."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {}
    beside = (module.named_parameters() for module in patient.objective.extra_modules)
    for name, parameter in chain(patient.model.named_parameters(), *beside):
        words = name.split(".")[:-1]
        part = ".".join(words[: 3 if words[:2] in (["head", "box"], ["head", "cls"]) else 2])
        found.setdefault(part, []).append((name, parameter))
    return found


def _sorted_by_gradient(patient: TrainingSetup) -> tuple[list[str], list[str], list[str]]:
    """Parts that a gradient reaches; parts, or else tensors, without any; parts whose gradient is zero everywhere."""
    reached, cut, zero = [], [], []
    for part, tensors in _parts(patient).items():
        trained = [(name, p) for name, p in tensors if p.requires_grad]
        without = [name for name, p in trained if p.grad is None]
        if not trained:
            continue
        if len(without) == len(trained):
            cut.append(part)
            continue
        cut += without
        is_zero = not any(p.grad.any() for _, p in trained if p.grad is not None)
        (zero if is_zero else reached).append(part)
    return reached, cut, zero


def _idle_branches(patient: TrainingSetup, batch: Batch) -> list[str]:
    """Box branches of the maps on which no point was given to an object: they have nothing to learn from this batch."""
    with torch.no_grad(), autocast(patient.device, patient.precision.dtype):
        raw_maps = patient.model(network_input(batch.images))
    sizes = [raw.shape[2] * raw.shape[3] for raw in raw_maps]
    shares = points_given(patient.detection_loss, raw_maps, batch).assignment.target_scores.sum(dim=-1).split(sizes, 1)
    return [f"head.box.{level}" for level, share in enumerate(shares) if not share.any()]


def _asides(frozen: Sequence[str], zero: Sequence[str], is_always_frozen: bool) -> str:
    text = "; frozen: " + shown([f"{name} (a constant)" if name == _CONSTANT else name for name in _joined(frozen)])
    text += ", in every epoch" if is_always_frozen else ""
    return text + (
        f"; nothing to learn for {shown(list(zero))} on this batch, for no object got a point there" * bool(zero)
    )


def _joined(parts: Sequence[str]) -> list[str]:
    """All ten layers of the backbone are the backbone."""
    layers = [part for part in parts if part.startswith("backbone.")]
    return (["backbone"] if layers else []) + [part for part in parts if part not in layers]


def _all_parameters(patient: TrainingSetup) -> Iterator[nn.Parameter]:
    return chain(patient.model.parameters(), *(module.parameters() for module in patient.objective.extra_modules))


@torch.no_grad()
def _distance(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """How far the tensors went, relative to their size; 0 for none."""
    if not now:
        return 0.0
    went = torch.stack([(one - other).norm() for one, other in zip(now, before, strict=True)]).norm()
    size = torch.stack([other.norm() for other in before]).norm()
    return float(went / size.clamp(min=1e-12))
