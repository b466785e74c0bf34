"""One step gone through under the recorder, just as the stepper computes it, and what came out bad."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from debug.tracer.growth import GrowthTable
from debug.tracer.inputs import is_statistic, num_classes_of
from debug.tracer.locations import ModuleStack
from debug.tracer.recorder import Recorder
from debug.tracer.side_effect_free import untouched
from debug.tracer.tensor_stats import replace_nonfinite
from ops.batch import Batch, network_input
from ops.precision import autocast
from ops.random_states import restore_random_states
from train.objective import DistillationObjective, Objective


@dataclass(frozen=True)
class Step:
    """What a trace goes through. `buffers` and `random` are put in place for it where they are given."""

    model: nn.Module
    objective: Objective
    batch: Batch
    precision: torch.dtype
    scale: float = 1.0
    sum_over_batch: bool = True
    buffers: Mapping[str, Tensor] | None = None
    random: Mapping[str, Any] | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Prefix of the names -> the network, what is learned beside it, and the teacher."""
        found: dict[str, nn.Module] = {"": self.model}
        for one in self.objective.extra_modules:
            found[type(one).__name__] = one
        if isinstance(self.objective, DistillationObjective):
            known = num_classes_of(self.model, self.objective) or 1
            found["teacher"] = self.objective.teacher.as_student(known).network
        return found


@dataclass
class Outcome:
    """What the step came to. `ends`: the operations behind what is bad; `leaves`: bad leaves it came to untouched."""

    recorder: Recorder
    table: GrowthTable
    ends: tuple[int, ...] = ()
    leaves: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()  # what is bad, in words: the loss, a buffer, a gradient
    gradient_of: dict[int, str] = field(default_factory=dict)  # operation -> the parameter whose gradient it wrote
    parts: dict[str, float] = field(default_factory=dict)
    part_ops: dict[str, int] = field(default_factory=dict)  # the operation that a part of the loss comes from
    error: str = ""


def run(step: Step, healed: frozenset[int] = frozenset(), healed_leaves: frozenset[str] = frozenset()) -> Outcome:
    """Forward, loss and backward once; network, gradients and random states are afterwards what they were.

    `healed`, `healed_leaves`: operations and leaves whose bad values are taken for zeros. What the step raises is kept
    in the outcome, with all that was seen before it.
    """
    modules = step.modules()
    batch = step.batch
    with untouched(list(modules.values()), (batch.images, batch.boxes, batch.labels, batch.valid)):
        _prepare(step, modules, healed_leaves)
        recorder = Recorder(ModuleStack(modules), len(batch), healed)
        outcome = Outcome(recorder, GrowthTable(step.model, recorder))
        for prefix, module in modules.items():
            recorder.name_module(f"{prefix}." if prefix else "", module)
        for name in ("images", "boxes"):
            recorder.name_leaf(name, getattr(batch, name))
        try:
            with torch.enable_grad(), recorder.recording():
                _compute(step, outcome)
        except Exception as error:  # it is told on the page: a trace must not hide what it was made for
            outcome.error = f"{type(error).__name__}: {error}"
    outcome.table.take_gradients(recorder.ops)
    return outcome


def _prepare(step: Step, modules: Mapping[str, nn.Module], healed_leaves: frozenset[str]) -> None:
    if step.random is not None:
        restore_random_states(dict(step.random))
    leaves = {name: getattr(step.batch, name) for name in ("images", "boxes")}
    with torch.no_grad():
        own = dict(step.model.named_buffers())
        for name, value in (step.buffers or {}).items():
            if name in own:
                own[name].copy_(value)
        for prefix, module in modules.items():
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                leaves[f"{prefix}.{name}" if prefix else name] = value
        for name in healed_leaves & leaves.keys():
            replace_nonfinite(leaves[name])


def _compute(step: Step, outcome: Outcome) -> None:
    total = _forward(step, outcome)
    if not outcome.bad and total.requires_grad:
        outcome.recorder.is_backward = True
        _backward(step, outcome, total)


