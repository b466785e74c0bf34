"""A trace on one page of text: the producer, what usually causes it, who passed it on, and how values grew."""

import math
from collections.abc import Iterator

from debug.tracer.findings import Producer, Trace
from debug.tracer.growth import Block
from debug.tracer.tensor_stats import shape_text

PASSED_SHOWN = 6
IDS_SHOWN = 8
STEEP = 100.0  # growth from one block to the next that is marked
_ELSEWHERE = "what was reported lies outside of it, as an average of weights does, or is not reproduced here"
_HEADLINES = {
    "input": "the batch itself is bad",
    "weights": "the network held it before the step",
    "forward": "born in the network, forward",
    "loss": "born in the loss",
    "backward": "born in the backward pass",
}


def report_text(trace: Trace, message: str = "") -> str:
    """The page, ending in a newline. `message`: what was said when the step was stopped, printed on top."""
    lines = [*([message, ""] if message else []), *_head(trace)]
    if trace.producer is not None:
        lines += _about(trace, trace.producer)
    elif trace.cause is not None:
        lines += [f"all the same: {trace.cause.words}", f"way out: {trace.cause.way_out}"]
    for title, part in (
        ("passed on by", list(_passed(trace))),
        ("the step itself raised", [trace.error] if trace.error else []),
        ("also bad", list(_also(trace))),
        ("sharpest jump backwards", list(_jump(trace))),
        ("parts of the loss", [", ".join(f"{name} {value:.4g}" for name, value in trace.parts.items())]),
        ("notes", list(trace.notes)),
        ("look-outs, at their first call", [str(one) for one in trace.probes.values()]),
        ("growth, block by block", _growth(trace.growth)),
    ):
        if any(part):
            lines += ["", f"{title}:", *(f"  {line}" for line in part)]
    harmless = f"; {trace.harmless} made infinities that did no harm" if trace.harmless else ""
    lines += ["", f"{trace.operations} operations in {trace.precision}, {trace.seconds:.1f} s{harmless}"]
    return "\n".join(lines) + "\n"


def _head(trace: Trace) -> list[str]:
    if trace.phase is not None:
        return [f"bad value traced: {_HEADLINES[trace.phase]}"]
    if trace.error:
        return ["the step raised an error, and no bad value was seen before it"]
    return [f"nothing bad: every value of this step is finite; {_ELSEWHERE}"]


def _about(trace: Trace, producer: Producer) -> Iterator[str]:
    numbers = ", ".join(f"{name}={value}" for name, value in producer.numbers.items())
    rows: list[tuple[str, str]] = [
        ("operation", f"{producer.operation}{f' ({numbers})' if numbers else ''}" if producer.operation else ""),
        ("backward of", producer.node or ""),
        ("module", producer.module),
        ("where" if producer.operation else "first read", _where(producer)),
        ("first seen" if producer.operation else "tensor", producer.tensor or ""),
        ("what", producer.source or ""),
        *(("gave", str(one)) for one in producer.outputs if one.bad or len(producer.outputs) == 1),
        *(("read", str(one)) for one in producer.inputs),
        ("images", _ids(producer.image_ids)),
        ("how told", trace.how),
    ]
    if trace.cause is not None:
        rows += [("likely", f"{trace.cause.name}: {trace.cause.words}"), ("way out", trace.cause.way_out)]
    if not producer.image_ids:
        rows.append(("batch", _ids(trace.image_ids)))
    for title, text in rows:
        if text:
            yield f"  {title:<12}{text}"


def _where(producer: Producer) -> str:
    return ", called by ".join(map(str, producer.where))


def _ids(image_ids: tuple[str, ...]) -> str:
    more = f" and {len(image_ids) - IDS_SHOWN} more" if len(image_ids) > IDS_SHOWN else ""
    return ", ".join(image_ids[:IDS_SHOWN]) + more


def _passed(trace: Trace) -> Iterator[str]:
    for one in trace.passed_on[:PASSED_SHOWN]:
        module = f" in {one.module}" if one.module else ""
        yield f"{one.operation}{module}{f' at {one.where}' if one.where else ''}"
    if len(trace.passed_on) > PASSED_SHOWN:
        yield f"and {len(trace.passed_on) - PASSED_SHOWN} more"


def _also(trace: Trace) -> Iterator[str]:
    named = trace.producer.tensor if trace.producer else None
    for bad in trace.bad_inputs:
        if bad.part != named:
            yield f"{bad.part}: {bad.words} ({_ids(bad.image_ids)})"
    weights = [name for name in trace.bad_weights if name != named]
    if weights:
        more = f" and {len(weights) - IDS_SHOWN} more" if len(weights) > IDS_SHOWN else ""
        yield f"weights: {', '.join(weights[:IDS_SHOWN])}{more}"


def _jump(trace: Trace) -> Iterator[str]:
    if (jump := trace.jump) is not None:
        module = f" in {jump.module}" if jump.module else ""
        yield f"{jump.operation} ({jump.node}){module} at {jump.where}: {jump.before:.3g} -> {jump.after:.3g}"


def _growth(blocks: list[Block]) -> list[str]:
    if not blocks:
        return []
    width = max(5, *(len(one.name) for one in blocks))
    has_gradients = any(not math.isnan(one.gradient) for one in blocks)
    head = f"{'block':<{width}}  {'gives':<16}{'largest':>10}{'ratio':>10}{'weights':>10}"
    return [f"{head}{'gradient':>10}" if has_gradients else head, *(_row(one, width, has_gradients) for one in blocks)]


def _row(block: Block, width: int, has_gradients: bool) -> str:
    ratio = "" if math.isnan(block.ratio) else f"{block.ratio:.3g}"
    weights = f"{block.weights:.3g}" if block.weights else ""
    gradient = "" if math.isnan(block.gradient) else f"{block.gradient:.3g}"
    marks = f"  {block.bad} bad" if block.bad else "  <-- steep" if block.ratio >= STEEP else ""
    start = f"{block.name:<{width}}  {shape_text(block.shape):<16}{block.largest:>10.4g}{ratio:>10}{weights:>10}"
    return f"{start}{gradient:>10}{marks}" if has_gradients else f"{start}{marks}"
