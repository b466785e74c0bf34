"""The Python blocks of README and docs run, and the files, functions and links that they name exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from config.load import load_config
from model import build_model
from ops.batch import Batch
from train.loss import DetectionLoss

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DECISIONS = sorted((ROOT / "docs/decisions").glob("*.md"))

CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# `path/file.py`, or `path/file.py:name` where the name may be `Class.method`.
NAMED_FILE = re.compile(r"(?<![\w*/])((?:\w+/)+\w+\.py|mars\.py)(?::([A-Za-z_][\w.]*))?")
NAMED_MODULE = re.compile(r"python -m (benchmarks\.\w+)")


def named_by_file(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def python_blocks(page: Path) -> list[str]:
    return CODE.findall(page.read_text(encoding="utf-8"))


def run(blocks: list[str], page: Path, **names: object) -> dict:
    """Execute the blocks one after the other, as one module."""
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names


@pytest.fixture
def code_folder(tmp_path, monkeypatch) -> Path:
    """The examples write beside the working directory; this one has a folder of its own above it."""
    folder = tmp_path / "mars"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1200


def test_readme_example_trains_and_evaluates(narrow_networks, code_folder, capsys):
    (block,) = python_blocks(README)
    names = run([block], README)
    assert names["result"].images_evaluated == 2
    assert re.fullmatch(r"mAP50 \d\.\d{3}, mAP50-95 \d\.\d{3}\n", capsys.readouterr().out)
    assert (code_folder.parent / "mars-running/voc.nano.full-squares/weights/best.pth").is_file()


def test_custom_loss_trains(narrow_networks, code_folder):
    page = ROOT / "docs/custom-losses.md"
    names = run(python_blocks(page), page)
    (row,) = names["trainer"].history
    assert row["balance"] > 0


def test_recipe_example_is_a_recipe():
    page = ROOT / "docs/recipes.md"
    mcfg = run(python_blocks(page), page)["mcfg"]
    assert mcfg([]).maxEpoch == 100
    assert mcfg(["slow"]).baseLearningRate == 1e-3


def test_probe_example_prints_every_documented_value(narrow_networks, capsys):
    page = ROOT / "docs/probes.md"
    mcfg = load_config("voc.nano.full", data="d", overrides={"classList": ["red", "blue"]})
    model = build_model(mcfg)
    images = torch.rand(1, 3, 64, 64)
    batch = Batch(
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        boxes=torch.tensor([[[8.0, 8.0, 40.0, 40.0]]]),
        labels=torch.zeros(1, 1, dtype=torch.long),
        valid=torch.ones(1, 1, dtype=torch.bool),
        image_ids=("square",),
        letterboxes=(None,),
    )
    run(python_blocks(page), page, model=model, loss=DetectionLoss.from_config(mcfg, model), images=images, batch=batch)
    printed = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    documented = set(re.findall(r"`((?:tal|loss)\.\w+)`", page.read_text(encoding="utf-8")))
    assert printed == documented


def names_in(tree: ast.Module) -> Iterator[str]:
    """Functions, classes and their methods as `Class.method`, and constants of a module."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=named_by_file)
def test_named_files_and_functions_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = {(module.replace(".", "/") + ".py", "") for module in NAMED_MODULE.findall(text)}
    missing = []
    for path, name in set(NAMED_FILE.findall(text)) | modules:
        file = ROOT / path
        if not file.is_file():
            missing.append(path)
        elif name and name not in names_in(ast.parse(file.read_text(encoding="utf-8"))):
            missing.append(f"{path}:{name}")
    assert missing == []


def test_the_architecture_names_functions():
    found = NAMED_FILE.findall((ROOT / "docs/architecture.md").read_text(encoding="utf-8"))
    assert len({(path, name) for path, name in found if name}) >= 20


def anchors(page: Path) -> set[str]:
    """The targets that GitHub gives to the headings of a page."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS], ids=named_by_file)
def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_readme_links_to_every_page():
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(README.read_text(encoding="utf-8"))}
    assert [page.name for page in PAGES[1:] if page not in linked] == []
