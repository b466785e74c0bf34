"""The usual causes of bad values, as a table. The first entry that fits is reported; when none fits, none is."""

import math
import statistics
from collections.abc import Callable

from debug.tracer.findings import Cause, Producer, Trace
from debug.tracer.operations import CONSTANT, NUMBER, UNINITIALISED

BELOW_ZERO_SOURCE = "below zero"
NEGATIVE_FACTOR = "below zero, by a negative factor"
HUGE_WEIGHTS = 1e3  # largest absolute value of a block's weights; in a normal network it is below about 10
FLOAT16_LARGEST = 65504
EXP_LARGEST = {"float16": 11.09, "float32": 88.72, "bfloat16": 88.72, "float64": 709.78}  # logarithm of the largest
# Base names of operations.
MULTIPLYING = {"mul", "mm", "bmm", "addmm", "baddbmm", "convolution", "dot", "mv", "linear"}
DIVIDING = {"div", "reciprocal", "rsqrt", "true_divide"}
LOGARITHMS = {"log", "log2", "log10", "log1p"}
EXPONENTIALS = {"exp", "expm1", "exp2", "sinh", "cosh", "softplus"}
BOUNDED = {"acos", "asin", "atanh", "logit", "erfinv"}  # their domain is -1 .. 1 or 0 .. 1

Test = Callable[[Producer, Trace], bool]


def likely_cause(trace: Trace) -> Cause | None:
    """The first entry of the table that fits the trace's producer; None when none fits.

    Without a producer only huge weights are reported.
    """
    producer = trace.producer or Producer("forward", "")
    table = _TABLE if trace.producer else _WEIGHTS
    return next((cause for fits, cause in table if fits(producer, trace)), None)


def _self(p: Producer) -> tuple[float, float, bool]:
    """Low, high and whether it holds a zero, of the operation's first argument; NaN, NaN, False without one."""
    stats = p.input("self")
    return (stats.low, stats.high, stats.has_zero) if stats else (math.nan, math.nan, False)


def _is_backward_of(*names: str) -> Test:
    return lambda p, trace: p.node is not None and p.node.lower().startswith(tuple(f"{name}backward" for name in names))


def _has_negative_base(p: Producer, trace: Trace) -> bool:
    exponent = p.numbers.get("exponent")
    is_whole = isinstance(exponent, int) or (isinstance(exponent, float) and exponent.is_integer())
    return p.base.startswith("pow") and not is_whole and _self(p)[0] < 0


def _divides_by_zero(p: Producer, trace: Trace) -> bool:
    if p.base not in DIVIDING and not (p.base.startswith("pow") and p.numbers.get("exponent", 0) < 0):
        return False
    divisor = p.input("other") or (p.input("self") if "div" not in p.base else None)
    return divisor.has_zero if divisor else p.numbers.get("other") == 0


def _is_log_of_zero(p: Producer, trace: Trace) -> bool:
    low, _, has_zero = _self(p)
    is_at_edge = low == -1 if p.base == "log1p" else has_zero
    return p.base in LOGARITHMS and is_at_edge and not _is_log_of_negative(p, trace)


def _is_log_of_negative(p: Producer, trace: Trace) -> bool:
    return p.base in LOGARITHMS and _self(p)[0] < (-1 if p.base == "log1p" else 0)


def _has_negative_variance(p: Producer, trace: Trace) -> bool:
    variance = p.input("running_var")
    return "batch_norm" in p.base and variance is not None and variance.low < 0


def _exp_overflows(p: Producer, trace: Trace) -> bool:
    dtype = p.outputs[0].dtype if p.outputs else "float32"
    limit = EXP_LARGEST.get(dtype, math.inf) * 0.99
    low, high, _ = _self(p)
    return p.base in EXPONENTIALS and (high > limit or (p.base in ("sinh", "cosh") and low < -limit))


def _overflows_float16(p: Producer, trace: Trace) -> bool:
    return any(stats.dtype == "float16" and stats.num_bad for stats in p.outputs)


def _is_normalise_backward(p: Producer, trace: Trace) -> bool:
    if not _is_backward_of("div", "linalgvectornorm", "norm")(p, trace):
        return False
    divisor = p.input("other") if p.base in DIVIDING else None
    return _divides_by_zero(p, trace) or (divisor is not None and divisor.nearest_zero < 1e-6)


