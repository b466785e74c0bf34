"""Where a bad value was born: the step is gone through again, operation by operation, and followed back from its end.

Bad: NaN or infinite; and a part of the loss below zero, which no divergence and no cross-entropy may be.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from config.errors import UserError
from debug.tracer.causes import likely_cause
from debug.tracer.findings import Jump, Passed, Phase, Producer, Trace
from debug.tracer.inputs import bad_inputs, bad_weights, num_classes_of
from debug.tracer.lineage import (
    Birth,
    ancestry,
    births,
    descendants,
    first_look_out,
    harmed_by,
    turned_negative,
)
from debug.tracer.locations import Frame
from debug.tracer.operations import CONSTANT, NEGATIVE_FACTOR, UNWRITTEN, Op
from debug.tracer.rerun import Outcome, Step, run
from model.weightsfile import read_weights
from ops.batch import Batch
from ops.precision import dtype_name
from train.guard import BELOW_ZERO
from train.objective import Objective

TRIED_OUT = 6  # candidates, at most, that are tried one by one
WORTH_A_LINE = 1e5  # times what it read: an operation of the backward pass that multiplies so is shown

__all__ = ["Trace", "trace"]


def trace(  # noqa: PLR0913 (the step, and what it began with)
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    precision: torch.dtype,
    *,
    scale: float = 1.0,
    sum_over_batch: bool = True,
    buffers: Mapping[str, Tensor] | None = None,
    random: Mapping[str, Any] | None = None,
    weights_file: str | Path | None = None,
) -> Trace:
    """Forward, loss and backward of `batch` again, watched; what made the first bad value that reached their end.

    `scale`: of the gradients, as the scaler had it. `buffers` (by their names) and `random` (`random_states()`) are
    put in place for the trace: those from before the step. `weights_file`: what the run started from, to tell whether
    a bad weight came with it. Weights, buffers, gradients, modes and random states are afterwards bit for bit what they
    were; what the step raises is told in `Trace.error`. A batch with nothing wrong gives the growth table alone.
    """
    started = time.perf_counter()
    step = Step(model, objective, batch, precision, scale, sum_over_batch, buffers, random)
    found = Trace(image_ids=batch.image_ids, precision=dtype_name(precision))
    found.bad_inputs = bad_inputs(batch, num_classes_of(model, objective))
    found.bad_weights = bad_weights(step.modules())
    if any(one.part == "labels" for one in found.bad_inputs):
        _blame_input(found, "labels", "they were looked at before anything was computed")  # on a GPU they would kill it
    else:
        outcome = run(step)
        _keep(found, outcome)
        _judge(found, step, outcome)
    found.phase = found.producer.phase if found.producer else None
    found.is_reproduced = found.producer is not None
    found.cause = likely_cause(found)
    is_own = found.producer is not None and not (found.producer.tensor or "").startswith("teacher.")
    if found.phase == "weights" and weights_file is not None and is_own:
        found.notes = [*found.notes, _in_the_file(found, Path(weights_file))]
    found.seconds = time.perf_counter() - started
    return found


def _keep(found: Trace, outcome: Outcome) -> None:
    ops = outcome.recorder.ops
    found.growth, found.probes = outcome.table.blocks, outcome.recorder.probes
    found.parts, found.error, found.operations = outcome.parts, outcome.error, len(ops)
    behind = ancestry(ops, outcome.ends)
    found.harmless = sum(
        op.is_bad and not op.bad_reads and not op.bad_leaves and op.index not in behind for op in ops
    ) * (not outcome.error)
    found.jump = _sharpest_jump(ops)


def _judge(found: Trace, step: Step, outcome: Outcome) -> None:
    """Name the producer: of what is bad at the end, else of what is negative, else a bad input or weight by itself."""
    ops = outcome.recorder.ops
    ends = outcome.ends or (tuple(op.index for op in ops if op.is_bad)[-1:] if outcome.error else ())
    candidates = births(ops, ends)
    if candidates:
        birth, how = _tried_out(step, outcome, candidates)
        origin, birth = birth, harmed_by(ops, birth, ends, _masks(step, found))
        found.producer = _producer(outcome, birth, origin, step)
        found.passed_on = [_passed(ops[index]) for index in descendants(ops, birth, ends)]
        found.how = f"{_end_in_words(outcome)} goes back to it through {len(found.passed_on)} operations{how}"
    elif outcome.leaves:
        _blame_leaf(found, outcome.leaves[0], f"{_end_in_words(outcome)} is made of it")
    elif negative := _negative_part(outcome):
        _blame_negative(found, outcome, negative)
    elif found.bad_inputs:
        _blame_input(
            found, found.bad_inputs[0].part, "it was found in the batch; loss and gradients are finite all the same"
        )
    elif found.bad_weights:
        how = "it was found in the network; loss and gradients are finite all the same"
        _blame_leaf(found, found.bad_weights[0], how)
    if found.producer is not None and found.producer.phase == "input":
        for one in found.bad_inputs:
            if one.part == found.producer.tensor:
                _blame_input(found, one.part, found.how)


def _masks(step: Step, found: Trace) -> set[str]:
    """Names of the buffers whose infinities are meant."""
    buffers = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in step.modules().items()
        for name, _ in module.named_buffers()
    }
    return buffers - {*found.bad_weights}


def _tried_out(step: Step, outcome: Outcome, candidates: list[Birth]) -> tuple[Birth, str]:
    """Of several candidates the first that spoils the end although all others are healed."""
    if len(candidates) == 1:
        return candidates[0], ""
    asked = candidates[:TRIED_OUT]
    for birth in asked:
        others = [one for one in candidates if one != birth]
        again = run(
            step,
            frozenset(one.op for one in others if one.leaf is None and one.op != birth.op),
            frozenset(one.leaf for one in others if one.leaf is not None),
        )
        if again.bad or (again.error and again.error == outcome.error):
            count = len(candidates) - 1
            return (
                birth,
                f"; {count} other{'s' * (count > 1)} mixed in was tried out: it alone, the rest healed, spoils it",
            )
    return candidates[0], f"; {len(candidates)} places spoil it only together, this is the first"


def _producer(outcome: Outcome, birth: Birth, origin: Birth, step: Step) -> Producer:
    op = outcome.recorder.ops[birth.op]
    if birth.leaf is not None:
        return _leaf_producer(birth.leaf, op, _written_in_place(outcome, birth.leaf))
    source = None
    if origin.leaf is not None:
        source = f"an infinity in {origin.leaf}"
    elif origin != birth:
        first = outcome.recorder.ops[origin.op]
        place = f" at {_place(first)}" if first.site.frames else ""
        source = f"an infinity written by {first.name}{place}"
    elif UNWRITTEN in op.bad_leaves or CONSTANT in op.bad_leaves:
        source = UNWRITTEN if UNWRITTEN in op.bad_leaves else CONSTANT
    elif op.has_bad_number:
        source = "a number in the call"
    learned = {type(one).__name__ for one in step.objective.extra_modules}
    networks = {name.partition(".")[0] for name in outcome.recorder.modules.names.values()} - learned
    image_ids = step.batch.image_ids
    tensor = first_look_out(outcome.recorder.ops, birth, outcome.recorder.bad_probes)
    if tensor is None and birth.op in outcome.gradient_of:
        tensor = f"the gradient of {outcome.gradient_of[birth.op]}"
    return Producer(
        _phase_of(op, networks), op.name, op.site.module, op.site.frames, tensor, op.node, op.inputs, op.outputs,
        op.numbers, tuple(image_ids[row] for row in op.rows if row < len(image_ids)), source,
    )  # fmt: skip


def _written_in_place(outcome: Outcome, leaf: str) -> str | None:
    """Which operation of the step writes a weight, which none should: this step may have spoilt it itself."""
    recorder = outcome.recorder
    for op in recorder.ops:
        if recorder.is_written_by(op, leaf) and "batch_norm" not in op.base:
            place = f" at {_place(op)}" if op.site.frames else ""
            return f"{op.name}{place} writes it in the middle of the step: it may have been spoilt there"
    return None


def _leaf_producer(leaf: str, op: Op | None = None, source: str | None = None) -> Producer:
    phase: Phase = "input" if leaf in ("images", "boxes", "labels") else "weights"
    reader = () if op is None else op.site.frames
    seen = tuple(one for one in op.inputs if one.name == leaf) if op else ()
    return Producer(phase, "", op.site.module if op else "", reader, leaf, None, seen, source=source)


def _phase_of(op: Op, networks: set[str]) -> Phase:
    if op.is_backward:
        return "backward"
    return "forward" if op.site.module.partition(".")[0] in networks else "loss"


def _blame_leaf(found: Trace, leaf: str, how: str) -> None:
    found.producer, found.how = _leaf_producer(leaf), how


def _blame_input(found: Trace, part: str, how: str) -> None:
    bad = next(one for one in found.bad_inputs if one.part == part)
    found.producer = Producer("input", "", tensor=part, image_ids=bad.image_ids, source=bad.words)
    found.how = how


def _negative_part(outcome: Outcome) -> str | None:
    below = (name for name, value in outcome.parts.items() if value < BELOW_ZERO and name in outcome.part_ops)
    return next(below, None)


def _blame_negative(found: Trace, outcome: Outcome, part: str) -> None:
    ops = outcome.recorder.ops
    op = ops[turned_negative(ops, outcome.part_ops[part])]
    name = f"the part {part}, {outcome.parts[part]:.4g}"
    lows = [ops[index].span.low for index in op.reads]
    is_factor = op.base.rstrip("_") in ("mul", "div", "neg") and lows and min(lows) >= 0
    source = NEGATIVE_FACTOR if is_factor else "below zero"
    found.producer = Producer("loss", op.name, op.site.module, op.site.frames, name, op.node, source=source)
    found.how = f"the part {part} of the loss is below zero, and the first result below zero on its way is this one's"


def _passed(op: Op) -> Passed:
    name = f"{op.name} ({op.node})" if op.node else op.name
    return Passed(name, op.site.module, _place(op))


def _place(op: Op) -> Frame | None:
    return next(iter(op.site.frames), None)


def _end_in_words(outcome: Outcome) -> str:
    if not outcome.bad:
        return "the error"
    first, *others = outcome.bad
    return f"{first} (and {len(others)} more)" if others else first


def _sharpest_jump(ops: list[Op]) -> Jump | None:
    found: Jump | None = None
    for op in ops:
        place = _place(op)
        if not op.is_backward or op.is_bad or place is None:  # without a place: the tracer's own product with the scale
            continue
        before = max((ops[index].span.peak for index in op.reads if not ops[index].is_bad), default=0.0)
        sharpest = found.after / found.before if found else WORTH_A_LINE
        if before > 0 and op.span.peak / before > sharpest:
            found = Jump(op.name, op.node or "", op.site.module, place, before, op.span.peak)
    return found


def _in_the_file(found: Trace, path: Path) -> str:
    """Is the first bad weight bad in the file, too?"""
    name = (found.producer.tensor if found.producer else None) or ""
    try:
        value = read_weights(path).tensors.get(name)
    except (UserError, OSError) as error:
        return f"whether {name} came with the starting weights is not known ({error})"
    if value is None:
        return f"{name} is not in {path}: it did not come with the starting weights"
    if value.isfinite().all():
        return f"{name} is finite in {path}: it went bad after loading"
    return f"{name} is bad in {path}: it came with the starting weights"
