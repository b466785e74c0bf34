"""Settings and fixtures of all tests: shape checks, one thread per process, the folder of real data sets."""

import functools
import importlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import typecheck
from PIL import Image

# Set before torch and numpy are imported. pytest-xdist runs one process per core; by default each of them would start
# one thread per core.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Large libraries are imported before the first module of Mars. While jaxtyping loads one of our modules, Python does
# not use the compiled copies (.pyc) of the libraries that the module imports: it would compile torch and torchvision
# again in each process, which takes eight seconds. The process that only starts xdist's workers needs no libraries.
LIBRARIES = (
    "torch", "torchvision.ops", "cv2", "matplotlib.figure", "matplotlib.backends.backend_agg", "faster_coco_eval",
)  # fmt: skip
if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith(("-n", "--numprocesses")) for word in sys.argv):
    for library in LIBRARIES:
        importlib.import_module(library)

# In the tests, every call of these packages checks the annotated shapes and types. In production they cost nothing.
jaxtyping.jaxtyped = typecheck.checked
jaxtyping.install_import_hook(
    ["config", "ops", "dl", "scenes", "model", "interop", "eval", "runs", "train", "debug"], "typecheck.check"
)

# No deadline, because the machine may be busy. The examples are the same in each run: the suite fails only after a
# change of the code, and the same command reproduces a failure.
hypothesis.settings.register_profile(
    "mars", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("mars")

IMAGE_OPEN = Image.open
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--bfloat16", choices=("present", "absent"), help="whether the processor has bfloat16 (default: as detected)"
    )
    parser.addoption(
        "--mutations",
        metavar="KEY",
        help="without --slow, try a few mistakes of tests/mutations.py, selected by KEY, or 'all' of them",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    key = config.getoption("--mutations")
    return key and f"mutations: make mutations MUTATIONS={key} tries the same ones again"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--bfloat16") == "absent":  # oneDNN reads this once, also in the processes that tests start
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow (make test-slow)"))


@pytest.fixture(autouse=True)
def _restore_libraries() -> None:
    """Undo what importing ultralytics does to the whole process: it replaces PIL's Image.open and torch.save."""
    if "ultralytics" in sys.modules:
        torch = sys.modules["torch"]
        Image.open, torch.save = IMAGE_OPEN, torch.serialization.save


@pytest.fixture(autouse=True, scope="session")
def _fixed_step_times(pytestconfig: pytest.Config) -> None:
    """precision=auto measures nothing: each type has a fixed step time, and half precision is faster.

    With --bfloat16 the option decides whether the processor has it; arithmetic in bfloat16 works on every processor.
    """
    import torch

    import ops.device

    if reported := pytestconfig.getoption("--bfloat16"):
        ops.device.cpu_has_bfloat16 = lambda: reported == "present"
    ops.device._time_step = lambda _model, _device, _shape, dtype, _count: 0.002 if dtype == torch.float32 else 0.001


@pytest.fixture(autouse=True, scope="session")
def _scan_each_pickle_once() -> None:
    """A command reads its checkpoint several times; the result of the scan depends on the bytes only.

    A refusal is an exception, which is not cached. Tests of the scan itself call `model.picklescan.check_pickle`.
    """
    import model.unpickle

    model.unpickle.check_pickle = functools.lru_cache(maxsize=32)(model.unpickle.check_pickle)


@pytest.fixture(scope="module")
def narrow_networks() -> Iterator[None]:
    """The phases nano, small and medium with all their layers and fewer channels.

    For tests that do not depend on the network. A training of a few steps then takes half the time; most of it is
    spent on checkpoints. The first layers differ in width (8, 16 and 24), because that tells the phase of a file.
    """
    from model.base.scales import SCALES

    with pytest.MonkeyPatch.context() as patch:
        for phase, width in {"nano": 1 / 16, "small": 1 / 4, "medium": 3 / 8}.items():
            patch.setitem(SCALES, phase, SCALES[phase]._replace(width=width))
        yield


@pytest.fixture
def real_curves() -> None:
    """With this fixture the plot of the curves is really drawn."""


@pytest.fixture(autouse=True)
def _same_on_every_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results do not depend on free memory or on time; the plot of the curves, slower than an epoch, is not drawn.

    The modules are imported here, once per process, so that the order of the tests does not matter.
    """
    values = {
        "dl.image_cache": {"available_memory": lambda: 16 * 2**30},
        "debug.doctor.memory_check": {"available_memory": lambda: 16 * 2**30},
        "debug.doctor.learning_check": {"_SECONDS": math.inf},
        "train.trainer": {"PLOT_INTERVAL": math.inf, "plot_curves": lambda *_: None},
    }
    if "real_curves" in request.fixturenames:
        del values["train.trainer"]["plot_curves"]
    for module, attributes in values.items():
        for name, value in attributes.items():
            monkeypatch.setattr(importlib.import_module(module), name, value)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and weights outside the checkout: $MARS_SHARED, else ../shared."""
    folder = Path(os.environ.get("MARS_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data sets: {folder / 'data'} does not exist (set $MARS_SHARED to another folder)")
    return folder
