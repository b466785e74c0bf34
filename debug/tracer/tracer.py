"""Finds the operation that first produced a bad value: the step is run again under the recorder and followed backwards.

A value is bad when it is NaN or infinite. A part of the loss below zero is traced, too, because all parts are
divergences, cross-entropies or 1 - CIoU.

Every operation that read a bad value is followed back to operations that read none: the candidates, called origins.
Infinities that are masked away lie on no such path, so they are no candidates. When several candidates remain, the step
is run again for each of them, with the bad values of all others replaced by zeros.
"""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from config.errors import UserError
from debug.tracer.causes import BELOW_ZERO_SOURCE, NEGATIVE_FACTOR, likely_cause
from debug.tracer.findings import GradientJump, Phase, Producer, Trace
from debug.tracer.operations import CONSTANT, NUMBER, UNINITIALISED, Operation
from debug.tracer.rerun import TracedResult, TracedStep, bad_inputs, bad_weights, run
from model.weightsfile import read_weights
from ops.device import dtype_name
from train.guard import BELOW_ZERO

MOST_TRIALS = 6  # candidates that are tried alone
STEEP_JUMP = 1e5  # ratio of a backward result to what it read, from which it is reported

# Operations that place values and compute nothing; and the sum, by which masks of infinities are added to scores.
PLACING = {
    "masked_fill", "full", "full_like", "new_full", "fill", "where", "index_fill", "index_put", "scatter", "copy",
    "constant_pad_nd", "masked_scatter", "cat", "stack", "clone", "_to_copy", "scalar_tensor", "add",
}  # fmt: skip
JOINING = {"stack", "cat", "add", "sum", "mean"}  # their result is negative when all that they read is negative


class Origin(NamedTuple):
    """Where a bad value began: in an operation, or in a leaf that this operation was the first to read."""

    op: int
    leaf: str | None = None  # a weight's name, a part of the batch; None: the operation itself produced it


def trace(step: TracedStep) -> Trace:
    """Run forward pass, loss and backward pass of a step again and name what first produced a bad value.

    Weights, buffers, gradients, modes and random states are afterwards bit for bit what they were. An exception of the
    step is kept in `Trace.error`. A step without bad values gives the growth table alone.
    """
    started = time.perf_counter()
    found = Trace(image_ids=step.batch.image_ids, precision=dtype_name(step.precision))
    found.bad_inputs = bad_inputs(step.batch, step.num_classes)
    found.bad_weights = bad_weights(step.tensors)
    if any(bad.part == "labels" for bad in found.bad_inputs):  # on a GPU, computing with them would abort the process
        _set_input(found, "labels", "the labels were checked before anything was computed")
    else:
        result = run(step)
        ops = result.recorder.ops
        found.growth, found.probes = result.table.blocks, result.recorder.probes
        found.parts, found.error, found.num_operations = result.parts, result.error, len(ops)
        if not result.error:
            harmful = ancestry(ops, result.ends)
            found.num_harmless = sum(
                op.is_bad and not op.bad_reads and not op.bad_leaves and op.index not in harmful for op in ops
            )
        found.jump = steepest_jump(ops)
        _set_producer(found, step, result)
    found.cause = likely_cause(found)
    is_own = found.producer is not None and not (found.producer.tensor or "").startswith("teacher.")
    if found.phase == "weights" and step.weights_file is not None and is_own:
        found.notes = [*found.notes, _compare_with_file(found, Path(step.weights_file))]
    found.seconds = time.perf_counter() - started
    return found


def _set_producer(found: Trace, step: TracedStep, result: TracedResult) -> None:
    """The producer of what is bad at the end; else of what is negative; else a bad input or weight by itself."""
    ops = result.recorder.ops
    ends = result.ends or (tuple(op.index for op in ops if op.is_bad)[-1:] if result.error else ())
    candidates = find_origins(ops, ends)
    what = "the error"
    if result.bad:
        first, *others = result.bad
        what = f"{first} (and {len(others)} more)" if others else first
    negative = [name for name, value in result.parts.items() if value < BELOW_ZERO and name in result.part_ops]
    no_effect = "it was found in the {}, but loss and gradients are finite"
    if candidates:
        origin, trials = _choose(step, result, candidates)
        buffers = {name for name, value in step.tensors.items() if not isinstance(value, nn.Parameter)}
        harm = first_harm(ops, origin, ends, allowed=buffers - {*found.bad_weights})
        found.producer = _producer_of(step, result, harm, origin)
        found.passed_on = [str(ops[index]) for index in descendants(ops, harm, ends)]
        found.evidence = f"{what} was followed back to it through {len(found.passed_on)} operations{trials}"
    elif result.leaves:
        found.producer, found.evidence = _leaf_producer(result.leaves[0]), f"{what} consists of it"
    elif negative:
        _set_negative(found, result, negative[0])
    elif found.bad_inputs:
        _set_input(found, found.bad_inputs[0].part, no_effect.format("batch"))
    elif found.bad_weights:
        found.producer, found.evidence = _leaf_producer(found.bad_weights[0]), no_effect.format("network")
    if found.producer is not None and found.producer.phase == "input" and found.producer.tensor:
        _set_input(found, found.producer.tensor, found.evidence)