def _is_zero_times_infinity(p: Producer, trace: Trace) -> bool:
    is_infinite_number = any(isinstance(value, float) and math.isinf(value) for value in p.numbers.values())
    has_infinity = is_infinite_number or _reads_infinity(p)
    return p.base in MULTIPLYING and has_infinity and any(stats.num_nan for stats in p.outputs)


def _reads_infinity(p: Producer) -> bool:
    return any(stats.num_inf for stats in p.inputs)


def _are_most_weights_huge(p: Producer, trace: Trace) -> bool:
    weights = [block.largest_weight for block in trace.growth if block.largest_weight]
    return bool(weights) and statistics.median(weights) > HUGE_WEIGHTS


def _are_weights_of_a_block_huge(p: Producer, trace: Trace) -> bool:
    weights = [block.largest_weight for block in trace.growth if block.largest_weight]
    return bool(weights) and max(weights) > HUGE_WEIGHTS * max(statistics.median(weights), 1e-6)


def _is_custom_backward(p: Producer, trace: Trace) -> bool:
    """Torch numbers its own nodes (SqrtBackward0). Hooks and recomputed blocks run in the three that are left out."""
    if p.node is None or p.node[-1].isdigit():
        return False
    return p.node not in ("backward", "CheckpointFunctionBackward") and not p.node.startswith("torch::")


