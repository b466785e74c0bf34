"""Would the tests notice? A copy of Mars gets one of the mistakes in tests/mutations.py, and tests that should notice
must fail: those that need nothing but this repository, and those that ask the reference.

A line that is no longer there, or there twice, fails too: then the mistake has to be made anew. All mistakes are tried
with `make test-slow`; CI tries a few of them with each commit, see `chosen`.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = (".*", "__pycache__", "docs", "*.pt", "*.pth", "*.log")
JURIES = ("own", "parity")
OF_EACH_PART = 2  # mistakes tried with each commit: about a minute of one core


def chosen(key: str | None) -> set[str]:
    """The mistakes that are tried without --slow: `all`, or a few that follow from any other key, as a commit's name.

    As many from network and loss, which have a reference, as from everything else.
    """
    if key in (None, "all"):
        return set(MUTATIONS) if key else set()

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{key}/{name}".encode()).digest()

    parts = [[name for name, one in MUTATIONS.items() if bool(one.parity) == has] for has in (True, False)]
    return {name for part in parts for name in sorted(part, key=place)[:OF_EACH_PART]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not {"name", "jury"} <= set(metafunc.fixturenames):
        return
    now = chosen(metafunc.config.getoption("--mutations"))
    cases = [
        pytest.param(name, jury, marks=() if name in now and jury == "own" else pytest.mark.slow)
        for name, one in MUTATIONS.items()
        for jury in JURIES
        if getattr(one, jury)
    ]
    metafunc.parametrize(("name", "jury"), cases)


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
    tests = {getattr(mutation, jury) for mutation in MUTATIONS.values()} - {None}
    done = run_tests(copy_of_mars(tmp_path, None), *sorted(tests))
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_every_mistake_can_still_be_made():
    """Fast, so that a line that moves is told with the change that moves it."""
    assert len(MUTATIONS) >= 50
    for mutation in MUTATIONS.values():
        for file, right, _ in mutation.edits:
            assert (ROOT / file).read_text(encoding="utf-8").count(right) == 1, f"{file}: {right}"
        for test in filter(None, (mutation.own, mutation.parity)):
            file, _, function = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {function.partition('[')[0]}(" in text or not function, f"no such test: {test}"


def test_a_key_chooses_a_few_and_all_keys_together_choose_every_one():
    assert chosen(None) == set() and chosen("all") == set(MUTATIONS)
    assert chosen("a6cca7d") == chosen("a6cca7d")
    for key in ("a6cca7d", "331"):
        with_reference = [bool(MUTATIONS[name].parity) for name in chosen(key)]
        assert (with_reference.count(True), with_reference.count(False)) == (OF_EACH_PART, OF_EACH_PART)
    assert set().union(*(chosen(str(number)) for number in range(200))) == set(MUTATIONS)
