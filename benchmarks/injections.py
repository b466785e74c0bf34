"""The faults of `make faults`, each put in from outside by patching at run time, and what should be said about it.

What is patched is undone when the `ExitStack` closes; weights, batches and rates are those of a trainer that is thrown
away afterwards. Expectations name what a user reads: the rows of the page about a bad step, or a sentence.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import train.distilloss
import train.loss
from model.base.neck import Neck
from ops.batch import Batch
from train.tal import TaskAlignedAssigner
from train.trainer import Trainer

ALL = ("weights", "momentum", "average", "files")
HERE = "injections.py"
STOPPED, QUIET, STRUCTURAL, UNPREPARED = "stopped", "quiet", "structural", "unprepared"


@dataclass(frozen=True)
class Injection:
    """One fault. `put_in` is called once, just before a step; `each` before that step and all later ones."""

    name: str
    what: str
    says: Mapping[str, str]  # row of the page, or name of a sentence -> what must stand in it; {image}: the bad one
    put_in: Callable[[Trainer, ExitStack], None] | None = None
    each: Callable[[Trainer], None] | None = None
    spoil: Callable[[Batch], Batch] | None = None
    group: str = STOPPED
    is_student: bool = False
    is_fresh: bool = False  # from its first step; else in the second epoch of a run
    settings: Mapping[str, Any] = field(default_factory=dict)
    holds: tuple[str, ...] = ALL  # what must not move


# Into the arithmetic


def _logits(trainer: Trainer, patches: ExitStack) -> None:
    assign = TaskAlignedAssigner.__call__

    def with_logits(self: Any, scores: Tensor, *others: Tensor) -> Any:
        return assign(self, scores.logit(), *others)

    patches.enter_context(patch.object(TaskAlignedAssigner, "__call__", with_logits))


def _zero_normaliser(trainer: Trainer, patches: ExitStack) -> None:
    show = train.loss.probe

    def without_clamp(name: str, value: Tensor) -> Tensor:
        return show(name, value * 0 if name == "loss.normaliser" else value)

    patches.enter_context(patch.object(train.loss, "probe", without_clamp))


def _softmax_then_log(trainer: Trainer, patches: ExitStack) -> None:
    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ours, theirs = ((1000 * logits).softmax(dim=-1) for logits in (student, teacher))
        return (theirs * (theirs.log() - ours.log())).sum(dim=-1)

    patches.enter_context(patch.object(train.distilloss, "divergence", divergence))


def _unequal_clamps(trainer: Trainer, patches: ExitStack) -> None:
    def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        ours, theirs = student.softmax(dim=-1), teacher.softmax(dim=-1)
        return (theirs * (theirs.clamp(min=1e-7).log() - ours.clamp(min=0.9).log())).sum(dim=-1)

    patches.enter_context(patch.object(train.distilloss, "divergence", divergence))


def _root_in_ciou(trainer: Trainer, patches: ExitStack) -> None:
    ciou = train.loss.ciou

    def rooted_ciou(a: Tensor, b: Tensor) -> Tensor:
        overlap = ciou(a, b)
        spread = (overlap - overlap.detach()) - 1e-12  # a variance that rounding has taken below zero
        return overlap - 0.1 * spread.sqrt()

    patches.enter_context(patch.object(train.loss, "ciou", rooted_ciou))


def _zero_features(trainer: Trainer, patches: ExitStack) -> None:
    forward = Neck.forward

    def zeros(self: Neck, *features: Tensor) -> Any:
        joined = forward(self, *features)
        return type(joined)(*(one * 0 for one in joined))

    patches.enter_context(patch.object(Neck, "forward", zeros))


def _wide_spread(trainer: Trainer, patches: ExitStack) -> None:
    teach = train.distilloss.CWDLoss.__call__

    def stretched(maps: Tensor) -> Tensor:
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        return (maps - low) / (high - low).detach().clamp(min=1e-6) * 1000

    def wide(self: Any, student: Tensor, teacher: Tensor) -> Tensor:
        return teach(self, stretched(student.float()), stretched(teacher.float()))

    patches.enter_context(patch.object(train.distilloss.CWDLoss, "__call__", wide))


# Into the network


BLOCK = "backbone.l4.cv1"


def _change_output(trainer: Trainer, patches: ExitStack, change: Callable[[Tensor], Tensor]) -> None:
    block = trainer.model.get_submodule(BLOCK)
    handle = block.register_forward_hook(lambda module, args, output: change(output))  # pyright: ignore[reportArgumentType]
    patches.callback(handle.remove)


@torch.no_grad()
def _scale(trainer: Trainer, times: float = 1e8) -> None:
    trainer.model.get_parameter(f"{BLOCK}.conv.weight").mul_(times)


def _half(trainer: Trainer, patches: ExitStack) -> None:
    trainer.precision = trainer.precision._replace(dtype=torch.float16)
    trainer.objective.compute_in(torch.float16)
    guard = trainer.stepper.guard
    trainer.stepper = trainer._make_stepper()
    trainer.stepper.guard.set_position(guard.epoch, guard.step)
    _scale(trainer, 1e5)


def _unguarded_normalise(trainer: Trainer, patches: ExitStack) -> None:
    def normalised(x: Tensor) -> Tensor:
        zeros = x * 0
        length = zeros.norm(dim=1, keepdim=True)
        return x + torch.where(length > 0, zeros / length, zeros)

    _change_output(trainer, patches, normalised)


def _infinity_times_zero(trainer: Trainer, patches: ExitStack) -> None:
    def masked_in_place(x: Tensor) -> Tensor:
        is_first = torch.zeros_like(x)
        is_first[0] = 1
        x.add_(torch.where(is_first > 0, math.inf, 0.0))  # hidden below by a mask that multiplies
        return x.mul_(1 - is_first)

    _change_output(trainer, patches, masked_in_place)


class OwnSiLU(torch.autograd.Function):
    """x * sigmoid(x), right forward; backward it divides by what is zero where x is negative enough."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        probability = x.sigmoid()
        return gradients[0] * (probability + x * probability / (1 - probability.round() - (1 - probability).round()))


