"""Imports run down, ultralytics stays outside, and no room is called utils: read from the syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom.
ORDER = ("mars", "commands", "debug", "train", "eval", "runs", "interop", "model", "dl", "ops", "config")
MAY_IMPORT = {package: set(ORDER[place + 1 :]) for place, package in enumerate(ORDER)}
MAY_IMPORT["model"].remove("dl")
MAY_IMPORT["cfgops"] = {"config"}
MAY_IMPORT["scenes"] = {"dl", "ops", "config"}
MAY_IMPORT["commands"].add("scenes")
MAY_IMPORT["benchmarks"] = {"scenes", *ORDER}
# Plain arithmetic sees ops and itself; what its `from_config` and `build_*` read of a config needs no import.
ARITHMETIC = ("train/tal.py", "train/loss.py", "train/distilloss.py", "train/sched.py", "train/ema.py")
FORBIDDEN_NAMES = {"utils", "util", "misc", "common", "helpers"}


def sources() -> list[Path]:
    """Every Python file of ours but the tests."""
    rooms = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]
    return [ROOT / "mars.py", *sorted(file for room in rooms for file in (ROOT / room).rglob("*.py"))]


def room_of(file: Path) -> str:
    first = file.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import, those inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            inside = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            yield node.lineno, ".".join([*inside, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def arrows(file: Path) -> list[tuple[int, str]]:
    package = ".".join(file.relative_to(ROOT).parent.parts)
    return list(imports(ast.parse(file.read_text(encoding="utf-8")), package))


def violations(file: Path) -> list[str]:
    room, found = room_of(file), []
    for line, module in arrows(file):
        target = module.partition(".")[0]
        is_allowed = target in MAY_IMPORT[room] | {room}
        if file.relative_to(ROOT).as_posix() in ARITHMETIC:
            is_allowed = target == "ops" or f"{module.replace('.', '/')}.py" in ARITHMETIC
        if target in MAY_IMPORT and not is_allowed:
            found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    return found


def test_there_is_something_to_look_at():
    assert len(sources()) > 30
    assert {room_of(file) for file in sources()} >= {"mars", "config", "cfgops", "ops", "dl", "model", "eval", "train"}


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_run_down(file):
    assert violations(file) == []


def test_recipes_import_config_only():
    foreign = [
        f"{file.name}:{line} imports {module}"
        for file in (ROOT / "cfgops").glob("*.py")
        for line, module in arrows(file)
        if module.partition(".")[0] != "config"
    ]
    assert foreign == []


def test_the_parts_that_compute_read_a_config_in_builders_only():
    """`mcfg` is a parameter of `from_config` and `build_*` there, of nothing else."""
    for name in ARITHMETIC:
        functions = [
            node
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)
        ]
        assert functions, name
        for node in functions:
            is_builder = node.name == "from_config" or node.name.startswith("build_")
            assert is_builder or "mcfg" not in [argument.arg for argument in node.args.args], f"{name}: {node.name}"


def test_only_interop_imports_ultralytics():
    users = {
        file.relative_to(ROOT).as_posix()
        for file in sources()
        for _, module in arrows(file)
        if module.startswith("ultralytics")
    }
    assert {user for user in users if not user.startswith("benchmarks/")} == {"interop/ultralytics.py"}


def test_config_needs_nothing_but_the_standard_library():
    """So that the help and every mistake in a command answer at once."""
    heavy = {"torch", "torchvision", "numpy", "cv2", "PIL", "matplotlib", "tqdm", "ultralytics", "jaxtyping"}
    found = [
        (file.name, module)
        for file in (ROOT / "config").glob("*.py")
        for _, module in arrows(file)
        if module.partition(".")[0] in heavy
    ]
    assert found == []


def test_no_room_for_odds_and_ends():
    assert [
        file
        for file in sources()
        if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in file.relative_to(ROOT).parts}
    ] == []


@pytest.mark.parametrize(
    ("text", "module"),
    [
        ("import train.trainer", "train.trainer"),
        ("def f():\n    from eval import painter", "eval"),
        ("if TYPE_CHECKING:\n    from model.base import head as h", "model.base"),
        ("from .boxes import x", "ops.boxes"),
        ("from . import boxes", "ops"),
        ("importlib.import_module('train')", "train"),
    ],
)
def test_the_reader_of_imports_sees_them_all(text, module):
    assert [name for _, name in imports(ast.parse(text), "ops")] == [module]
