"""What all tests share: shapes are checked while they run, one thread a process, and where ../shared lies."""

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook
from PIL import Image

# Before torch and numpy are imported: pytest-xdist runs one process a core, and each would start a thread a core.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# Every annotated shape and type of these packages is checked at each call; in production they cost nothing.
install_import_hook(["config", "ops", "dl", "model", "interop", "eval", "train"], "typecheck.check")

IMAGE_OPEN = Image.open
ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


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


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and weights that is no part of the checkout: $MARS_SHARED, else ../shared."""
    folder = Path(os.environ.get("MARS_SHARED") or ROOT.parent / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"real data sets are not at hand: no {folder / 'data'} ($MARS_SHARED names another place)")
    return folder
