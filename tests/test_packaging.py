"""pyproject.toml says the same as the requirements, the folders and the code."""

import re
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
