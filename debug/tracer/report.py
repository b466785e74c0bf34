"""What is written about a bad step: the page that says where it was born, and the bundle that brings it back."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from debug.tracer.bundle import write_bundle
from debug.tracer.report_text import report_text
from debug.tracer.tracer import trace
from ops.batch import Batch
from ops.files import write_atomic
from train.guard import BadStep
from train.step import StepSetup

log = logging.getLogger("mars")


def report_bad_step(bad: BadStep, step: StepSetup, folder: Path, before: str = "") -> str:
    """Write page and bundle of a bad step into `folder`; the page, which `bad` gets, too.

    Weights and average have to be those that the step met. `before`: what was noticed before it. What goes wrong here
    is added to the page and hides nothing of it.
    """
    snapshot = bad.snapshot
    path = folder / f"bad-step-{snapshot.epoch + 1}-{snapshot.step}.pth"
    bad.page = f"{bad}\n"
    with _told_on(bad, "not traced"):
        bad.page = _page_of(bad, step)
    if before:
        bad.page += f"\nbefore it: {before}\n"
    with _told_on(bad, "no bundle"):
        write_bundle(
            path, model=step.model, objective=step.objective, batch=snapshot.batch, buffers=snapshot.buffers,
            random=snapshot.random, config_json=step.config_json, precision=step.precision, scale=snapshot.scale,
            message=str(bad), weights_file=step.weights_file,
        )  # fmt: skip
        bad.page += f"\nthe step again: python mars.py doctor CFGNAME --replay {path}\n"
    with _told_on(bad, "this page is not kept"):
        write_atomic(path.with_suffix(".txt"), bad.page)
    return bad.page


def _page_of(bad: BadStep, step: StepSetup) -> str:
    snapshot = bad.snapshot
    found = trace(
        step.model, step.objective, snapshot.batch, step.precision, scale=snapshot.scale,
        sum_over_batch=step.sum_over_batch, buffers=snapshot.buffers, random=snapshot.random,
        weights_file=step.weights_file,
    )  # fmt: skip
    if found.producer is None and not bad.parts:  # the average, for one
        return (
            f"{bad}\n\nThe step that ran last is healthy, from its pixels to its gradients: what is not finite was not "
            "made by it. The weights are: it is the average, the momentum, a statistic or another buffer alone, "
            "written from outside or out of the range of float32.\n"
        )
    return report_text(found, str(bad))


@contextmanager
def _told_on(bad: BadStep, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever it is: that the step was bad has to be said
        log.debug("%s", what, exc_info=True)
        bad.page += f"\n{what}: {type(error).__name__}: {error}\n"


def report_first_step(batch: Batch, step: StepSetup, folder: Path) -> str:
    """Trace a step of which nothing bad is known, for its table of growth, and write the page into `folder`."""
    found = trace(step.model, step.objective, batch, step.precision, sum_over_batch=step.sum_over_batch)
    text = report_text(found, "the first step of this run, traced because --trace asked for it")
    write_atomic(folder / "first-step.txt", text)
    return text
