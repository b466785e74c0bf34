"""Size and shape of the code in one table, of this checkout and of another: python -m benchmarks.figures --tree OTHER

The product is mars.py and the packages, without benchmarks, examples and tests. A helper used once is a private
function or method that the product names exactly once outside its definition.
"""

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOT_PRODUCT = ("benchmarks", "tests", "docs", "examples")
# The files that a reader needs to understand how a network is trained; `*` matches folders, too.
CORE = (
    "model/base/*", "ops/boxes.py", "ops/anchors.py", "ops/nms.py", "ops/batch.py", "train/tal.py", "train/loss.py",
    "train/distilloss.py", "train/objective.py", "train/step.py", "train/*guard.py", "train/trainer.py",
    "train/setup.py",
)  # fmt: skip
LONG, MANY = 60, 6  # functions with more lines, or with more parameters, are listed
LOADED = "import sys; sys.path.insert(0, '.'); import train.step; print(*sys.modules)"
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class SourceFile:
    name: str
    lines: int
    comments: int  # lines with one
    docstrings: int  # their lines
    nodes: list[ast.AST]


def read_file(file: Path, root: Path) -> SourceFile:
    text = file.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    nodes = list(ast.walk(ast.parse(text)))
    values = [node.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    docstrings = sum(value.end_lineno - value.lineno + 1 for value in values if isinstance(value.value, str))
    return SourceFile(file.relative_to(root).as_posix(), len(text.splitlines()), len(comments), docstrings, nodes)


def product_files(root: Path) -> list[SourceFile]:
    """mars.py and each Python file of the packages, by name."""
    packages = [folder for folder in root.iterdir() if folder.name[0] != "." and folder.name not in NOT_PRODUCT]
    files = [*root.glob("*.py"), *(file for folder in packages for file in folder.rglob("*.py"))]
    return [read_file(file, root) for file in sorted(files)]


def helpers_used_once(files: list[SourceFile]) -> list[str]:
    """As file:name. `__init__` and its like, and functions inside functions, are not counted."""
    uses, helpers = Counter(), []
    for file in files:
        for node in file.nodes:
            if isinstance(node, ast.Name):
                uses[node.id] += 1
            elif isinstance(node, ast.Attribute):
                uses[node.attr] += 1
            elif isinstance(node, ast.ImportFrom):
                uses.update(alias.name for alias in node.names)
            elif isinstance(node, (ast.Module, ast.ClassDef)):
                helpers += [(file.name, member.name) for member in node.body if isinstance(member, FUNCTION)]
    return [f"{file}:{name}" for file, name in helpers if name[0] == "_" and name[:2] != "__" and uses[name] == 1]


def shared_class_names(files: list[SourceFile]) -> list[str]:
    owners = defaultdict(set)
    for file in files:
        for node in file.nodes:
            if isinstance(node, ast.ClassDef):
                owners[node.name].add(file.name)
    return [f"{name}: {', '.join(sorted(names))}" for name, names in sorted(owners.items()) if len(names) > 1]


def files_loaded(root: Path, files: list[SourceFile]) -> int:
    """Number of product files that `import train.step` loads in a new process."""
    modules = {file.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files}
    output = subprocess.run([sys.executable, "-c", LOADED], cwd=root, capture_output=True, text=True, check=True).stdout
    return len(modules & set(output.split()))


def text_share(files: list[SourceFile]) -> str:
    lines = sum(file.lines for file in files)
    comments, docstrings = sum(file.comments for file in files), sum(file.docstrings for file in files)
    return f"{comments / lines:.1%} / {docstrings / lines:.1%}"


def measure(files: list[SourceFile]) -> dict[str, str | list[str]]:
    """Figure -> value. A list holds names; the table shows how many."""
    packages = Counter()
    for file in files:
        packages[file.name.split("/")[0]] += file.lines
    core = [file for file in files if any(fnmatch(file.name, pattern) for pattern in CORE)]
    functions = [(file.name, node) for file in files for node in file.nodes if isinstance(node, FUNCTION)]
    lengths, long, many = [], [], []
    for file, node in functions:
        lengths.append(node.end_lineno - node.lineno + 1)
        if lengths[-1] > LONG:
            long.append(f"{file}:{node.name} ({lengths[-1]})")
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        if (number := sum(argument.arg not in ("self", "cls") for argument in arguments)) > MANY:
            many.append(f"{file}:{node.name} ({number})")
    lengths, helpers, largest = sorted(lengths), helpers_used_once(files), max(files, key=lambda file: file.lines)
    return {
        "product lines": f"{packages.total()}",
        **{f"lines of {package}": f"{count}" for package, count in packages.items()},
        "product files": f"{len(files)}",
        "core lines / files": f"{sum(file.lines for file in core)} / {len(core)}",
        "largest file": f"{largest.name} ({largest.lines})",
        "function lines p50 / p90 / max": " / ".join(
            f"{lengths[(len(lengths) - 1) * p // 100]}" for p in (50, 90, 100)
        ),
        f"functions over {LONG} lines": long,
        f"functions with more than {MANY} parameters": many,
        "private helpers used once": helpers,
        "private helpers used once, share of all functions": f"{len(helpers) / len(functions):.1%}",
        "comment / docstring lines": text_share(files),
        "comment / docstring lines, core": text_share(core),
        "class names in several files": shared_class_names(files),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--tree", type=Path, help="another checkout, shown in a column before this one")
    parser.add_argument("--names", action="store_true", help="also list the functions and classes of this checkout")
    args = parser.parse_args(argv)
    columns = []
    for root in [args.tree, ROOT] if args.tree else [ROOT]:
        files = product_files(root)
        columns.append({"files loaded by import train.step": f"{files_loaded(root, files)}", **measure(files)})
    print(f"| figure |{' before |' * (len(columns) - 1)} now |\n|{'---|' * (len(columns) + 1)}")
    for name in sorted({**columns[0], **columns[-1]}):
        values = [column.get(name, "-") for column in columns]
        print(f"| {name} | {' | '.join(f'{len(v)}' if isinstance(v, list) else v for v in values)} |")
    for name, value in columns[-1].items() if args.names else ():
        if isinstance(value, list):
            print(f"\n{name}:", *value, sep="\n  ")


if __name__ == "__main__":
    main()
