"""Checks of learning: does a gradient reach every part, and can a few steps overfit a few images?"""

import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debug.assignment import assign_points
from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.batch import Batch, network_input
from ops.device import autocast
from ops.probe import listening
from ops.text import counted, shown
from train.opt import build_optimizer
from train.setup import TrainingSetup

_STEPS, _LEAST_STEPS, _SECONDS = 24, 6, 15.0
_LOSS_DROP, _OVERLAP_GAIN = (
    0.12,
    0.06,
)  # decrease of the loss as a share, and increase of the overlap: one of them is enough
_NOTHING = 0.02  # of either: less is no change
_HIGHEST_LOSS = 4  # times the loss gains, above the first loss: the cost of boxes and classes that are quite wrong
_LEAST_MOVEMENT = 1e-5  # of the weights, relative to their size: less is no movement
_CONSTANT = "head.dfl"  # holds the bins of the box distribution and is never trained


def examine_gradient(setup: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Which parts get no gradient, or only zeros, or are frozen. The backbone is trained, if it is in any epoch."""
    free_epoch = next((epoch for epoch in setup.epochs if epoch not in setup.frozen_epochs), None)
    _set_epoch(setup, setup.mcfg.startEpoch if free_epoch is None else free_epoch)
    batch = batch.to(setup.device)
    total = _loss(setup, batch)
    parts = _parts(setup)
    frozen = [part for part, tensors in parts.items() if not any(p.requires_grad for _, p in tensors)]
    if not total.requires_grad:
        text = "the loss depends on no trained parameter: every part is frozen or detached"
        yield Finding(WRONG, "gradient", text)
        return
    total.backward()
    reached, without, zero = _sort_by_gradient(parts)
    unused = _box_branches_without_points(setup, batch)
    for module in (setup.model, *setup.objective.extra_modules):
        module.zero_grad(set_to_none=True)
    if without:
        yield Finding(
            WRONG, "gradient", f"no gradient reaches {shown(without)}: a part that is detached or unused keeps its "
            "first weights; look for detach() and no_grad() after it",
        )  # fmt: skip
    if dead := [part for part in zero if part not in unused]:
        yield Finding(
            WRONG, "gradient", f"the gradient of {shown(dead)} is zero everywhere: it is multiplied by zero, or its "
            "activations are dead",
        )  # fmt: skip
    unexpected = [part for part in frozen if part != _CONSTANT and not part.startswith("backbone.")]
    if unexpected:
        yield Finding(LOOK, "gradient", f"frozen, although no config field asks for it: {shown(unexpected)}")
    if not without and not dead:
        # The layers of the backbone together are called backbone.
        names = dict.fromkeys("backbone" if part.startswith("backbone.") else part for part in frozen)
        names = [f"{name} (a constant)" if name == _CONSTANT else name for name in names]
        text = f"reaches {counted(len(reached), 'part')}; frozen: {shown(names)}"
        text += ", in every epoch" if free_epoch is None else ""
        text += f"; {shown(zero)} got none in this batch, because no box has an anchor point there" if zero else ""
        yield Finding(OK, "gradient", text)


def examine_overfitting(setup: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """A few steps on a few images, with the highest learning rate and the frozen parts of the first epoch."""
    if not batch.valid.any():
        yield Finding(LOOK, "overfit", "not tried, because no image of the first batches has an object")
        return
    _set_epoch(setup, setup.mcfg.startEpoch)
    course = _overfit(setup, batch.to(setup.device))
    text = f"loss {course.losses[0]:.3g} -> {course.last:.3g}, IoU of each object's best box "
    text += f"{course.overlaps[0]:.2f} -> {course.overlaps[-1]:.2f}, on {counted(len(batch), 'image')} in "
    text += counted(course.num_steps, "step")
    if course.is_learning:
        yield Finding(OK, "overfit", f"{text}: it learns")
        return
    level = LOOK if course.loss_drop >= _NOTHING else WRONG
    yield Finding(level, "overfit", f"{text}: {_why_not(setup, course, level)}")


class OverfitCourse(NamedTuple):
    """Before each step and after the last: the loss, and the mean IoU of each object's best box.

    The loss alone is not enough: while no box overlaps with any object, no box is trained and the loss is small.
    """

    losses: list[float]
    overlaps: list[float]
    highest_loss: float  # a loss above it diverges
    movement: float = 0.0  # of the weights, relative to their size

    @property
    def num_steps(self) -> int:
        return len(self.losses) - 1

    @property
    def last(self) -> float:
        """Mean of the last three losses."""
        return sum(self.losses[-3:]) / len(self.losses[-3:])

    @property
    def loss_drop(self) -> float:
        """Share of the first loss; minus infinity when a loss is not finite."""
        if not all(map(math.isfinite, self.losses)):
            return -math.inf
        return 1 - self.last / self.losses[0] if self.losses[0] else 0.0

    @property
    def overlap_gain(self) -> float:
        """0 when the loss diverged."""
        has_converged = math.isfinite(self.loss_drop) and self.last <= self.highest_loss
        return self.overlaps[-1] - self.overlaps[0] if has_converged else 0.0

    @property
    def is_learning(self) -> bool:
        """Fewer steps, when they take long, need to change less."""
        share = self.num_steps / _STEPS
        has_dropped = self.loss_drop >= max(_NOTHING, _LOSS_DROP * share)
        return has_dropped or self.overlap_gain >= max(_NOTHING, _OVERLAP_GAIN * share)

    @property
    def is_clear(self) -> bool:
        """Has it learned so much that no more steps are needed?"""
        return self.loss_drop >= 2 * _LOSS_DROP or self.overlap_gain >= 2 * _OVERLAP_GAIN


def _overfit(setup: TrainingSetup, batch: Batch) -> OverfitCourse:
    mcfg = setup.mcfg
    modules = (setup.model, *setup.objective.extra_modules)
    trained = [p for p in chain.from_iterable(module.parameters() for module in modules) if p.requires_grad]
    optimizer = build_optimizer(mcfg, *modules)
    before = [parameter.detach().clone() for parameter in trained]
    weight, started = float(len(batch)) if mcfg.lossReduction == "sum" else 1.0, time.perf_counter()
    course = OverfitCourse([], [], math.inf)
    while True:
        total, overlap = _loss_and_overlap(setup, batch)
        if not course.losses:
            course = course._replace(highest_loss=total.item() + _HIGHEST_LOSS * sum(mcfg.lossWeights))
        course.losses.append(total.item())
        course.overlaps.append(overlap)
        is_late = time.perf_counter() - started > _SECONDS
        is_enough = course.num_steps >= _LEAST_STEPS and (is_late or course.is_clear)
        if course.num_steps == _STEPS or is_enough or not math.isfinite(total.item()) or not total.requires_grad:
            return course._replace(movement=_movement(trained, before))
        (total * weight).backward()
        torch.nn.utils.clip_grad_norm_(trained, mcfg.gradientClip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _loss_and_overlap(setup: TrainingSetup, batch: Batch) -> tuple[Tensor, float]:
    """The IoU is the assigner's, of anchor points inside the object; the mean over all objects."""
    best: list[Tensor] = []

    def listen(name: str, value: Tensor) -> None:
        if name == "tal.overlap":
            best.append(value.amax(dim=-1)[batch.valid].mean())

    with listening(listen):
        total = _loss(setup, batch)
    return total, best[0].item() if best else 0.0


def _why_not(setup: TrainingSetup, course: OverfitCourse, level: str) -> str:
    """The likely reason that the loss did not drop, and what to do."""
    mcfg, rate = setup.mcfg, setup.mcfg.baseLearningRate
    is_frozen = setup.model.is_backbone_frozen
    if not math.isfinite(course.losses[-1]):
        return f"the loss is not finite: lower baseLearningRate ({rate:g}); if it stays so, train once with --trace"
    if course.movement < _LEAST_MOVEMENT:
        frozen = f", or train the backbone (backboneFreezeEpochs={mcfg.backboneFreezeEpochs})" if is_frozen else ""
        movement = f"{course.movement:.1e} of their size"
        return f"the weights hardly changed ({movement}): raise baseLearningRate ({rate:g}){frozen}"
    if course.loss_drop < -_NOTHING:
        return f"the loss grows: lower baseLearningRate ({rate:g}), first by a factor of 10"
    if level == LOOK:
        return "the loss drops slowly, as with a low learning rate or with weights that are already trained"
    frozen = "the frozen backbone (its features may not fit), " if is_frozen else ""
    return (
        f"the weights changed, but nothing was learned: check {frozen}the labels in the picture of the batch, and the "
        "findings about points and gradient"
    )


def _set_epoch(setup: TrainingSetup, epoch: int) -> None:
    """Train mode, with the backbone frozen as in this epoch; the teacher is active if it is in any epoch."""
    if epoch in setup.frozen_epochs:
        setup.model.freezeBackbone()
    else:
        setup.model.unfreezeBackbone()
    setup.model.train()
    setup.objective.set_epoch(min(setup.mcfg.distilEpochs, default=epoch))


def _loss(setup: TrainingSetup, batch: Batch) -> Tensor:
    with autocast(setup.device, setup.precision.dtype):
        return setup.objective(setup.model, network_input(batch.images), batch).total


def _parts(setup: TrainingSetup) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """backbone.l3, neck.l12, head.box.0 -> its parameters; modules trained beside the network by their own names."""
    found: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for module in (setup.model, *setup.objective.extra_modules):
        for name, parameter in module.named_parameters():
            path = name.split(".")[:-1]
            part = ".".join(path[: 3 if path[:2] in (["head", "box"], ["head", "cls"]) else 2])
            found.setdefault(part, []).append((name, parameter))
    return found


def _sort_by_gradient(
    parts: dict[str, list[tuple[str, nn.Parameter]]],
) -> tuple[list[str], list[str], list[str]]:
    """Parts that a gradient reaches; parts, or single tensors, without one; parts whose gradient is zero everywhere."""
    reached, without, zero = [], [], []
    for part, tensors in parts.items():
        trained = [(name, p) for name, p in tensors if p.requires_grad]
        names = [name for name, p in trained if p.grad is None]
        if not trained:
            continue
        if len(names) == len(trained):
            without.append(part)
            continue
        without += names
        is_zero = not any(p.grad.any() for _, p in trained if p.grad is not None)
        (zero if is_zero else reached).append(part)
    return reached, without, zero


def _box_branches_without_points(setup: TrainingSetup, batch: Batch) -> list[str]:
    """The box branches of those maps of which no box has an anchor point: they learn nothing from this batch."""
    with torch.no_grad(), autocast(setup.device, setup.precision.dtype):
        raw_maps = setup.model(network_input(batch.images))
    sizes = [raw.shape[2] * raw.shape[3] for raw in raw_maps]
    weights = assign_points(setup.detection_loss, raw_maps, batch).assignment.target_scores.sum(dim=-1).split(sizes, 1)
    return [f"head.box.{level}" for level, weight in enumerate(weights) if not weight.any()]


@torch.no_grad()
def _movement(now: Sequence[Tensor], before: Sequence[Tensor]) -> float:
    """The length of the change, relative to the tensors' length; 0 for no tensors."""
    if not now:
        return 0.0
    change = torch.stack([(a - b).norm() for a, b in zip(now, before, strict=True)]).norm()
    length = torch.stack([b.norm() for b in before]).norm()
    return float(change / length.clamp(min=1e-12))