def _own_silu(trainer: Trainer, patches: ExitStack) -> None:
    patches.enter_context(patch.object(trainer.model.get_submodule(BLOCK).act, "forward", OwnSiLU.apply))


def _poison_average(trainer: Trainer, patches: ExitStack) -> None:
    assert trainer.ema is not None
    next(trainer.ema.model.parameters()).data[0, 0, 1, 1] = math.nan


# Into the step, the batch and the teacher


def _rate(value: float) -> Callable[[Trainer], None]:
    return lambda trainer: setattr(trainer, "rate", value)


def _bad_pixel(batch: Batch) -> Batch:
    images = batch.images.float()
    images[-1, 1, 5, 7] = math.nan
    return replace(batch, images=images)


def _bad_box(batch: Batch) -> Batch:
    boxes, labels, valid = batch.boxes.clone(), batch.labels.clone(), batch.valid.clone()
    if boxes.shape[1] == 0:
        boxes, labels, valid = (
            boxes.new_zeros(len(batch), 1, 4),
            labels.new_zeros(len(batch), 1),
            ~valid.any(1)[:, None],
        )
    boxes[-1, 0] = torch.tensor([10.0, 10.0, math.nan, 30.0])
    valid[-1, 0] = True
    return replace(batch, boxes=boxes, labels=labels, valid=valid)


def _no_boxes(batch: Batch) -> Batch:
    return replace(batch, boxes=batch.boxes[:, :0], labels=batch.labels[:, :0], valid=batch.valid[:, :0])


_FINITE = {"finite": "yes", "alarms": "none"}

