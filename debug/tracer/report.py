"""The report about a non-finite step: its text, and the files that are written about it."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debug.tracer.bundle import write_bundle
from debug.tracer.findings import IDS_SHOWN, BlockGrowth, Producer, Trace
from debug.tracer.operations import shape_text
from debug.tracer.rerun import TracedStep
from debug.tracer.tracer import trace
from ops.batch import Batch
from ops.files import write_atomic
from ops.text import shown
from train.guard import BadStep
from train.step import StepSetup

log = logging.getLogger("mars")

PASSED_SHOWN = 6
STEEP = 100.0  # growth from one block to the next that is marked
_HEADLINES = {
    "input": "the batch itself is bad",
    "weights": "the network held it before the step",
    "forward": "first produced in the network, forward pass",
    "loss": "first produced in the loss",
    "backward": "first produced in the backward pass",
}


def report_bad_step(bad: BadStep, step: StepSetup, folder: Path, before: str = "") -> str:
    """Write report and bundle of a non-finite step into `folder`; returns the report, which is also kept in `bad`.

    Weights and EMA must be as they were before the step. `before`: what was noticed in earlier steps. If tracing or
    writing fails, the error is added to the report and not raised.
    """
    snapshot = bad.snapshot
    traced = TracedStep(
        step.model, step.objective, snapshot.batch, step.precision, snapshot.scale, step.sum_over_batch,
        snapshot.buffers, snapshot.random, step.weights_file,
    )  # fmt: skip
    path = folder / f"bad-step-{snapshot.epoch + 1}-{snapshot.step}.pth"
    bad.report = f"{bad}\n"
    with _errors_reported(bad, "not traced"):
        found = trace(traced)
        # Without loss parts the weights were checked, not a step.
        is_of_weights = found.producer is None and not bad.parts
        bad.report = f"{bad}\n\n{_NOT_OF_THE_STEP}\n" if is_of_weights else report_text(found, str(bad))
    if before:
        bad.report += f"\nbefore this step: {before}\n"
    with _errors_reported(bad, "no bundle"):
        write_bundle(path, traced, step.config_json, str(bad))
        bad.report += f"\nto run this step again: python mars.py doctor CFGNAME --replay {path}\n"
    with _errors_reported(bad, "the report is not saved"):
        write_atomic(path.with_suffix(".txt"), bad.report)
    return bad.report


_NOT_OF_THE_STEP = (
    "The last step is finite, from its pixels to its gradients, and so are the weights, so the step did not produce "
    "the bad value. It is in the EMA, the momentum, a statistic or another buffer, and was written by other code or "
    "exceeded the range of float32."
)


@contextmanager
def _errors_reported(bad: BadStep, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # any error: the non-finite step must be reported all the same
        log.debug("%s", what, exc_info=True)
        bad.report += f"\n{what}: {type(error).__name__}: {error}\n"


def report_first_step(batch: Batch, step: StepSetup, folder: Path) -> str:
    """Trace a normal step for its growth table, and write the report into `folder`."""
    found = trace(TracedStep(step.model, step.objective, batch, step.precision, sum_over_batch=step.sum_over_batch))
    text = report_text(found, "the first step of this run, traced because of --trace")
    write_atomic(folder / "first-step.txt", text)
    return text


def report_text(trace: Trace, message: str = "") -> str:
    """The report, which ends in a newline. `message`: the error message of the step, printed first."""
    lines = [message, ""] if message else []
    if trace.producer is not None:
        lines += [f"bad value traced: {_HEADLINES[trace.producer.phase]}", *_producer_rows(trace, trace.producer)]
    else:
        lines.append(
            "the step raised an error, and no bad value was found before it"
            if trace.error
            else "nothing bad: every value of this step is finite; if a value was reported, it is outside of the step, "
            "as in the EMA, or is not reproduced here"
        )
        if trace.cause is not None:
            lines += [f"likely cause of later errors: {trace.cause.explanation}", f"how to fix it: {trace.cause.fix}"]
    passed_on = trace.passed_on[:PASSED_SHOWN]
    if (num_more := len(trace.passed_on) - PASSED_SHOWN) > 0:
        passed_on.append(f"and {num_more} more")
    named = trace.producer.tensor if trace.producer else None
    also_bad = [str(bad) for bad in trace.bad_inputs if bad.part != named]
    if weights := [name for name in trace.bad_weights if name != named]:
        also_bad.append(f"weights: {shown(weights, IDS_SHOWN)}")
    for title, section in (
        ("passed on by", passed_on),
        ("the step itself raised", [trace.error]),
        ("also bad", also_bad),
        ("steepest jump in the backward pass", [str(trace.jump)] if trace.jump else []),
        ("parts of the loss", [", ".join(f"{name} {value:.4g}" for name, value in trace.parts.items())]),
        ("notes", list(trace.notes)),
        ("probes, at their first call", [str(stats) for stats in trace.probes.values()]),
        ("growth, block by block", list(_growth_rows(trace.growth))),
    ):
        if any(section):
            lines += ["", f"{title}:", *(f"  {line}" for line in section)]
    harmless = f"; {trace.num_harmless} produced infinities without any effect" if trace.num_harmless else ""
    lines += ["", f"{trace.num_operations} operations in {trace.precision}, {trace.seconds:.1f} s{harmless}"]
    return "\n".join(lines) + "\n"


def _producer_rows(trace: Trace, producer: Producer) -> Iterator[str]:
    numbers = ", ".join(f"{name}={value}" for name, value in producer.numbers.items())
    rows: list[tuple[str, str]] = [
        ("operation", f"{producer.operation}{f' ({numbers})' if numbers else ''}" if producer.operation else ""),
        ("backward of", producer.node or ""),
        ("module", producer.module),
        ("where" if producer.operation else "first read", ", called by ".join(map(str, producer.lines))),
        ("first seen" if producer.operation else "tensor", producer.tensor or ""),
        ("source", producer.source or ""),
        *(("output", str(stats)) for stats in producer.outputs if stats.num_bad or len(producer.outputs) == 1),
        *(("input", str(stats)) for stats in producer.inputs),
        ("images", shown(producer.image_ids, IDS_SHOWN)),
        ("evidence", trace.evidence),
    ]
    if trace.cause is not None:
        rows += [("likely", f"{trace.cause.name}: {trace.cause.explanation}"), ("fix", trace.cause.fix)]
    if not producer.image_ids:
        rows.append(("batch", shown(trace.image_ids, IDS_SHOWN)))
    for title, text in rows:
        if text:
            yield f"  {title:<12}{text}"


def _growth_rows(blocks: list[BlockGrowth]) -> Iterator[str]:
    if not blocks:
        return
    width = max(5, *(len(block.name) for block in blocks))
    has_gradients = any(not math.isnan(block.largest_gradient) for block in blocks)
    head = f"{'block':<{width}}  {'output':<16}{'largest':>10}{'ratio':>10}{'weights':>10}"
    yield f"{head}{'gradient':>10}" if has_gradients else head
    for block in blocks:
        ratio = "" if math.isnan(block.ratio) else f"{block.ratio:.3g}"
        weights = f"{block.largest_weight:.3g}" if block.largest_weight else ""
        gradient = "" if math.isnan(block.largest_gradient) else f"{block.largest_gradient:.3g}"
        marks = f"  {block.num_bad} bad" if block.num_bad else "  <-- steep" if block.ratio >= STEEP else ""
        start = f"{block.name:<{width}}  {shape_text(block.shape):<16}{block.largest:>10.4g}{ratio:>10}{weights:>10}"
        yield f"{start}{gradient:>10}{marks}" if has_gradients else f"{start}{marks}"
