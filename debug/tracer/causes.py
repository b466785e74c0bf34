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


class _Facts:
    """What the table compares: producer and trace, and numbers that follow from them; NaN where there is none."""

    def __init__(self, producer: Producer, trace: Trace):
        self.producer, self.trace = producer, trace
        self.phase, self.source, self.base = producer.phase, producer.source, producer.base
        self.node = producer.node or ""
        first, divisor = producer.input("self"), producer.input("other")
        self.low, self.high = (first.low, first.high) if first else (math.nan, math.nan)
        exponent = producer.numbers.get("exponent", math.nan)
        self.is_power, self.is_whole = self.base.startswith("pow"), float(exponent).is_integer()
        self.is_close_to_zero = self.base in DIVIDING and divisor is not None and divisor.nearest_zero < 1e-6
        if divisor is None and "div" not in self.base:  # reciprocal, rsqrt, a negative power
            divisor = first
        is_division = self.base in DIVIDING or (self.is_power and exponent < 0)
        is_zero = divisor.nearest_zero == 0 if divisor else producer.numbers.get("other") == 0
        self.divides_by_zero = is_division and is_zero
        self.log_limit = -1 if self.base == "log1p" else 0
        dtype = producer.outputs[0].dtype if producer.outputs else "float32"
        self.exp_limit = EXP_LARGEST.get(dtype, math.inf) * 0.99
        self.has_nan_result = any(stats.num_nan for stats in producer.outputs)
        self.reads_infinity = any(stats.num_inf for stats in producer.inputs)
        has_infinite_number = any(math.isinf(value) for value in producer.numbers.values())
        self.multiplies_infinity = self.base in MULTIPLYING and (has_infinite_number or self.reads_infinity)
        self.overflows_float16 = any(stats.dtype == "float16" and stats.num_bad for stats in producer.outputs)
        # Of every block.
        weights = [block.largest_weight for block in trace.growth if block.largest_weight] or [0.0]
        self.median_weight, self.largest_weight = statistics.median(weights), max(weights)

    def is_backward_of(self, *names: str) -> bool:
        """Does the node compute the derivative of one of these functions?"""
        return self.node.lower().startswith(tuple(f"{name}backward" for name in names))


def likely_cause(trace: Trace) -> Cause | None:
    """The first entry of the table that fits the trace's producer; None when none fits.

    Without a producer only huge weights are reported.
    """
    facts = _Facts(trace.producer or Producer("forward", ""), trace)
    table = _TABLE if trace.producer else _WEIGHTS
    return next((cause for fits, cause in table if fits(facts)), None)


