"""The faults of `make faults`. Each is injected by patching at run time, with the report that is expected for it.

Patches are undone when the `ExitStack` closes. Changed weights, batches and rates belong to a trainer that is discarded
afterwards. Expectations name what a user reads: rows of the report on a non-finite step, or an error message.
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

ALL = ("weights", "momentum", "EMA", "files")
HERE = "injections.py"
STOPPED, QUIET, STRUCTURAL, UNPREPARED = "stopped", "quiet", "structural", "unprepared"


@dataclass(frozen=True)
class Injection:
    """One fault. `inject` is called once, just before a step; `before_each` before that step and all later ones."""

    name: str
    description: str
    expected: Mapping[
        str, str
    ]  # row of the report, or name of a message -> text it must contain; {image}: the bad image
    inject: Callable[[Trainer, ExitStack], None] | None = None
    before_each: Callable[[Trainer], None] | None = None
    change_batch: Callable[[Batch], Batch] | None = None
    group: str = STOPPED
    is_student: bool = False
    is_fresh: bool = False  # True: in the first step of a run; False: in its second epoch
    settings: Mapping[str, Any] = field(default_factory=dict)
    protected: tuple[str, ...] = ALL  # parts that the refused step must not change


# Faults in the arithmetic


def _logits(trainer: Trainer, patches: ExitStack) -> None:
    assign = TaskAlignedAssigner.__call__

    def with_logits(self: Any, scores: Tensor, *tensors: Tensor) -> Any:
        return assign(self, scores.logit(), *tensors)

    patches.enter_context(patch.object(TaskAlignedAssigner, "__call__", with_logits))


def _zero_normaliser(trainer: Trainer, patches: ExitStack) -> None:
    probe = train.loss.probe

    def without_clamp(name: str, value: Tensor) -> Tensor:
        return probe(name, value * 0 if name == "loss.normaliser" else value)

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
        spread = (overlap - overlap.detach()) - 1e-12  # like a variance that is negative because of rounding
        return overlap - 0.1 * spread.sqrt()

    patches.enter_context(patch.object(train.loss, "ciou", rooted_ciou))


def _zero_features(trainer: Trainer, patches: ExitStack) -> None:
    forward = Neck.forward

    def zeros(self: Neck, *features: Tensor) -> Any:
        maps = forward(self, *features)
        return type(maps)(*(feature * 0 for feature in maps))

    patches.enter_context(patch.object(Neck, "forward", zeros))


def _wide_spread(trainer: Trainer, patches: ExitStack) -> None:
    cwd = train.distilloss.CWDLoss.__call__

    def stretched(maps: Tensor) -> Tensor:
        low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
        return (maps - low) / (high - low).detach().clamp(min=1e-6) * 1000

    def wide(self: Any, student: Tensor, teacher: Tensor) -> Tensor:
        return cwd(self, stretched(student.float()), stretched(teacher.float()))

    patches.enter_context(patch.object(train.distilloss.CWDLoss, "__call__", wide))


# Faults in the network


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
    trainer.stepper = trainer._build_stepper()
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
        x.add_(torch.where(is_first > 0, math.inf, 0.0))  # the mask below multiplies, so it does not remove them
        return x.mul_(1 - is_first)

    _change_output(trainer, patches, masked_in_place)


class OwnSiLU(torch.autograd.Function):
    """x * sigmoid(x). The forward pass is right; the backward pass divides by zero where x is negative enough."""

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


def _nan_in_ema(trainer: Trainer, patches: ExitStack) -> None:
    assert trainer.ema is not None
    next(trainer.ema.model.parameters()).data[0, 0, 1, 1] = math.nan


# Faults in the step and the batch


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
        "logits", "logits instead of probabilities for the assigner", inject=_logits,
        expected={"phase": "in the loss", "operation": "aten.pow", "where": "tal.py", "first seen": "tal.metric",
              "likely": "negative base"},
    ),
    Injection(
        "normaliser", "a normaliser of zero", inject=_zero_normaliser,
        expected={"phase": "in the loss", "operation": "aten.div", "where": "train/loss.py",
                  "likely": "zero normaliser"},
    ),
    Injection(
        "pixel", "a NaN pixel", change_batch=_bad_pixel,
        expected={"phase": "the batch itself", "tensor": "images", "images": "{image}", "likely": "bad pixel"},
    ),
    Injection(
        "box", "a NaN box", change_batch=_bad_box,
        expected={"phase": "the batch itself", "tensor": "boxes", "images": "{image}", "likely": "bad box"},
    ),
    Injection(
        "block", f"{BLOCK}.conv times 1e8 before each step until it overflows", before_each=_scale,
        expected={"phase": "in the network, forward", "module": BLOCK, "likely": "huge weights in one block"},
    ),
    Injection(
        "half", f"float16, and {BLOCK}.conv times 1e5", inject=_half,
        expected={"phase": "in the network, forward", "module": BLOCK, "likely": "half-precision overflow"},
    ),
    Injection(
        "softmax-log", "softmax().log() in CWD, logits 1000 times as large", inject=_softmax_then_log, is_student=True,
        expected={"phase": "in the loss", "operation": "aten.log", "where": HERE, "likely": "log of zero"},
    ),
    Injection(
        "clamps", "KL divergence with unequal clamps, which becomes negative", inject=_unequal_clamps, is_student=True,
        expected={"message": "cwd below zero", "phase": "in the loss", "first seen": "the loss part cwd", "where": HERE,
              "likely": "negative divergence"},
    ),
    Injection(
        "normalise", "zeros normalised without a guard: the value is masked, its gradient is not",
        inject=_unguarded_normalise,
        expected={"phase": "backward", "backward of": "DivBackward", "module": BLOCK, "where": HERE,
              "likely": "unguarded normalise"},
    ),
    Injection(
        "rate", "learning rate 1e6", before_each=_rate(1e6), settings={"maxEpoch": 8},
        expected={"warned": "spike in", "before": "spike in", "phase": "in the network, forward",
              "likely": "learning rate too high"},
    ),
    Injection("nothing", "nothing (control): the first steps of a run", group=QUIET, is_fresh=True, expected=_FINITE),
    Injection("no-boxes", "a batch without boxes", change_batch=_no_boxes, group=QUIET,
              expected={**_FINITE, "without boxes": "of 3"}),
    Injection(
        "no-class", "batches without any of the selected classes", group=QUIET, is_fresh=True,
        settings={"trainSelectedClasses": "rarest"}, expected={**_FINITE, "without boxes": "of 3"},
    ),
    Injection("zero-features", "zero feature vectors in teacher and student", inject=_zero_features, group=QUIET,
              is_student=True, expected=_FINITE),
    Injection("spread", "CWD at spread 1000", inject=_wide_spread, group=QUIET, is_student=True, is_fresh=True,
              expected=_FINITE),
    Injection(
        "ciou", "the square root of -1e-12 in CIoU", inject=_root_in_ciou, group=UNPREPARED,
        expected={"phase": "in the loss", "operation": "aten.sqrt", "where": HERE, "first seen": "loss.ciou",
              "likely": "root of a negative number"},
    ),
    Injection(
        "in-place", "Inf in the first image of a feature map, masked by a product, both in place",
        inject=_infinity_times_zero, group=UNPREPARED,
        expected={"phase": "in the network, forward", "operation": "mul_", "module": BLOCK, "where": HERE,
              "likely": "zero times infinity"},
    ),
    Injection(
        "own-silu", "a custom SiLU that divides by zero in its backward pass", inject=_own_silu, group=UNPREPARED,
        expected={"phase": "backward", "where": HERE, "module": BLOCK, "likely": "custom backward"},
    ),
    Injection(
        "ema", "a NaN written into the EMA", inject=_nan_in_ema, group=UNPREPARED, protected=("files",),
        expected={"message": "EMA.backbone.l0.conv.weight is not finite"},
    ),
    Injection(
        "nan-rate", "a learning rate of NaN", before_each=_rate(math.nan), group=UNPREPARED,
        expected={"error": "learning rate nan", "left": "all finite"},
    ),
)  # fmt: skip