_WEIGHTS: tuple[tuple[Test, Cause], ...] = (
    (_are_most_weights_huge, Cause(
        "learning rate too high", "the weights are huge in most blocks: earlier steps were much too large",
        "lower baseLearningRate, use a longer warm-up, or clip gradients (gradientClip)",
    )),
    (_are_weights_of_a_block_huge, Cause(
        "huge weights in one block", "the weights of one block are thousands of times larger than those of the others",
        "find that block in the growth table and check what wrote, loaded or scaled it",
    )),
)  # fmt: skip
_TABLE: tuple[tuple[Test, Cause], ...] = (
    (lambda p, trace: p.phase == "input" and p.tensor == "labels", Cause(
        "bad label", "a label is none of the classes", "correct the annotations of the images, or classList",
    )),
    (lambda p, trace: p.phase == "input" and p.tensor == "boxes", Cause(
        "bad box", "a box is not finite", "correct the annotations of the images, or the code that changes boxes",
    )),
    (lambda p, trace: p.phase == "input", Cause(
        "bad pixel", "pixels are not finite", "check these images, and the code that changes their pixels",
    )),
    (lambda p, trace: p.phase == "weights", Cause(
        "bad weight",
        "the network held it before this step: other code wrote it, or an earlier step "
        "had a learning rate, momentum or gradient hook that was not finite",
        "load other weights, or an earlier checkpoint",
    )),
    (lambda p, trace: p.source == NEGATIVE_FACTOR and p.phase == "loss", Cause(
        "negative loss weight", "a value that cannot be negative was multiplied by a negative weight, gain or schedule",
        "check what this line multiplies by",
    )),
    (lambda p, trace: p.source == BELOW_ZERO_SOURCE and p.phase == "loss", Cause(
        "negative divergence",
        "a divergence or cross-entropy is below zero: its two logarithms are clamped at different values, its "
        "distributions do not sum to 1, or its targets lie outside 0 .. 1",
        "compute both logarithms with log_softmax, and clamp them at the same value",
    )),
    (lambda p, trace: p.source == UNINITIALISED, Cause(
        "uninitialised memory", "memory was read before it was written", "use torch.zeros instead of torch.empty",
    )),
    (lambda p, trace: p.source in (NUMBER, CONSTANT) and not _is_zero_times_infinity(p, trace), Cause(
        "constant in the code", "the code itself contains the NaN or infinity", "check this line",
    )),
    (_is_custom_backward, Cause(
        "custom backward", "the backward method of a custom torch.autograd.Function produced it",
        "check that function with torch.autograd.gradcheck, also at zero",
    )),
    (_is_backward_of("sqrt", "rsqrt", "pow"), Cause(
        "root at zero, backward", "the derivative of a root (or of a power below 1) is infinite at zero",
        "add a small number under the root, or clamp its argument",
    )),
    (_is_backward_of("log", "log2", "log10", "log1p", "xlogy"), Cause(
        "logarithm at zero, backward",
        "the derivative of a logarithm is infinite at zero; a torch.where after it masks the value, not the gradient",
        "clamp the argument of the logarithm",
    )),
    (_is_backward_of("acos", "asin", "atan2", "atanh"), Cause(
        "edge of the domain, backward", "the derivative is infinite at the edge of the domain",
        "clamp the argument to slightly less than the domain",
    )),
    (_is_normalise_backward, Cause(
        "unguarded normalise, backward",
        "a zero vector was divided by its norm, or by a sum that is zero, where the derivative is infinite; a "
        "torch.where after it masks the value, not the gradient",
        "use the division or the normalisation in ops.safe, whose gradients stay finite",
    )),
    (_has_negative_base, Cause(
        "negative base", "a negative number has a fractional exponent: logits were passed instead of probabilities",
        "pass logits.sigmoid()",
    )),
    (_is_log_of_zero, Cause(
        "log of zero", "a logarithm of zero, for example of a softmax() that was rounded to zero",
        "use log_softmax() or logsigmoid(), or clamp the argument",
    )),
    (_is_log_of_negative, Cause("log of a negative number", "a logarithm of a negative number", "clamp the argument")),
    (lambda p, trace: p.base in ("sqrt", "rsqrt") and _self(p)[0] < 0, Cause(
        "root of a negative number", "a root of a negative number, for example of a variance with a rounding error",
        "clamp the argument",
    )),
    (_has_negative_variance, Cause(
        "negative variance", "the running variance of this batch norm is negative, which no training writes",
        "load other weights",
    )),
    (lambda p, trace: p.base in BOUNDED, Cause(
        "edge of the domain", f"the argument of {', '.join(sorted(BOUNDED))} is outside of the domain",
        "clamp the argument",
    )),
    (_exp_overflows, Cause(
        "exp overflow", "the exponential of too large a number (limit: 88.7 in float32, 11 in float16)",
        "subtract the maximum first, as logsumexp and softmax do, or clamp the argument",
    )),
    (_divides_by_zero, Cause(
        "zero normaliser", "a division by zero: by a sum, count or norm that can be empty",
        "clamp(min=...) the divisor, or use ops.safe",
    )),
    (_is_zero_times_infinity, Cause(
        "zero times infinity", "an infinity was multiplied by zero, for example by a mask of zeros and ones",
        "use torch.where or masked_fill instead of the product",
    )),
    (lambda p, trace: "softmax" in p.base and _reads_infinity(p), Cause(
        "everything masked", "a softmax over a row in which every entry is -inf",
        "leave such rows out, or mask with a large finite number",
    )),
    (lambda p, trace: p.base.partition("_")[0] in ("std", "var") and any(stats.num_nan for stats in p.outputs), Cause(
        "deviation of one value", "the standard deviation or variance of a single value divides by n - 1 = 0",
        "correction=0 (unbiased=False), or another dimension",
    )),
    (lambda p, trace: p.base in ("sub", "add", "sum", "mean") and _reads_infinity(p), Cause(
        "infinity minus infinity", "infinities of both signs were added", "mask with a large finite number instead",
    )),
    (lambda p, trace: p.phase == "forward" and any(bad.part == "images" for bad in trace.bad_inputs), Cause(
        "bad pixel", "pixels are far larger than 255, so that their squares in the network are not finite",
        "check the images listed under 'also bad', and the code that reads or changes their pixels",
    )),
    (lambda p, trace: _overflows_float16(p, trace) and p.phase == "backward", Cause(
        "half-precision overflow", f"a gradient exceeded the range of float16 ({FLOAT16_LARGEST})",
        "the gradient scaler lowers its scale and continues; if that does not help: precision=bfloat16 or float32",
    )),
    (_overflows_float16, Cause(
        "half-precision overflow", f"a value exceeded the range of float16 ({FLOAT16_LARGEST})",
        "precision=bfloat16 or float32, or float32 for this operation alone",
    )),
    *_WEIGHTS,
    (lambda p, trace: trace.jump is not None and p.phase == "backward", Cause(
        "exploding gradient", "gradients grew too large; the steepest jump is listed below",
        "check that line: a division by almost zero, or a root near zero",
    )),
    (lambda p, trace: bool(p.outputs) and any(stats.peak > 1e15 for stats in (*p.inputs, *p.outputs)), Cause(
        "overflow", "values grew beyond the range of their type; the growth table shows where",
        "normalise before it, lower the learning rate, or clip",
    )),
)  # fmt: skip