def _choose(step: TracedStep, result: TracedResult, candidates: list[Origin]) -> tuple[Origin, str]:
    """The first candidate whose bad value reaches the end although all others are zeros; and what was tried."""
    if len(candidates) == 1:
        return candidates[0], ""
    for candidate in candidates[:MOST_TRIALS]:
        others = [origin for origin in candidates if origin != candidate]
        again = run(
            step,
            frozenset(origin.op for origin in others if origin.leaf is None and origin.op != candidate.op),
            frozenset(origin.leaf for origin in others if origin.leaf is not None),
        )
        if again.bad or (again.error and again.error == result.error):
            plural = "s" * (len(others) > 1)
            return candidate, f"; {len(others)} other candidate{plural} replaced by zeros: the result is still bad"
    return candidates[0], f"; only {len(candidates)} candidates together make the result bad, this is the first"


def _producer_of(step: TracedStep, result: TracedResult, harm: Origin, origin: Origin) -> Producer:
    """`harm`: the first operation at fault; `origin`: the same, or the intended infinity that it turned into NaN."""
    recorder = result.recorder
    op = recorder.ops[harm.op]
    if harm.leaf is not None:
        # No step should write its weights: an operation that does may have made this one bad in an earlier step.
        writers = (w for w in recorder.ops if recorder.has_written(w, harm.leaf) and "batch_norm" not in w.base)
        suspects = (f"{writer} writes it during the step and may have made it bad" for writer in writers)
        return _leaf_producer(harm.leaf, op, next(suspects, None))
    source = None
    if origin.leaf is not None:
        source = f"an infinity in {origin.leaf}"
    elif origin != harm:
        source = f"an infinity written by {recorder.ops[origin.op]}"
    elif UNINITIALISED in op.bad_leaves or CONSTANT in op.bad_leaves:
        source = UNINITIALISED if UNINITIALISED in op.bad_leaves else CONSTANT
    elif op.has_bad_number:
        source = NUMBER
    # The first named tensor that saw the value.
    seen_by = (name for name, ops in recorder.bad_probes.items() if harm.op in ancestry(recorder.ops, ops))
    tensor = next(seen_by, None)
    if tensor is None and harm.op in result.gradient_of:
        tensor = f"the gradient of {result.gradient_of[harm.op]}"
    trained_beside = {type(module).__name__ for module in step.objective.extra_modules}
    networks = {name.partition(".")[0] for name in recorder.modules.names.values()} - trained_beside
    is_in_network = op.location.module.partition(".")[0] in networks
    phase: Phase = "backward" if op.is_backward else "forward" if is_in_network else "loss"
    ids = step.batch.image_ids
    return Producer(
        phase, op.name, op.location.module, op.location.lines, tensor, op.node, op.inputs, op.outputs, op.numbers,
        tuple(ids[row] for row in op.rows if row < len(ids)), source,
    )  # fmt: skip


def _leaf_producer(leaf: str, op: Operation | None = None, source: str | None = None) -> Producer:
    """`op`: the first operation that read the leaf."""
    phase: Phase = "input" if leaf in ("images", "boxes", "labels") else "weights"
    if op is None:
        return Producer(phase, "", tensor=leaf, source=source)
    inputs = tuple(stats for stats in op.inputs if stats.name == leaf)
    return Producer(phase, "", op.location.module, op.location.lines, leaf, inputs=inputs, source=source)


def _set_input(found: Trace, part: str, evidence: str) -> None:
    bad = next((bad for bad in found.bad_inputs if bad.part == part), None)
    if bad is not None:
        found.producer = Producer("input", "", tensor=part, image_ids=bad.image_ids, source=bad.description)
        found.evidence = evidence


