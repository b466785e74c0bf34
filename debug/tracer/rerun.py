"""Runs one step under the recorder, exactly as the training step computes it, and collects what came out bad.

Network, batch and random states are afterwards what they were, whatever happens in the step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from debug.tracer.findings import BadInput, GrowthTable
from debug.tracer.operations import replace_nonfinite, rows_with
from debug.tracer.recorder import ModuleStack, Recorder
from ops.batch import Batch, network_input
from ops.device import autocast
from ops.random_states import random_states, restore_random_states
from train.objective import DistillationObjective, Objective

LARGEST_PIXEL = 65535  # absolute value, of images with 16 bits; larger values are no pixels


@dataclass(frozen=True)
class TracedStep:
    """A step to trace, and what it began with."""

    model: nn.Module
    objective: Objective
    batch: Batch
    precision: torch.dtype
    scale: float = 1.0  # of the gradients, as the gradient scaler had it
    sum_over_batch: bool = True
    buffers: Mapping[str, Tensor] | None = None  # of `model`, from before the step, by name; None: as they are
    random: Mapping[str, Any] | None = None  # `random_states()` from before the step; None: as they are
    weights_file: str | Path | None = None  # that the run started from

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Prefix of the names -> the network, the modules that are trained beside it, and the teacher."""
        found: dict[str, nn.Module] = {"": self.model}
        for module in self.objective.extra_modules:
            found[type(module).__name__] = module
        if isinstance(self.objective, DistillationObjective):
            num_classes = self.num_classes or 1
            found["teacher"] = self.objective.teacher.as_student(num_classes).network
        return found

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Name -> every parameter and buffer of `modules`."""
        return {
            f"{prefix}.{name}" if prefix else name: value
            for prefix, module in self.modules.items()
            for name, value in (*module.named_parameters(), *module.named_buffers())
        }

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the network or its loss knows; None when neither has the attribute."""
        owners = (self.model, self.objective, getattr(self.objective, "loss", None))
        counts = (getattr(owner, "num_classes", None) for owner in owners)
        return next((count for count in counts if isinstance(count, int)), None)


@dataclass
class TracedResult:
    """What the step computed. `ends`: the operations that produced what is bad; `leaves`: bad leaves among it."""

    recorder: Recorder
    table: GrowthTable
    ends: tuple[int, ...] = ()
    leaves: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()  # names of what is bad: the loss, a buffer, a gradient
    gradient_of: dict[int, str] = field(default_factory=dict)  # operation -> the parameter whose gradient it wrote
    parts: dict[str, float] = field(default_factory=dict)
    part_ops: dict[str, int] = field(default_factory=dict)  # part of the loss -> the operation that produced it
    error: str = ""

    def take(self, values: Mapping[str, Tensor]) -> None:
        """Keep the names of the values that are bad, and the operations or leaves that they come from."""
        ends, leaves, bad = [], [], []
        for name, value in values.items():
            if value.detach().isfinite().all():
                continue
            bad.append(name)
            writers = self.recorder.bad_writers(value)
            ends += writers
            if not writers:
                leaves.append(self.recorder.leaf_of(value))
        self.bad, self.leaves = tuple(bad), tuple(dict.fromkeys(leaves))
        self.ends = tuple(dict.fromkeys(ends))


def run(
    step: TracedStep, zeroed: frozenset[int] = frozenset(), zeroed_leaves: frozenset[str] = frozenset()
) -> TracedResult:
    """Forward pass, loss and backward pass, once.

    `zeroed`, `zeroed_leaves`: operations and leaves whose bad values are replaced by zeros. An exception of the step is
    kept in the result, with all that was recorded before it.
    """
    batch = step.batch
    with side_effect_free(list(step.modules.values()), (batch.images, batch.boxes, batch.labels, batch.valid)):
        if step.random is not None:
            restore_random_states(dict(step.random))
        leaves = {**step.tensors, "images": batch.images, "boxes": batch.boxes}
        with torch.no_grad():
            buffers = dict(step.model.named_buffers())
            for name, value in (step.buffers or {}).items():
                if name in buffers:
                    buffers[name].copy_(value)
            for name in zeroed_leaves & leaves.keys():
                replace_nonfinite(leaves[name])
        recorder = Recorder(ModuleStack(step.modules), len(batch), zeroed)
        result = TracedResult(recorder, GrowthTable(step.model, recorder))
        for name, value in leaves.items():
            recorder.name_leaf(name, value, is_weight=name in step.tensors)
        try:
            with torch.enable_grad(), recorder.recording():
                total = _forward(step, result)
                if not result.bad and total.requires_grad:
                    recorder.is_backward = True
                    _backward(step, result, total)
        except Exception as error:  # the report names it: a trace must not hide what it was made for
            result.error = f"{type(error).__name__}: {error}"
    result.table.take_gradients(recorder.ops)
    return result


