"""What usually lies behind a bad value, in words: a table of the known ones, the first that fits wins."""

import math
import statistics
from collections.abc import Callable

from debug.tracer.findings import Cause, Producer, Trace
from debug.tracer.operations import CONSTANT, NEGATIVE_FACTOR, UNWRITTEN

HUGE_WEIGHTS = 1e3  # largest absolute value of a block's weights: healthy ones stay below 10 or so
FLOAT16_LARGEST = 65504
EXP_LARGEST = {"float16": 11.09, "float32": 88.72, "bfloat16": 88.72, "float64": 709.78}
MULTIPLYING = {"mul", "mul_", "mm", "bmm", "addmm", "baddbmm", "convolution", "dot", "mv", "linear"}
DIVIDING = {"div", "div_", "reciprocal", "rsqrt", "reciprocal_", "true_divide"}
LOGARITHMS = {"log", "log_", "log2", "log10", "log1p"}
EXPONENTIALS = {"exp", "exp_", "expm1", "exp2", "sinh", "cosh", "softplus"}
SQUEEZED = {"acos", "asin", "atanh", "logit", "erfinv"}  # want arguments within -1 .. 1, or 0 .. 1

Test = Callable[[Producer, Trace], bool]


def likely_cause(trace: Trace) -> Cause | None:
    """The first entry of the table that fits the trace's producer; None when none fits.

    Without a producer only weights that are out of all proportion are spoken of.
    """
    producer = trace.producer or Producer("forward", "")
    table = _TABLE if trace.producer else tuple(entry for entry in _TABLE if entry[0] in _OF_WEIGHTS)
    return next((cause for test, cause in table if test(producer, trace)), None)


def _self(p: Producer) -> tuple[float, float, bool]:
    """Low, high and whether it holds a zero, of the operation's first argument; NaN, NaN, False without one."""
    given = p.given("self")
    return (given.low, given.high, given.has_zero) if given else (math.nan, math.nan, False)


def _is_backward_of(*names: str) -> Test:
    def test(p: Producer, trace: Trace) -> bool:
        return p.node is not None and any(p.node.lower().startswith(f"{name}backward") for name in names)

    return test


def _is_negative_base(p: Producer, trace: Trace) -> bool:
    exponent = p.numbers.get("exponent")
    is_whole = isinstance(exponent, int) or (isinstance(exponent, float) and exponent.is_integer())
    return p.base.startswith("pow") and not is_whole and _self(p)[0] < 0


def _divides_by_zero(p: Producer, trace: Trace) -> bool:
    if p.base not in DIVIDING and not (p.base.startswith("pow") and p.numbers.get("exponent", 0) < 0):
        return False
    other = p.given("other") or (p.given("self") if "div" not in p.base else None)
    return other.has_zero if other else p.numbers.get("other") == 0


def _divides_by_almost_zero(p: Producer, trace: Trace) -> bool:
    other = p.given("other") if p.base in DIVIDING else None
    return other is not None and other.nearest_zero < 1e-6


def _log_of_zero(p: Producer, trace: Trace) -> bool:
    low, _, has_zero = _self(p)
    return p.base in LOGARITHMS and (low == -1 if p.base == "log1p" else has_zero) and not _log_of_negative(p, trace)


def _log_of_negative(p: Producer, trace: Trace) -> bool:
    return p.base in LOGARITHMS and _self(p)[0] < (-1 if p.base == "log1p" else 0)


def _root_of_negative(p: Producer, trace: Trace) -> bool:
    return p.base.rstrip("_") in ("sqrt", "rsqrt") and _self(p)[0] < 0


def _negative_variance(p: Producer, trace: Trace) -> bool:
    variance = p.given("running_var")
    return "batch_norm" in p.base and variance is not None and variance.low < 0


def _exp_overflow(p: Producer, trace: Trace) -> bool:
    dtype = p.outputs[0].dtype if p.outputs else "float32"
    limit = EXP_LARGEST.get(dtype, math.inf)
    low, high, _ = _self(p)
    return p.base in EXPONENTIALS and (high > limit * 0.99 or (p.base in ("sinh", "cosh") and low < -limit * 0.99))


def _deviation_of_one(p: Producer, trace: Trace) -> bool:
    return p.base.partition("_")[0] in ("std", "var") and any(one.nan for one in p.outputs)


def _pixels_out_of_range(p: Producer, trace: Trace) -> bool:
    return p.phase == "forward" and any(one.part == "images" for one in trace.bad_inputs)


