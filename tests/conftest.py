"""What all tests share: shapes are checked while they run, one thread a process, and where ../shared lies."""

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

# Before torch and numpy are imported: pytest-xdist runs one process a core, and each would start a thread a core.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Every annotated shape and type of these packages is checked at each call; in production they cost nothing.
jaxtyping.jaxtyped = typecheck.checked
jaxtyping.install_import_hook(
    ["config", "ops", "dl", "scenes", "model", "interop", "eval", "runs", "train", "debug"], "typecheck.check"
)

# No example is too slow for a busy machine. The examples are the same each time: the suite fails for a change of the
# code, never for a draw, and the same command shows a failure again.
hypothesis.settings.register_profile(
    "mars", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("mars")

IMAGE_OPEN = Image.open
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")
    parser.addoption(
        "--bfloat16", choices=("present", "absent"), help="what the processor says of bfloat16 (default: as it is)"
    )
    parser.addoption(
        "--mutations",
        metavar="KEY",
        help="try a few of the mistakes in tests/mutations.py without --slow: those that follow from KEY, or 'all'",
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    key = config.getoption("--mutations")
    return key and f"mutations: the same ones again with make mutations MUTATIONS={key}"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--bfloat16") == "absent":  # oneDNN reads it once, also in the processes that tests start
        os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow (make test-slow)"))


@pytest.fixture(autouse=True)
def _libraries_as_they_are() -> None:
    """Importing ultralytics replaces PIL's Image.open and torch.save in the whole process: put them back."""
    if "ultralytics" in sys.modules:
        torch = sys.modules["torch"]
        Image.open, torch.save = IMAGE_OPEN, torch.serialization.save


@pytest.fixture(autouse=True, scope="session")
def _precision_is_told(pytestconfig: pytest.Config) -> None:
    """Whether the processor has bfloat16, where --bfloat16 says so. precision=auto does not time for two seconds: each
    type has a fixed time, and half precision is the faster. Arithmetic in bfloat16 works on every processor.
    """
    import torch

    import ops.precision

    if reported := pytestconfig.getoption("--bfloat16"):
        ops.precision.cpu_has_bfloat16 = lambda: reported == "present"
    ops.precision._time_step = lambda _model, _device, _shape, dtype: 0.002 if dtype == torch.float32 else 0.001


@pytest.fixture(scope="module")
def narrow_nano() -> Iterator[None]:
    """Phase nano with all of its layers and a quarter of their channels: for tests of what happens around a network.

    A training of a few steps takes half as long, most of which goes into checkpoints.
    """
    from model.base.scales import SCALES, Scale

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, "nano", Scale(depth=0.33, width=1 / 16, max_channels=1024))
        yield


@pytest.fixture
def real_curves() -> None:
    """A test that asks for it sees the picture of the curves drawn."""


@pytest.fixture(autouse=True)
def _same_on_every_machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is ample, no clock ends a check or repeats a picture; curves, slower than an epoch, are not drawn.

    The modules are imported here, once in a process, so that it does not matter which test comes first.
    """
    values = {
        "dl.cache": {"available_memory": lambda: 16 * 2**30},
        "debug.doctor.memory": {"available_memory": lambda: 16 * 2**30},
        "debug.doctor.learning_check": {"_SECONDS": math.inf},
        "train.trainer": {"DRAWN_EVERY": math.inf, "plot_curves": lambda *_: None},
    }
    if "real_curves" in request.fixturenames:
        del values["train.trainer"]["plot_curves"]
    for module, attributes in values.items():
        for name, value in attributes.items():
            monkeypatch.setattr(importlib.import_module(module), name, value)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and weights that is no part of the checkout: $MARS_SHARED, else ../shared."""
    folder = Path(os.environ.get("MARS_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"real data sets are not at hand: no {folder / 'data'} ($MARS_SHARED names another place)")
    return folder
