"""The table of `make parity`: what the tests of this folder measured, against whom, and what they would allow."""

import math
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ops.text import align_columns

ULTRALYTICS, PYCOCOTOOLS = "ultralytics", "pycocotools"
PROPERTY = "parity"  # name of the values that travel with a test's report

# Every row, in its order; one that no test has measured (skipped, failed before) is printed as such.
PARTS = {
    "network, five scales: raw maps in float64": ULTRALYTICS,
    "network, five scales: raw maps in float32": ULTRALYTICS,
    "network in train mode: raw maps in float64": ULTRALYTICS,
    "network in train mode: batch-norm statistics": ULTRALYTICS,
    "network: biases of a fresh head": ULTRALYTICS,
    "assigner: target scores": ULTRALYTICS,
    "assigner: positive points with another target": ULTRALYTICS,
    "loss: its three parts, relative": ULTRALYTICS,
    "loss: gradient of every tensor, relative": ULTRALYTICS,
    "five training steps in float64: weights, statistics": ULTRALYTICS,
    "five training steps in float64: average": ULTRALYTICS,
    "SGD, 200 steps on supplied gradients: weights": ULTRALYTICS,
    "SGD, 200 steps on supplied gradients: average": ULTRALYTICS,
    "AdamW, 200 steps on supplied gradients: weights": ULTRALYTICS,
    "AdamW, 200 steps on supplied gradients: average": ULTRALYTICS,
    "warm-up, schedule: rates, momentum, batches a step": ULTRALYTICS,
    "weight decay of a nominal batch": ULTRALYTICS,
    "AP by COCO": PYCOCOTOOLS,
    "AP by Ultralytics": ULTRALYTICS,
    "official weights on two photos: boxes in pixels": ULTRALYTICS,
    "official weights on two photos: scores": ULTRALYTICS,
    "official weights on two photos: boxes or classes too many or few": ULTRALYTICS,
}


class Finding(NamedTuple):
    """One comparison: the largest difference in it, and how large it might have been."""

    part: str
    difference: float
    allowed: float


def note(record: Callable[[str, tuple[str, float, float]], None], part: str, difference: float, allowed: float) -> None:
    """Tell `record` of one comparison, then fail where the difference is too large, or no number."""
    assert part in PARTS
    difference = math.inf if math.isnan(difference) else float(difference)
    record(PROPERTY, (part, difference, float(allowed)))  # a plain tuple: from one process to another goes no other
    assert difference <= allowed, f"{part}: {difference:.3g} apart, {allowed:.3g} is allowed"


def largest_gap(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors of one shape; 0 of empty ones, infinite where either is not a number."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} against {tuple(theirs.shape)}"
    if ours.numel() == 0:
        return 0.0
    gap = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    return math.inf if math.isnan(gap) else gap


def table(findings: Iterable[Finding]) -> list[str]:
    """One line a part, under a heading: the number of cases and the largest difference in any of them."""
    by_part: dict[str, list[Finding]] = {part: [] for part in PARTS}
    for finding in findings:
        by_part[finding.part].append(finding)
    rows = [("part", "against", "cases", "largest difference", "allowed", "")]
    for part, found in by_part.items():
        worst = max(found, key=lambda one: one.difference, default=None)
        is_over = any(one.difference > one.allowed for one in found)
        figures = ("not measured", "") if worst is None else (f"{worst.difference:.1e}", f"{worst.allowed:.0e}")
        rows.append((part, PARTS[part], str(len(found)), *figures, "FAILS" if is_over else ""))
    return [line.rstrip() for line in align_columns(rows)]


def surroundings() -> str:
    """What was compared, and where: versions and the processor."""
    packages = ("torch", "ultralytics", "pycocotools", "numpy")
    versions = ", ".join(f"{name} {_version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {versions}; {_processor()}, {torch.get_num_threads()} thread a process"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
