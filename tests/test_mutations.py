"""Would the tests notice? A copy of Mars gets one of the mistakes that cost people days, and tests that should notice
must fail: those that need nothing but this repository, and those that ask the reference.

A line that is no longer there, or there twice, fails too: then the mistake has to be made anew.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".*", "__pycache__", "docs", "benchmarks", "*.pt", "*.pth", "*.log")

OWN_NETWORK, OWN_TRAINING = "tests/model/test_golden.py", "tests/train/test_golden.py"
NETWORK = "tests/parity/test_network.py::test_raw_maps_equal_the_reference[nano]"
GRADIENTS = "tests/parity/test_loss.py::test_parts_and_gradients_equal_the_reference"
ASSIGNER = "tests/parity/test_assigner.py::test_targets_equal_the_reference"
STEPS = "tests/parity/test_training.py::test_200_steps_on_supplied_gradients[SGD-linear-1]"
AP = "tests/parity/test_metrics.py::test_random_sets_equal_ultralytics"
COCO_AP = "tests/parity/test_metrics.py::test_coco_equals_pycocotools"

OWN_AP = "eval/ultralytics_ap.py"
COMPONENTS, BOXES, LOSS, TAL = "model/base/components.py", "ops/boxes.py", "train/loss.py", "train/tal.py"


class Edit(NamedTuple):
    """A piece of a file that occurs once, and what stands there instead."""

    file: str
    right: str
    wrong: str


class Mutation(NamedTuple):
    """A mistake, and who must notice it: our own tests, and those that ask the reference."""

    edits: tuple[Edit, ...]
    own: str
    parity: str


MUTATIONS = {
    "shortcut removed": Mutation(
        (Edit(COMPONENTS, "return x + y if self.add else y", "return y"),), OWN_NETWORK, NETWORK
    ),
    "SPPF without its activation": Mutation(
        (Edit(COMPONENTS, "parts = [self.cv1(x)]", "parts = [self.cv1.bn(self.cv1.conv(x))]"),), OWN_NETWORK, NETWORK
    ),
    "batch norm's eps of torch": Mutation((Edit(COMPONENTS, "BN_EPS = 1e-3", "BN_EPS = 1e-5"),), OWN_NETWORK, NETWORK),
    "batch norm's momentum of torch": Mutation(
        (Edit(COMPONENTS, "BN_MOMENTUM = 0.03", "BN_MOMENTUM = 0.1"),),
        OWN_NETWORK,
        "tests/parity/test_network.py::test_train_mode_and_statistics_equal_the_reference",
    ),
    "bilinear upsampling": Mutation(
        (Edit("model/base/neck.py", 'mode="nearest"', 'mode="bilinear"'),), OWN_NETWORK, NETWORK
    ),
    "stride forgotten before assigning": Mutation(
        (Edit(LOSS, "pred_boxes.detach() * strides[:, None],", "pred_boxes.detach(),"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "stride forgotten in the target boxes": Mutation(
        (Edit(LOSS, "assigned.target_bboxes / strides[:, None]", "assigned.target_bboxes"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "targets not detached": Mutation(
        (
            Edit(TAL, "    @torch.no_grad()\n", ""),
            Edit(LOSS, "logits.detach().sigmoid(),", "logits.sigmoid(),"),
            Edit(LOSS, "pred_boxes.detach() * strides[:, None],", "pred_boxes * strides[:, None],"),
        ),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "CIoU's alpha not detached": Mutation(
        (Edit(BOXES, "with torch.no_grad():", "with torch.enable_grad():"),), OWN_TRAINING, f"{GRADIENTS}[0-usual-0]"
    ),
    "normalised by the number of points": Mutation(
        (Edit(LOSS, "weight.sum().clamp(min=1)", "(weight > 0).sum().clamp(min=1)"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-usual-0]",
    ),
    "normaliser not clamped": Mutation(
        (Edit(LOSS, "weight.sum().clamp(min=1)", "weight.sum()"),), OWN_TRAINING, f"{GRADIENTS}[0-empty-0]"
    ),
    "distances clamped a bin too early": Mutation(
        (Edit(LOSS, ".clamp(0, last - LAST_BIN_MARGIN)", ".clamp(0, last - 1 - LAST_BIN_MARGIN)"),),
        OWN_TRAINING,
        f"{GRADIENTS}[0-long-0]",
    ),
    "eleven points a box": Mutation(
        (Edit(TAL, "min(self.topk, metric.shape[-1])", "min(self.topk + 1, metric.shape[-1])"),),
        OWN_TRAINING,
        f"{ASSIGNER}[usual]",
    ),
    "conflicts among choosers only": Mutation(
        (Edit(TAL, "overlaps.masked_fill(~is_inside, -1).argmax", "overlaps.masked_fill(~is_chosen, -1).argmax"),),
        OWN_TRAINING,
        f"{ASSIGNER}[crowded]",
    ),
    "targets scaled before conflicts": Mutation(
        (Edit(TAL, "self._soft_share(metric, overlaps, is_owner)", "self._soft_share(metric, overlaps, is_chosen)"),),
        OWN_TRAINING,
        f"{ASSIGNER}[crowded]",
    ),
    "decay on batch norm": Mutation(
        (
            Edit(
                "train/opt.py", '"params": norms, "weight_decay": 0.0', '"params": norms, "weight_decay": weight_decay'
            ),
        ),
        OWN_TRAINING,
        STEPS,
    ),
    "momentum not Nesterov's": Mutation(
        (Edit("train/opt.py", "nesterov=nesterov)", "nesterov=False)"),), OWN_TRAINING, STEPS
    ),
    "average without a ramp": Mutation(
        (Edit("train/ema.py", "d = self.decay * (1 - math.exp(-self.steps / self.ramp))", "d = self.decay"),),
        "tests/train/test_schedules.py",
        STEPS,
    ),
    "gradients not clipped": Mutation(
        (Edit("train/step.py", "self.parameters, self.gradient_clip)", "self.parameters, math.inf)"),),
        OWN_TRAINING,
        STEPS,
    ),
    "biases warmed up like weights": Mutation(
        (Edit("train/sched.py", "bias_rate=(1 - part) * self.bias_rate + part * rate", "bias_rate=part * rate"),),
        "tests/train/test_schedules.py",
        STEPS,
    ),
    "a truth found twice": Mutation((Edit(OWN_AP, "taken.add(truth)", "pass"),), "tests/eval/test_metrics.py", AP),
    "precision as it comes": Mutation(
        (Edit(OWN_AP, "np.maximum.accumulate(precision[::-1])[::-1]", "precision"),), "tests/eval/test_metrics.py", AP
    ),
    "difficult objects count for COCO": Mutation(
        (Edit("eval/metrics.py", '"iscrowd": int(difficult)', '"iscrowd": 0'),), "tests/eval/test_metrics.py", COCO_AP
    ),
}
JURIES = ("own", "parity")


def copy_of_mars(folder: Path, mutation: Mutation | None) -> Path:
    """The tree without its history and pictures, with the mistake in it."""
    copy = folder / "mars"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    for file, right, wrong in mutation.edits if mutation else ():
        text = (copy / file).read_text(encoding="utf-8")
        assert text.count(right) == 1, f"{file}: '{right}' is there {text.count(right)} times"
        (copy / file).write_text(text.replace(right, wrong), encoding="utf-8")
    return copy


def run_tests(copy: Path, *tests: str) -> subprocess.CompletedProcess:
    """The tests of the copy, up to the first that fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)


