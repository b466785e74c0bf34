"""Rules about the code itself, read from its syntax trees: who imports whom, sizes, names."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from benchmarks import figures

ROOT = Path(__file__).resolve().parent.parent

# Who may import whom.
ORDER = ("mars", "commands", "debug", "train", "eval", "runs", "interop", "model", "dl", "ops", "config")
MAY_IMPORT = {package: set(ORDER[place + 1 :]) for place, package in enumerate(ORDER)}
MAY_IMPORT["model"].remove("dl")
MAY_IMPORT["cfgops"] = {"config"}
MAY_IMPORT["scenes"] = {"dl", "ops", "config"}
MAY_IMPORT["commands"].add("scenes")
MAY_IMPORT["benchmarks"] = {"scenes", *ORDER}
# These files compute. They import only `ops` and each other; a config is read by `from_config` and `build_*` alone.
ARITHMETIC = ("train/tal.py", "train/loss.py", "train/distilloss.py", "train/sched.py", "train/ema.py")
MAX_FILE_LINES = 400
FORBIDDEN_NAMES = {"utils", "util", "misc", "common", "helpers"}


def sources() -> list[Path]:
    """Every Python file of the repository without the tests."""
    packages = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]
    return [ROOT / "mars.py", *sorted(file for package in packages for file in (ROOT / package).rglob("*.py"))]


def package_of(file: Path) -> str:
    """The package at the top level; `mars` for mars.py."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Line and full module name of every import, including those in functions and under `if TYPE_CHECKING`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, absolute_module(node, package)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant):
                    yield node.lineno, str(argument.value)


def absolute_module(node: ast.ImportFrom, package: str) -> str:
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parts, *([node.module] if node.module else [])])


def imported_modules(file: Path) -> list[tuple[int, str]]:
    package = ".".join(file.relative_to(ROOT).parent.parts)
    return list(imports(ast.parse(file.read_text(encoding="utf-8")), package))


def import_cycle(trees: dict[str, ast.AST]) -> list[str]:
    """Modules of which each imports the one before, the first again at the end; empty where imports run one way.

    `from a import b` imports the module `a.b` if it is one of `trees`, else `a`.
    """
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & set(trees)
            elif isinstance(node, ast.ImportFrom):
                module = absolute_module(node, name.rpartition(".")[0])
                targets = {f"{module}.{alias.name}" for alias in node.names}
                graph[name] |= {target if target in trees else module for target in targets} & set(trees)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def violations(file: Path) -> list[str]:
    package, found = package_of(file), []
    for line, module in imported_modules(file):
        target = module.partition(".")[0]
        is_allowed = target in MAY_IMPORT[package] | {package}
        if file.relative_to(ROOT).as_posix() in ARITHMETIC:
            is_allowed = target == "ops" or f"{module.replace('.', '/')}.py" in ARITHMETIC
        if target in MAY_IMPORT and not is_allowed:
            found.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    return found


def test_there_is_something_to_look_at():
    assert len(sources()) > 30
    assert {package_of(file) for file in sources()} >= {
        "mars",
        "config",
        "cfgops",
        "ops",
        "dl",
        "model",
        "eval",
        "train",
    }


@pytest.mark.parametrize("file", sources(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_imports_run_down(file):
    assert violations(file) == []


@pytest.mark.parametrize("package", [name for name in MAY_IMPORT if (ROOT / name).is_dir()])
def test_imports_run_one_way_inside_a_package(package):
    files = [file for file in sources() if package_of(file) == package]
    trees = {module_of(file): ast.parse(file.read_text(encoding="utf-8")) for file in files}
    assert trees
    assert import_cycle(trees) == []


@pytest.mark.parametrize(
    ("texts", "modules"),
    [
        (["from a import c", ""], set()),
        (["from a import c", "import a.b"], {"a.b", "a.c"}),
        (["from .c import x", "def f():\n    from a import b"], {"a.b", "a.c"}),
        (["from a import x", "import a.b"], set()),
    ],
)
def test_an_import_cycle_is_found(texts, modules):
    assert (
        set(import_cycle({name: ast.parse(text) for name, text in zip(("a.b", "a.c"), texts, strict=True)})) == modules
    )


def test_training_does_not_know_the_debugging_tools():
    """It is given a callback. The order of packages says so, too; this test stays if the order changes."""
    files = [file for file in sources() if package_of(file) == "train"]
    assert len(files) > 10
    assert [file.name for file in files for _, module in imported_modules(file) if module.startswith("debug")] == []


def test_recipes_import_config_only():
    foreign = [
        f"{file.name}:{line} imports {module}"
        for file in (ROOT / "cfgops").glob("*.py")
        for line, module in imported_modules(file)
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
        for _, module in imported_modules(file)
        if module.startswith("ultralytics")
    }
    assert {user for user in users if not user.startswith("benchmarks/")} == {"interop/ultralytics.py"}


def test_config_needs_nothing_but_the_standard_library():
    """So that the help and every mistake in a command answer at once."""
    heavy = {"torch", "torchvision", "numpy", "cv2", "PIL", "matplotlib", "tqdm", "ultralytics", "jaxtyping"}
    found = [
        (file.name, module)
        for file in (ROOT / "config").glob("*.py")
        for _, module in imported_modules(file)
        if module.partition(".")[0] in heavy
    ]
    assert found == []


def test_no_room_for_odds_and_ends():
    assert [
        file
        for file in sources()
        if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in file.relative_to(ROOT).parts}
    ] == []


def test_files_and_functions_are_short_and_class_names_unique():
    files = [figures.read_file(file, ROOT) for file in sources()]
    measured = figures.measure(files)
    assert [f"{file.name} ({file.lines})" for file in files if file.lines > MAX_FILE_LINES] == []
    assert measured["functions over 60 lines"] == []
    assert measured["class names in several files"] == []


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