def _half_overflow(p: Producer, trace: Trace) -> bool:
    return any(one.dtype == "float16" and one.bad for one in p.outputs)


def _is_normalise_backward(p: Producer, trace: Trace) -> bool:
    """A division, backward, by what is zero or nearly so; or the gradient's norm, after one that multiplied by 1e5."""
    is_division = _is_backward_of("div", "linalgvectornorm", "norm")(p, trace)
    return is_division and (_divides_by_zero(p, trace) or _divides_by_almost_zero(p, trace))


def _zero_times_infinity(p: Producer, trace: Trace) -> bool:
    has_infinity = any(one.inf for one in p.inputs) or _holds_infinity(p)
    return p.base in MULTIPLYING and has_infinity and any(one.nan for one in p.outputs)


def _holds_infinity(p: Producer) -> bool:
    return any(isinstance(value, float) and math.isinf(value) for value in p.numbers.values())


def _infinity_less_itself(p: Producer, trace: Trace) -> bool:
    return p.base.rstrip("_") in ("sub", "add", "sum", "mean") and any(one.inf for one in p.inputs)


def _all_masked(p: Producer, trace: Trace) -> bool:
    return "softmax" in p.base and any(one.inf for one in p.inputs)


def _weights_everywhere(p: Producer, trace: Trace) -> bool:
    weights = [one.weights for one in trace.growth if one.weights]
    return bool(weights) and statistics.median(weights) > HUGE_WEIGHTS


def _weights_of_one(p: Producer, trace: Trace) -> bool:
    weights = [one.weights for one in trace.growth if one.weights]
    return bool(weights) and max(weights) > HUGE_WEIGHTS * max(statistics.median(weights), 1e-6)


def _too_large(p: Producer, trace: Trace) -> bool:
    return bool(p.outputs) and any(one.peak > 1e15 for one in (*p.inputs, *p.outputs))


def _is_torchs_own(node: str) -> bool:
    """Hooks run there, and blocks that are computed again, but no backward pass of somebody's own."""
    return node in ("backward", "CheckpointFunctionBackward") or node.startswith("torch::")


def _is_written(p: Producer, trace: Trace) -> bool:
    is_by_hand = p.source in ("a number in the call", CONSTANT)
    return is_by_hand and not _zero_times_infinity(p, trace)