@contextmanager
def side_effect_free(modules: Sequence[nn.Module], tensors: Sequence[Tensor] = ()) -> Iterator[None]:
    """After the block, also after an exception, everything is bit for bit as before.

    Restored are weights, buffers, gradients, `requires_grad`, the modes of the modules, `tensors`, and every random
    state. Needs the memory of all these once more.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    all_tensors = [*parameters, *(buffer for module in modules for buffer in module.buffers()), *tensors]
    values = [tensor.detach().clone(memory_format=torch.preserve_format) for tensor in all_tensors]
    gradients = [(p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    are_trained = [parameter.requires_grad for parameter in parameters]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    states = random_states()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(all_tensors, values, strict=True):
                tensor.copy_(value)
            for parameter, (gradient, value), is_trained in zip(parameters, gradients, are_trained, strict=True):
                parameter.requires_grad_(is_trained)
                parameter.grad = None if gradient is None or value is None else gradient.copy_(value)
        for part, is_training in modes:
            part.training = is_training
        restore_random_states(states)


def bad_inputs(batch: Batch, num_classes: int | None) -> list[BadInput]:
    """Pixels and boxes that are not finite, pixels far out of range, and labels that are no class.

    Boxes of the padding count, because the loss computes with them; labels of the padding may be anything.
    """
    found = []

    def add(part: str, is_bad: Tensor, describe: Callable[[], str]) -> None:
        if rows := rows_with(is_bad):
            ids = batch.image_ids
            names = tuple(ids[row] if row < len(ids) else f"row {row}" for row in rows)
            found.append(BadInput(part, describe(), names))

    if batch.images.is_floating_point():
        is_bad = ~batch.images.isfinite()
        add("images", is_bad, lambda: f"{int(is_bad.sum())} pixel values are NaN or infinite")
        if not found:
            size = batch.images.abs()
            add("images", size > LARGEST_PIXEL, lambda: f"pixel values up to {size.max():.3g}, expected 0 .. 255")
    is_bad_box = ~batch.boxes.isfinite().all(dim=-1)
    padding = int((is_bad_box & ~batch.valid).sum())
    in_padding = f", {padding} of them padding" if padding else ""
    add("boxes", is_bad_box, lambda: f"{int(is_bad_box.sum())} boxes are NaN or infinite{in_padding}")
    if num_classes is not None:
        is_bad_label = ((batch.labels < 0) | (batch.labels >= num_classes)) & batch.valid
        values = ", ".join(map(str, sorted(set(batch.labels[is_bad_label].tolist()))))
        add("labels", is_bad_label, lambda: f"labels {values} are outside of the classes 0 .. {num_classes - 1}")
    return found


def bad_weights(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights and buffers that are not finite.

    Infinities in a buffer may be intended, as in masks, unless it is a statistic of batch norm.
    """
    return [
        name
        for name, value in tensors.items()
        if value.isnan().any()
        or ((isinstance(value, nn.Parameter) or _is_statistic(name)) and not value.detach().isfinite().all())
    ]


def _is_statistic(name: str) -> bool:
    """Is a buffer of this name a running mean or variance of batch norm?"""
    return name.rpartition(".")[2].startswith("running_")


def _forward(step: TracedStep, result: TracedResult) -> Tensor:
    """The loss. Batch norm's statistics are checked too: a batch that overflows them leaves batch norm as zeros."""
    with autocast(step.batch.images.device, step.precision):
        out = step.objective(step.model, network_input(step.batch.images), step.batch)
    with result.recorder.paused():
        result.parts = {name: float(value) for name, value in out.parts.items()}
        for name, value in out.parts.items():
            if (writer := result.recorder.last_writer(value)) is not None:
                result.part_ops[name] = writer
        for values in (
            {"the loss": out.total, **{f"the loss part {name}": value for name, value in out.parts.items()}},
            {f"an input of the loss ({name})": value for name, value in out.must_be_finite.items()},
            {name: value for name, value in step.model.named_buffers() if _is_statistic(name)},
        ):
            if not result.bad:
                result.take(values)
    return out.total


def _backward(step: TracedStep, result: TracedResult, total: Tensor) -> None:
    """As the training step does it, then the norm of the gradients, which may overflow. No gradient is kept."""
    parameters = {
        name: value for name, value in step.tensors.items() if isinstance(value, nn.Parameter) and value.requires_grad
    }
    if not parameters:
        return
    total = total * (float(len(step.batch)) if step.sum_over_batch else 1.0) * step.scale
    # The loss may depend on tensors of other code, outside of the modules; their gradients stay as they are.
    own = {id(parameter) for parameter in parameters.values()}
    others = [(leaf, leaf.grad) for leaf in leaves_of(total) if id(leaf) not in own]
    for leaf in (*parameters.values(), *(leaf for leaf, _ in others)):
        leaf.grad = None
    try:
        total.backward()  # unlike autograd.grad, it runs gradient hooks and allows checkpoint(use_reentrant=True)
    finally:
        for leaf, gradient in others:
            leaf.grad = gradient
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    recorder = result.recorder
    with recorder.paused():
        result.take({f"the gradient of {name}": gradient for name, gradient in gradients.items()})
        for name, gradient in gradients.items():
            for index in recorder.bad_writers(gradient):
                op = recorder.ops[index]
                copied = op.bad_reads if op.base in ("clone", "copy") else ()
                for writer in (index, *copied):
                    result.gradient_of.setdefault(writer, name)
    if not result.bad and gradients:
        norms = torch.stack([torch.linalg.vector_norm(gradient / step.scale) for gradient in gradients.values()])
        norm = torch.linalg.vector_norm(norms)
        with recorder.paused():
            result.take({"the norm of the gradients": norm})


def leaves_of(total: Tensor) -> list[Tensor]:
    """The tensors whose gradients a backward pass of `total` writes."""
    nodes, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            waiting += [after for after, _ in node.next_functions]
    return [node.variable for node in nodes if hasattr(node, "variable")]