def skip_without_reference(jury: str) -> None:
    if jury == "parity":
        pytest.importorskip("ultralytics", minversion="8.4.190")


@pytest.mark.slow
@pytest.mark.parametrize("jury", JURIES)
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mistake_is_noticed(tmp_path, record_property, name, jury):
    skip_without_reference(jury)
    mutation = MUTATIONS[name]
    done = run_tests(copy_of_mars(tmp_path, mutation), getattr(mutation, jury))
    failed = re.findall(r"^FAILED (\S+)", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 1, f"'{name}' went unnoticed (status {done.returncode}):\n{done.stdout[-2000:]}"
    assert failed, done.stdout[-2000:]
    record_property("noticed by", failed[0])


@pytest.mark.slow
@pytest.mark.parametrize("jury", JURIES)
def test_the_copy_without_a_mistake_passes(tmp_path, jury):
    skip_without_reference(jury)
    tests = {getattr(mutation, jury) for mutation in MUTATIONS.values()}
    done = run_tests(copy_of_mars(tmp_path, None), *sorted(tests))
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_every_mistake_can_still_be_made():
    """Fast, so that a line that moves is told with the change that moves it."""
    for mutation in MUTATIONS.values():
        for file, right, _ in mutation.edits:
            assert (ROOT / file).read_text(encoding="utf-8").count(right) == 1, f"{file}: {right}"