_TABLE: tuple[tuple[Test, Cause], ...] = (
    (
        lambda p, trace: p.phase == "input" and p.tensor == "labels",
        Cause("bad label", "a label that is none of the classes", "correct the images' annotations, or classList"),
    ),
    (
        lambda p, trace: p.phase == "input" and p.tensor == "boxes",
        Cause("bad box", "a box that is not finite", "correct the images' annotations, or what moves boxes"),
    ),
    (
        lambda p, trace: p.phase == "input",
        Cause("bad pixel", "pixels that are not finite", "look at the images named, and at what changed their pixels"),
    ),
    (
        lambda p, trace: p.phase == "weights",
        Cause(
            "bad weight",
            "the network held it before this step: it came with the file that was loaded, was written by other code, "
            "or by a step before whose learning rate or momentum was not finite or whose gradients a hook changed",
            "load other weights, or a checkpoint from before",
        ),
    ),
    (
        lambda p, trace: p.source == NEGATIVE_FACTOR and p.phase == "loss",
        Cause(
            "negative weight", "what is not negative was multiplied by something negative: a weight, gain or schedule",
            "look at what the line named multiplies by",
        ),
    ),
    (
        lambda p, trace: p.source == "below zero" and p.phase == "loss",
        Cause(
            "negative divergence",
            "a divergence or cross-entropy below zero: its two logarithms were clamped unequally, its distributions do "
            "not sum to one, or its targets lie outside 0 .. 1",
            "take both logarithms from log_softmax and clamp them alike",
        ),
    ),
    (
        lambda p, trace: p.source == UNWRITTEN,
        Cause("unwritten memory", "memory was read that nobody had written", "torch.zeros instead of torch.empty"),
    ),
    (_is_written, Cause("written by hand", "the NaN or infinity stands in the code itself", "see the line named")),
    (
        lambda p, trace: p.node is not None and not p.node[-1].isdigit() and not _is_torchs_own(p.node),
        Cause(
            "own backward", "a backward pass written by hand (an autograd function) made it",
            "check that function with torch.autograd.gradcheck, at zero too",
        ),
    ),
    (
        _is_backward_of("sqrt", "rsqrt", "pow"),
        Cause(
            "root at zero, backward", "the slope of a root (or of a power below one) at zero is infinite",
            "add a small number under the root, or clamp before it",
        ),
    ),
    (
        _is_backward_of("log", "log2", "log10", "log1p", "xlogy"),
        Cause(
            "logarithm at zero, backward",
            "the slope of a logarithm at zero is infinite; torch.where behind it hides the value, not the slope",
            "clamp before the logarithm",
        ),
    ),
    (
        _is_backward_of("acos", "asin", "atan2", "atanh"),
        Cause("edge of a function, backward", "the slope is infinite at the edge", "clamp a little inside of it"),
    ),
    (
        _is_normalise_backward,
        Cause(
            "unguarded normalise, backward",
            "a vector of zeros was divided by its own length, or by a sum of zero: the slope there is endless, and "
            "torch.where behind it hides the value, not the slope",
            "ops.safe has a division and a normalise whose gradients stay finite",
        ),
    ),
    (
        _is_negative_base,
        Cause(
            "negative base", "a negative number under a fractional power: logits where probabilities belong",
            "hand over logits.sigmoid()",
        ),
    ),
    (_log_of_zero, Cause("log of zero", "a logarithm of zero, as of softmax() where it rounds to nothing",
                         "log_softmax() or logsigmoid() instead of the two, or clamp before")),
    (_log_of_negative, Cause("log of a negative number", "a logarithm of what is below zero", "clamp before it")),
    (
        _root_of_negative,
        Cause("root of a negative number", "a root of what is below zero, as variances round to", "clamp before it"),
    ),
    (_negative_variance, Cause("negative variance", "the running variance of this batch norm is below zero",
                               "load other weights: no training writes that")),
    (
        lambda p, trace: p.base in SQUEEZED,
        Cause("edge of a function", f"the argument of {', '.join(sorted(SQUEEZED))} left its range", "clamp before it"),
    ),
    (_exp_overflow, Cause("exp overflow", "an exponential of too large a number (88.7 in float32, 11 in float16)",
                          "subtract the largest first, as logsumexp and softmax do, or clamp")),
    (
        _divides_by_zero,
        Cause("zero normaliser", "a division by zero: a sum, count or length that may be empty",
              "clamp(min=...) the divisor, or ops.safe"),
    ),
    (
        _zero_times_infinity,
        Cause("zero times infinity", "something infinite was multiplied by zero, as masks by multiplication do",
              "torch.where or masked_fill instead of the product"),
    ),
    (_all_masked, Cause("everything masked", "a softmax over nothing but -inf: a row without one entry that counts",
                        "leave such rows out, or mask with a large finite number")),
    (
        _deviation_of_one,
        Cause("deviation of one value", "a standard deviation or variance of a single value, divided by their number "
              "less one", "correction=0 (unbiased=False), or another dimension"),
    ),
    (_infinity_less_itself, Cause("infinity less infinity", "two infinities were set off against each other",
                                  "mask with a large finite number instead")),
    (
        _pixels_out_of_range,
        Cause("bad pixel", "pixels are far larger than 255, and the network's squares of them are not finite",
              "look at the images that are also bad, below, and at what read or changed their pixels"),
    ),
    (
        lambda p, trace: _half_overflow(p, trace) and p.phase == "backward",
        Cause("half-precision overflow", f"a gradient left float16's range ({FLOAT16_LARGEST})",
              "the scaler lowers its scale and goes on; when that does not help: precision=bfloat16 or float32"),
    ),
    (
        _half_overflow,
        Cause("half-precision overflow", f"a value left float16's range ({FLOAT16_LARGEST})",
              "precision=bfloat16 or float32, or float32 for this operation alone"),
    ),
    (
        _weights_everywhere,
        Cause("learning rate too high", "the weights are huge in most blocks: the steps before were far too long",
              "lower baseLearningRate, warm up longer, or clip gradients (gradientClip)"),
    ),
    (
        _weights_of_one,
        Cause("a block's weights", "the weights of one block are thousands of times those of the others",
              "look at the growth table: who wrote, loaded or scaled that block?"),
    ),
    (
        lambda p, trace: trace.jump is not None and p.phase == "backward",
        Cause("exploding gradient", "gradients grew without bound; the sharpest jump is named below",
              "look at that line: a division by almost nothing, or a root near zero"),
    ),
    (_too_large, Cause("overflow", "values grew until the type's range ended; the growth table shows where they grow",
                       "normalise before it, lower the learning rate, or clip")),
)  # fmt: skip
_OF_WEIGHTS = (_weights_everywhere, _weights_of_one)
