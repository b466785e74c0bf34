"""pyproject.toml says the same as the requirements, the folders and the code."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import config
import mars

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(name: str) -> set[str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {line.split("#")[0].strip() for line in lines} - {""}


def test_requirements_are_complete():
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    assert requirements("requirements.txt") == {*project["dependencies"], *extras["parity"]}
    assert set(extras["onnx"]) <= requirements("requirements-dev.txt")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("words", "needs_tools", "is_cpu_build"),
    [(["demo"], False, False), (["demo", "TORCH=cpu"], False, True), (["test"], True, False), (["lint"], True, False)],
)
def test_the_demo_needs_no_development_tools(tmp_path, words, needs_tools, is_cpu_build):
    """The commands that make would run in a new clone."""
    for name in ("Makefile", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path)
    plan = subprocess.run(["make", "-n", *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "pip install -r requirements.txt" in plan
    assert ("pip install -r requirements-dev.txt" in plan) == needs_tools
    assert ("--index-url https://download.pytorch.org/whl/cpu" in plan) == is_cpu_build
    assert "CPU build" in plan and "to download" in plan and "--quiet -r" not in plan


def test_every_package_is_installed():
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")} - {"tests"}
    assert {name.removesuffix("*") for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} == packages


def test_the_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", config.__version__)
    assert "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "config.__version__"}


def test_the_console_script_is_a_function():
    module, _, name = PROJECT["project"]["scripts"]["mars"].partition(":")
    assert module == "mars" and callable(getattr(mars, name))


def test_version_option(capsys):
    with pytest.raises(SystemExit) as done:
        mars.main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"mars {config.__version__}, Python ")