def _forward(step: Step, outcome: Outcome) -> Tensor:
    """The loss; what is bad is kept, the statistics too, for what batch norm cannot hold leaves through it as zeros."""
    recorder = outcome.recorder
    with autocast(step.batch.images.device, step.precision):
        out = step.objective(step.model, network_input(step.batch.images), step.batch)
    with recorder.paused():
        outcome.parts = {name: float(value) for name, value in out.parts.items()}
        for name, value in out.parts.items():
            if (writer := recorder.last_writer(value)) is not None:
                outcome.part_ops[name] = writer
        statistics = {name: value for name, value in step.model.named_buffers() if is_statistic(name)}
        for values in (
            {"the loss": out.total, **{f"the part {name}": one for name, one in out.parts.items()}},
            {f"what it is made from ({name})": one for name, one in out.watched.items()},
            statistics,
        ):
            if not outcome.bad:
                _take(outcome, values)
    return out.total


def _backward(step: Step, outcome: Outcome, total: Tensor) -> None:
    """As the stepper does, but that the gradients go nowhere; then their norm, which may overflow."""
    recorder = outcome.recorder
    parameters = {
        (f"{prefix}.{name}" if prefix else name): one
        for prefix, module in step.modules().items()
        for name, one in module.named_parameters()
        if one.requires_grad
    }
    if not parameters:
        return
    total = total * (float(len(step.batch)) if step.sum_over_batch else 1.0) * step.scale
    with _gradients_of_others(total, parameters.values()):
        for one in parameters.values():
            one.grad = None
        total.backward()  # not autograd.grad: hooks behind a gradient run, and checkpoint(use_reentrant=True) allows it
    found = {name: one.grad for name, one in parameters.items() if one.grad is not None}
    with recorder.paused():
        _take(outcome, {f"the gradient of {name}": one for name, one in found.items()})
        for name, one in found.items():
            for index in _behind_copies(recorder, one):
                outcome.gradient_of.setdefault(index, name)
    if not outcome.bad and found:
        norms = torch.stack([torch.linalg.vector_norm(one / step.scale) for one in found.values()])
        norm = torch.linalg.vector_norm(norms)
        with recorder.paused():
            _take(outcome, {"the gradient's norm": norm})


def _behind_copies(recorder: Recorder, gradient: Tensor) -> Iterator[int]:
    """The operations that put bad values into a gradient, and those whose result it is a copy of."""
    for index in recorder.bad_writers(gradient):
        yield index
        if recorder.ops[index].base in ("clone", "copy_"):
            yield from recorder.ops[index].bad_reads


@contextmanager
def _gradients_of_others(total: Tensor, ours: Iterable[Tensor]) -> Iterator[None]:
    """Within the block, a backward pass of `total` may fill gradients of leaves not ours; they are put back."""
    known, nodes, waiting = {id(one) for one in ours}, set(), [total.grad_fn]
    leaves: list[Tensor] = []
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            leaves.append(leaf)
        waiting += [after for after, _ in node.next_functions]
    gradients = [one.grad for one in leaves]
    for one in leaves:
        one.grad = None
    try:
        yield
    finally:
        for one, gradient in zip(leaves, gradients, strict=True):
            one.grad = gradient


def _take(outcome: Outcome, values: Mapping[str, Tensor]) -> None:
    """Keep those that are bad, and the operations or leaves behind them."""
    recorder, ends, leaves, bad = outcome.recorder, [], [], []
    for name, value in values.items():
        if value.detach().isfinite().all():
            continue
        bad.append(name)
        writers = recorder.bad_writers(value)
        ends += writers
        if not writers:
            leaves.append(recorder.leaf_of(value))
    outcome.bad, outcome.leaves = tuple(bad), tuple(dict.fromkeys(leaves))
    outcome.ends = tuple(dict.fromkeys(ends))
