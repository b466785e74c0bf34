"""Checks of learning: does a gradient reach every part, and can a few steps overfit a few images?"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from debug.doctor.finding import LOOK, OK, WRONG, Finding
from ops.batch import Batch
from ops.probe import listening
from ops.text import counted, shown
from train.opt import build_optimizer
from train.setup import TrainingSetup

_STEPS, _LEAST_STEPS, _SECONDS = 24, 6, 15.0
# Decrease of the loss as a share, and increase of the overlap: one of them is enough.
_LOSS_DROP, _OVERLAP_GAIN = 0.12, 0.06
_NOTHING = 0.02  # of either: less is no change
_HIGHEST_GROWTH = 4  # of the loss, times the loss gains: the cost of boxes and classes that are quite wrong
_LEAST_MOVEMENT = 1e-5  # of the weights, relative to their size: less is no movement
_CONSTANT = "head.dfl"  # holds the bins of the box distribution and is never trained


def examine_gradient(setup: TrainingSetup, batch: Batch) -> Iterator[Finding]:
    """Which parts get no gradient, or only zeros, or are frozen. The backbone is trained, if it is in any epoch."""
    free_epoch = next((epoch for epoch in setup.epochs if epoch not in setup.frozen_epochs), None)
    _set_epoch(setup, setup.mcfg.startEpoch if free_epoch is None else free_epoch)
    total, probes = _loss_and_probes(setup, batch.to(setup.device))
    if not total.requires_grad:
        yield Finding(WRONG, "gradient", "the loss depends on no trained parameter: every part is frozen or detached")
        return
    total.backward()
    reached, without, zero, frozen = _sort_by_gradient(setup.trained_modules)
    for module in setup.trained_modules:
        module.zero_grad(set_to_none=True)
    # A box branch learns nothing from this batch if no box has an anchor point on its map.
    height, width = batch.images.shape[2:]
    sizes = [height // stride * (width // stride) for stride in setup.model.strides]
    targets = probes.get("tal.target", torch.zeros(1, sum(sizes))).split(sizes, dim=1)
    unused = [f"head.box.{number}" for number, target in enumerate(targets) if not target.any()]
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


@dataclass
class OverfitCourse:
    """Before each step and after the last: the loss, and the mean IoU of each object's best box.

    The loss alone is not enough: while no box overlaps with any object, no box is trained and the loss is small.
    """

    highest_growth: float  # of the loss; one that grows more diverges
    losses: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
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
        has_converged = math.isfinite(self.loss_drop) and self.last <= self.losses[0] + self.highest_growth
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
    trained = [p for module in setup.trained_modules for p in module.parameters() if p.requires_grad]
    optimizer = build_optimizer(mcfg, *setup.trained_modules)
    before = [parameter.detach().clone() for parameter in trained]
    weight, started = float(len(batch)) if mcfg.lossReduction == "sum" else 1.0, time.perf_counter()
    course = OverfitCourse(_HIGHEST_GROWTH * sum(mcfg.lossWeights))
    # As in the training: gradients in float16 vanish without a scaler.
    scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision.dtype == torch.float16)
    while True:
        total, probes = _loss_and_probes(setup, batch)
        course.losses.append(total.item())
        # The best IoU of the anchor points that the object keeps; the mean over all objects of the batch. Pseudo-labels
        # follow them in the same rows.
        overlaps = probes.get("tal.best_overlap", batch.valid * 0.0)
        num_columns = min(overlaps.shape[1], batch.valid.shape[1])
        overlaps = overlaps[:, :num_columns][batch.valid[:, :num_columns]]
        course.overlaps.append(overlaps.mean().item())
        is_late = time.perf_counter() - started > _SECONDS
        is_enough = course.num_steps >= _LEAST_STEPS and (is_late or course.is_clear)
        if course.num_steps == _STEPS or is_enough or not math.isfinite(total.item()) or not total.requires_grad:
            break
        scaler.scale(total * weight).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, mcfg.gradientClip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    changes = [(now.detach() - old).norm().item() for now, old in zip(trained, before, strict=True)]
    course.movement = math.hypot(*changes) / max(math.hypot(*(old.norm().item() for old in before)), 1e-12)
    return course


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


def _loss_and_probes(setup: TrainingSetup, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the probes inside it by name; without any box there are none of the assigner."""
    probes: dict[str, Tensor] = {}
    with listening(lambda name, value: probes.update({name: value.detach()})):
        return setup.loss_of(batch).total, probes


def _sort_by_gradient(modules: Iterable[nn.Module]) -> tuple[list[str], list[str], list[str], list[str]]:
    """The parts of the modules, such as backbone.l3, neck.l12, head.box.0, sorted into four lists.

    Parts that a gradient reaches; parts, or single tensors, without one; parts whose gradient is zero everywhere;
    frozen parts.
    """
    parts: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in chain.from_iterable(module.named_parameters() for module in modules):
        path = name.split(".")[:-1]
        part = ".".join(path[: 3 if path[:2] in (["head", "box"], ["head", "cls"]) else 2])
        parts.setdefault(part, []).append((name, parameter))
    reached, without, zero, frozen = [], [], [], []
    for part, tensors in parts.items():
        trained = [(name, p) for name, p in tensors if p.requires_grad]
        missing = [name for name, p in trained if p.grad is None]
        if not trained:
            frozen.append(part)
        elif len(missing) == len(trained):
            without.append(part)
        else:
            without += missing
            is_zero = not any(p.grad.any() for _, p in trained if p.grad is not None)
            (zero if is_zero else reached).append(part)
    return reached, without, zero, frozen
