"""docs/limits.md says what the code does."""

import importlib
import re
from pathlib import Path

import pytest

ROW = re.compile(r"\| [^|]+ \| ([\d,]+) \| `([\w/]+)\.py: (\w+)` \| [^|]+ \|")
LINES = (Path(__file__).resolve().parent.parent / "docs/limits.md").read_text(encoding="utf-8").splitlines()
ROWS = [line for line in LINES if line.startswith("|") and not line.startswith(("| what |", "|---"))]


@pytest.mark.parametrize("row", ROWS)
def test_a_limit_in_the_documentation_is_the_limit_in_the_code(row):
    match = ROW.fullmatch(row)
    assert match is not None
    value, module, name = match.groups()
    assert getattr(importlib.import_module(module.replace("/", ".")), name) == int(value.replace(",", ""))


def test_there_are_limits_of_every_kind():
    assert len(ROWS) == 24