_WEIGHTS: tuple[tuple[Callable[[_Facts], bool], Cause], ...] = (
    (lambda f: f.median_weight > HUGE_WEIGHTS, Cause(
        "learning rate too high", "the weights are huge in most blocks: earlier steps were much too large",
        "lower baseLearningRate, use a longer warm-up, or clip gradients (gradientClip)",
    )),
    (lambda f: f.largest_weight > HUGE_WEIGHTS * max(f.median_weight, 1e-6), Cause(
        "huge weights in one block", "the weights of one block are thousands of times larger than those of the others",
        "find that block in the growth table and check what wrote, loaded or scaled it",
    )),
)  # fmt: skip
_TABLE: tuple[tuple[Callable[[_Facts], bool], Cause], ...] = (
    (lambda f: f.phase == "input" and f.producer.tensor == "labels", Cause(
        "bad label", "a label is none of the classes", "correct the annotations of the images, or classList",
    )),
    (lambda f: f.phase == "input" and f.producer.tensor == "boxes", Cause(
        "bad box", "a box is not finite", "correct the annotations of the images, or the code that changes boxes",
    )),
    (lambda f: f.phase == "input", Cause(
        "bad pixel", "pixels are not finite", "check these images, and the code that changes their pixels",
    )),
    (lambda f: f.phase == "weights", Cause(
        "bad weight",
        "the network held it before this step: other code wrote it, or an earlier step "
        "had a learning rate, momentum or gradient hook that was not finite",
        "load other weights, or an earlier checkpoint",
    )),
    (lambda f: f.source == NEGATIVE_FACTOR and f.phase == "loss", Cause(
        "negative loss weight", "a value that cannot be negative was multiplied by a negative weight, gain or schedule",
        "check what this line multiplies by",
    )),
    (lambda f: f.source == BELOW_ZERO_SOURCE and f.phase == "loss", Cause(
        "negative divergence",
        "a divergence or cross-entropy is below zero: its two logarithms are clamped at different values, its "
        "distributions do not sum to 1, or its targets lie outside 0 .. 1",
        "compute both logarithms with log_softmax, and clamp them at the same value",
    )),
    (lambda f: f.source == UNINITIALISED, Cause(
        "uninitialised memory", "memory was read before it was written", "use torch.zeros instead of torch.empty",
    )),
    (lambda f: f.source in (NUMBER, CONSTANT) and not (f.multiplies_infinity and f.has_nan_result), Cause(
        "constant in the code", "the code itself contains the NaN or infinity", "check this line",
    )),
    # Torch numbers its own nodes (SqrtBackward0). Hooks and recomputed blocks run in the three that are left out.
    (lambda f: (
        f.node != "" and not f.node[-1].isdigit() and not f.node.startswith("torch::")
        and f.node not in ("backward", "CheckpointFunctionBackward")
    ), Cause(
        "custom backward", "the backward method of a custom torch.autograd.Function produced it",
        "check that function with torch.autograd.gradcheck, also at zero",
    )),
    (lambda f: f.is_backward_of("sqrt", "rsqrt", "pow"), Cause(
        "root at zero, backward", "the derivative of a root (or of a power below 1) is infinite at zero",
        "add a small number under the root, or clamp its argument",
    )),
    (lambda f: f.is_backward_of("log", "log2", "log10", "log1p", "xlogy"), Cause(
        "logarithm at zero, backward",
        "the derivative of a logarithm is infinite at zero; a torch.where after it masks the value, not the gradient",
        "clamp the argument of the logarithm",
    )),
    (lambda f: f.is_backward_of("acos", "asin", "atan2", "atanh"), Cause(
        "edge of the domain, backward", "the derivative is infinite at the edge of the domain",
        "clamp the argument to slightly less than the domain",
    )),
    (lambda f: (
        f.is_backward_of("div", "linalgvectornorm", "norm") and (f.divides_by_zero or f.is_close_to_zero)
    ), Cause(
        "unguarded normalise, backward",
        "a zero vector was divided by its norm, or by a sum that is zero, where the derivative is infinite; a "
        "torch.where after it masks the value, not the gradient",
        "use the division or the normalisation in ops.safe, whose gradients stay finite",
    )),
    (lambda f: f.is_power and not f.is_whole and f.low < 0, Cause(
        "negative base", "a negative number has a fractional exponent: logits were passed instead of probabilities",
        "pass logits.sigmoid()",
    )),
    (lambda f: f.base in LOGARITHMS and f.low == f.log_limit, Cause(
        "log of zero", "a logarithm of zero, for example of a softmax() that was rounded to zero",
        "use log_softmax() or logsigmoid(), or clamp the argument",
    )),
    (lambda f: f.base in LOGARITHMS and f.low < f.log_limit, Cause(
        "log of a negative number", "a logarithm of a negative number", "clamp the argument",
    )),
    (lambda f: f.base in ("sqrt", "rsqrt") and f.low < 0, Cause(
        "root of a negative number", "a root of a negative number, for example of a variance with a rounding error",
        "clamp the argument",
    )),
    (lambda f: (
        "batch_norm" in f.base and (variance := f.producer.input("running_var")) is not None and variance.low < 0
    ), Cause(
        "negative variance", "the running variance of this batch norm is negative, which no training writes",
        "load other weights",
    )),
    (lambda f: f.base in BOUNDED, Cause(
        "edge of the domain", f"the argument of {', '.join(sorted(BOUNDED))} is outside of the domain",
        "clamp the argument",
    )),
    (lambda f: f.base in EXPONENTIALS and (
        f.high > f.exp_limit or (f.base in ("sinh", "cosh") and f.low < -f.exp_limit)
    ), Cause(
        "exp overflow", "the exponential of too large a number (limit: 88.7 in float32, 11 in float16)",
        "subtract the maximum first, as logsumexp and softmax do, or clamp the argument",
    )),
    (lambda f: f.divides_by_zero, Cause(
        "zero normaliser", "a division by zero: by a sum, count or norm that can be empty",
        "clamp(min=...) the divisor, or use ops.safe",
    )),
    (lambda f: f.multiplies_infinity and f.has_nan_result, Cause(
        "zero times infinity", "an infinity was multiplied by zero, for example by a mask of zeros and ones",
        "use torch.where or masked_fill instead of the product",
    )),
    (lambda f: "softmax" in f.base and f.reads_infinity, Cause(
        "everything masked", "a softmax over a row in which every entry is -inf",
        "leave such rows out, or mask with a large finite number",
    )),
    (lambda f: f.base.partition("_")[0] in ("std", "var") and f.has_nan_result, Cause(
        "deviation of one value", "the standard deviation or variance of a single value divides by n - 1 = 0",
        "correction=0 (unbiased=False), or another dimension",
    )),
    (lambda f: f.base in ("sub", "add", "sum", "mean") and f.reads_infinity, Cause(
        "infinity minus infinity", "infinities of both signs were added", "mask with a large finite number instead",
    )),
    (lambda f: f.phase == "forward" and any(bad.part == "images" for bad in f.trace.bad_inputs), Cause(
        "bad pixel", "pixels are far larger than 255, so that their squares in the network are not finite",
        "check the images listed under 'also bad', and the code that reads or changes their pixels",
    )),
    (lambda f: f.overflows_float16 and f.phase == "backward", Cause(
        "half-precision overflow", f"a gradient exceeded the range of float16 ({FLOAT16_LARGEST})",
        "the gradient scaler lowers its scale and continues; if that does not help: precision=bfloat16 or float32",
    )),
    (lambda f: f.overflows_float16, Cause(
        "half-precision overflow", f"a value exceeded the range of float16 ({FLOAT16_LARGEST})",
        "precision=bfloat16 or float32, or float32 for this operation alone",
    )),
    *_WEIGHTS,
    (lambda f: f.trace.jump is not None and f.phase == "backward", Cause(
        "exploding gradient", "gradients grew too large; the steepest jump is listed below",
        "check that line: a division by almost zero, or a root near zero",
    )),
    (lambda f: bool(f.producer.outputs) and any(
        stats.peak > 1e15 for stats in (*f.producer.inputs, *f.producer.outputs)
    ), Cause(
        "overflow", "values grew beyond the range of their type; the growth table shows where",
        "normalise before it, lower the learning rate, or clip",
    )),
)  # fmt: skip