INJECTIONS = (
    Injection(
        "logits", "logits to the assigner", put_in=_logits,
        says={"phase": "in the loss", "operation": "aten.pow", "where": "tal.py", "first seen": "tal.metric",
              "likely": "negative base"},
    ),
    Injection(
        "normaliser", "a normaliser of zero", put_in=_zero_normaliser,
        says={"phase": "in the loss", "operation": "aten.div", "where": "train/loss.py", "likely": "zero normaliser"},
    ),
    Injection(
        "pixel", "a NaN pixel", spoil=_bad_pixel,
        says={"phase": "the batch itself", "tensor": "images", "images": "{image}", "likely": "bad pixel"},
    ),
    Injection(
        "box", "a NaN box", spoil=_bad_box,
        says={"phase": "the batch itself", "tensor": "boxes", "images": "{image}", "likely": "bad box"},
    ),
    Injection(
        "block", f"{BLOCK}.conv times 1e8 before each step, until it overflows", each=_scale,
        says={"phase": "in the network, forward", "module": BLOCK, "likely": "huge weights in one block"},
    ),
    Injection(
        "half", f"float16, and {BLOCK}.conv times 1e5", put_in=_half,
        says={"phase": "in the network, forward", "module": BLOCK, "likely": "half-precision overflow"},
    ),
    Injection(
        "softmax-log", "softmax().log() in CWD, logits 1000 times as wide", put_in=_softmax_then_log, is_student=True,
        says={"phase": "in the loss", "operation": "aten.log", "where": HERE, "likely": "log of zero"},
    ),
    Injection(
        "clamps", "KL with unequal clamps, which goes below zero", put_in=_unequal_clamps, is_student=True,
        says={"message": "cwd below zero", "phase": "in the loss", "first seen": "the loss part cwd", "where": HERE,
              "likely": "negative divergence"},
    ),
    Injection(
        "normalise", "a normalise of zeros without a guard: its value masked, its gradient not",
        put_in=_unguarded_normalise,
        says={"phase": "backward", "backward of": "DivBackward", "module": BLOCK, "where": HERE,
              "likely": "unguarded normalise"},
    ),
    Injection(
        "rate", "learning rate 1e6", each=_rate(1e6), settings={"maxEpoch": 8},
        says={"warned": "spike in", "before": "spike in", "phase": "in the network, forward",
              "likely": "learning rate too high"},
    ),
    Injection("nothing", "nothing, for comparison: the first steps of a run", group=QUIET, is_fresh=True, says=_FINITE),
    Injection("no-boxes", "a batch without boxes", spoil=_no_boxes, group=QUIET,
              says={**_FINITE, "without boxes": "of 3"}),
    Injection(
        "no-class", "batches without any of the selected classes", group=QUIET, is_fresh=True,
        settings={"trainSelectedClasses": "rarest"}, says={**_FINITE, "without boxes": "of 3"},
    ),
    Injection("zero-features", "zero feature vectors in teacher and student", put_in=_zero_features, group=QUIET,
              is_student=True, says=_FINITE),
    Injection("spread", "CWD at spread 1000", put_in=_wide_spread, group=QUIET, is_student=True, is_fresh=True,
              says=_FINITE),
    Injection(
        "ciou", "the root of -1e-12 in ciou", put_in=_root_in_ciou, group=UNPREPARED,
        says={"phase": "in the loss", "operation": "aten.sqrt", "where": HERE, "first seen": "loss.ciou",
              "likely": "root of a negative number"},
    ),
    Injection(
        "in-place", "a feature map gets Inf in its first image and is masked by a product, both in place",
        put_in=_infinity_times_zero, group=UNPREPARED,
        says={"phase": "in the network, forward", "operation": "mul_", "module": BLOCK, "where": HERE,
              "likely": "zero times infinity"},
    ),
    Injection(
        "own-silu", "a SiLU by hand that divides by zero backward", put_in=_own_silu, group=UNPREPARED,
        says={"phase": "backward", "where": HERE, "module": BLOCK, "likely": "custom backward"},
    ),
    Injection(
        "average", "a NaN written into the average", put_in=_poison_average, group=UNPREPARED, holds=("files",),
        says={"message": "average.backbone.l0.conv.weight is not finite"},
    ),
    Injection(
        "nan-rate", "a learning rate of NaN", each=_rate(math.nan), group=UNPREPARED,
        says={"error": "learning rate nan", "left": "all finite"},
    ),
)  # fmt: skip