def _set_negative(found: Trace, result: TracedResult, part: str) -> None:
    ops = result.recorder.ops
    op = ops[first_negative(ops, result.part_ops[part])]
    lows = [ops[index].range.low for index in op.reads]
    is_factor = op.base in ("mul", "div", "neg") and lows and min(lows) >= 0
    found.producer = Producer(
        "loss", op.name, op.location.module, op.location.lines, f"the loss part {part}, {result.parts[part]:.4g}",
        op.node, source=NEGATIVE_FACTOR if is_factor else BELOW_ZERO_SOURCE,
    )  # fmt: skip
    found.evidence = f"the loss part {part} is below zero, and this operation is the first one whose result is negative"


def _compare_with_file(found: Trace, path: Path) -> str:
    """Did the first bad weight come with the starting weights? A file with non-finite weights cannot be loaded."""
    name = (found.producer.tensor if found.producer else None) or ""
    try:
        tensors = read_weights(path).tensors
    except UserError as error:
        return f"it is not known whether {name} came with the starting weights ({error})"
    if name not in tensors:
        return f"{name} is not in {path}: it did not come with the starting weights"
    return f"{name} is finite in {path}: it became bad after loading"


# The graph of operations.


def ancestry(ops: Sequence[Operation], ends: Iterable[int]) -> set[int]:
    """These operations, and all whose bad values they were made from."""
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        index = waiting.pop()
        if index not in found:
            found.add(index)
            waiting += ops[index].bad_reads
    return found


def find_origins(ops: Sequence[Operation], ends: Iterable[int]) -> list[Origin]:
    """The candidates behind these operations, in the order in which they ran.

    A bad leaf is named with its first reader; one without a name counts as its reader.
    """
    found: dict[Origin, None] = {}
    named: set[str] = set()
    for index in sorted(ancestry(ops, ends)):
        op = ops[index]
        if not op.bad_reads and not op.bad_leaves:
            found[Origin(index)] = None
        for leaf in op.bad_leaves:
            is_unnamed = leaf in (CONSTANT, UNINITIALISED)
            if is_unnamed or leaf not in named:
                found[Origin(index, None if is_unnamed else leaf)] = None
                named.add(leaf)
    return list(found)


def first_harm(ops: Sequence[Operation], origin: Origin, ends: Iterable[int], allowed: Iterable[str] = ()) -> Origin:
    """For an infinity that the code places, as masks do: the first operation that made NaN of it. Else the origin.

    `-inf` is a correct value for what is masked. The fault is where it met zero, itself, or a row without any finite
    entry. `allowed`: leaves whose infinities are such masks.
    """
    op = ops[origin.op]
    if origin.leaf is not None:
        is_mask = origin.leaf in allowed
    else:
        is_placed = op.has_bad_number or CONSTANT in op.bad_leaves
        is_mask = is_placed and op.base in PLACING and not op.has_written_nan
    if not is_mask:
        return origin
    for index in sorted(ancestry(ops, ends)):
        if ops[index].has_written_nan and not ops[index].has_read_nan and origin.op in ancestry(ops, [index]):
            return Origin(index)
    return origin


def descendants(ops: Sequence[Operation], origin: Origin, ends: Iterable[int]) -> list[int]:
    """The operations between the origin and the ends that passed the bad value on, in order."""
    reached = {origin.op}
    passed = []
    for index in sorted(ancestry(ops, ends)):
        if index > origin.op and reached.intersection(ops[index].bad_reads):
            reached.add(index)
            passed.append(index)
    return passed


def steepest_jump(ops: Sequence[Operation]) -> GradientJump | None:
    """The backward operation whose result is largest relative to what it read, from `STEEP_JUMP` on."""
    jumps = []
    for op in ops:
        # Only the tracer's own product with the scale has no line.
        if op.is_backward and not op.is_bad and op.location.line is not None:
            before = max((ops[index].range.peak for index in op.reads if not ops[index].is_bad), default=0.0)
            if before > 0 and op.range.peak / before > STEEP_JUMP:
                jumps.append(GradientJump(op, before, op.range.peak))
    return max(jumps, key=lambda jump: jump.ratio, default=None)


def first_negative(ops: Sequence[Operation], end: int) -> int:
    """From an operation with a negative result back to the one that made it negative, from terms of both signs."""
    while True:
        op = ops[end]
        negative = [index for index in op.reads if ops[index].range.high < 0]
        is_sum_of_negatives = op.base in JOINING and len(negative) == len(op.reads)
        if not negative or not (len(negative) == 1 or is_sum_of_negatives):
            return end
        end = negative[0]
