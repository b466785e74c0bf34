"""Which tags does a recipe test for? The answer comes from its syntax tree; the recipe is not run.

A recipe of the course assignment declares no TAGS; it only tests them: `if "full" in tags`. Without knowing its tags, a
typing error (`c1.nano.ful`) would train the wrong network without a warning.
"""

import ast
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

# Calls that test no tag. A test of what they return is found at that place.
_NEUTRAL_CALLS = frozenset(
    {
        "all", "any", "bool", "enumerate", "frozenset", "len", "list", "map", "print", "repr", "reversed", "set",
        "sorted", "str", "sum", "tuple", "zip",
    }
)  # fmt: skip
# Methods that test no tag, such as those of a list, a logger or a separator.
_NEUTRAL_METHODS = frozenset({"append", "debug", "extend", "format", "info", "join", "sort", "warning"})
# Methods of strings and functions of `re` that test a part of a tag: the tags that pass cannot be listed.
_PARTIAL_TESTS = frozenset({"endswith", "find", "fullmatch", "join", "match", "removeprefix", "removesuffix", "search"})
_SET_OPERATORS = (ast.BitAnd, ast.BitOr, ast.BitXor, ast.Sub)


@dataclass
class TagTests:
    """The tests of tags in a recipe."""

    words: set[str] = field(default_factory=set)  # strings that are compared with tags
    prefixes: set[str] = field(default_factory=set)  # of `tag.startswith("...")`
    unreadable_line: int | None = None  # line of a test whose strings the syntax tree does not show

    def accepts(self, tag: str) -> bool:
        """Is it certain that the recipe tests for this tag?"""
        return tag in self.words or tag.startswith(tuple(self.prefixes))


def read_tag_tests(tree: ast.Module) -> TagTests:
    """The tests of tags in `mcfg(tags)` and in the other functions of the file.

    It reads comparisons, `in`, methods (`tags.count("full")`), set operators, dictionary keys and `match`, and follows
    constants and variables that depend on tags. It ignores scopes: a string too many only means that a wrong tag with
    that spelling is not found.
    """
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if "mcfg" not in functions:
        return TagTests(unreadable_line=1)  # it is imported or made by a call
    values = _values_of_names(tree, functions)
    parameters = functions["mcfg"].args
    tags = {parameter.arg for parameter in (*parameters.posonlyargs, *parameters.args, parameters.vararg) if parameter}
    while more := {name for name in values if any(_mentions(value, tags) for value in values[name])} - tags:
        tags |= more
    tests = TagTests()
    for node in ast.walk(tree):
        operands = _operands(node, functions)
        if not any(_mentions(operand, tags) for operand in operands):
            continue
        methods = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)}
        is_partial = bool(methods & _PARTIAL_TESTS)
        strings = {text for operand in operands for text in _strings(operand, values)} if not is_partial else set()
        is_prefix = isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "startswith"
        (tests.prefixes if is_prefix else tests.words).update(strings)
        counts_tags = isinstance(node, ast.Compare) and any(isinstance(operand, ast.Constant) for operand in operands)
        if not strings and (is_partial or not counts_tags):  # `len(tags) > 1` tests for no tag
            tests.unreadable_line = tests.unreadable_line or getattr(node, "lineno", 1)
    return tests


def _values_of_names(tree: ast.Module, functions: dict[str, ast.FunctionDef]) -> dict[str, list[ast.expr]]:
    """Name -> the expressions that are bound to it by assignments, loops and calls of functions of the file."""
    values: dict[str, list[ast.expr]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            bound = [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
            bound = [(node.target, node.value)]
        elif isinstance(node, ast.For | ast.comprehension):
            bound = [(node.target, node.iter)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
            parameters = functions[node.func.id].args.args
            for parameter, argument in zip(parameters, node.args, strict=False):
                values[parameter.arg].append(argument)
            for keyword in node.keywords:
                values[keyword.arg or ""].append(keyword.value)
            continue
        else:
            continue
        for target, value in bound:
            for name in [target, *getattr(target, "elts", ())]:  # `for name, epochs in ...`
                if isinstance(name, ast.Name):
                    values[name.id].append(value)
    return values


def _operands(node: ast.AST, functions: Container[str]) -> Sequence[ast.AST]:
    """What a node compares, looks up, or passes to a function outside of the recipe; nothing for other nodes."""
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators]
    if isinstance(node, ast.BinOp) and isinstance(node.op, _SET_OPERATORS):
        return [node.left, node.right]
    if isinstance(node, ast.Match):
        return [node.subject, *(case.pattern for case in node.cases)]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Name | ast.Subscript):  # TABLE[tag], not tags[0]
        return [node.value, node.slice]
    if isinstance(node, ast.Call):
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        if isinstance(node.func, ast.Attribute) and arguments and node.func.attr not in _NEUTRAL_METHODS:
            return [node.func.value, *arguments]
        if isinstance(node.func, ast.Name) and node.func.id not in _NEUTRAL_CALLS and node.func.id not in functions:
            return arguments
    return []


def _mentions(node: ast.AST, names: set[str]) -> bool:
    return any(isinstance(child, ast.Name) and child.id in names for child in ast.walk(node))


def _strings(node: ast.AST, values: dict[str, list[ast.expr]], names: frozenset[str] = frozenset()) -> Iterator[str]:
    """The strings in an expression and in the values of its names. `names`: those that are being looked up."""
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        elif isinstance(child, ast.Name) and child.id not in names:
            for value in values.get(child.id, ()):
                yield from _strings(value, values, names | {child.id})
