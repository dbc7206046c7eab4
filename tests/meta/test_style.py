"""House rules that no linter knows: sizes, names, and who must have a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function of a module, methods and inner ones included."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node


def length(node: Function) -> int:
    """Lines from the name to the end, docstring included, decorators not."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def num_parameters(node: Function) -> int:
    """Parameters that a caller may give, without self and cls."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public classes and functions of a module without a docstring, with their methods."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if (
                    isinstance(method, Function)
                    and not method.name.startswith("_")
                    and not ast.get_docstring(method)
                ):
                    yield f"{node.name}.{method.name}"


def test_files_and_functions_stay_small(modules: dict[str, Path]) -> None:
    large = []
    for name, path in modules.items():
        source = path.read_text(encoding="utf-8")
        if source.count("\n") > MAX_FILE_LINES:
            large.append(f"{name}: {source.count(chr(10))} lines")
        large += [
            f"{name}.{node.name}: {length(node)} lines"
            for node in functions(ast.parse(source))
            if length(node) > MAX_FUNCTION_LINES
        ]
    assert not large


def test_functions_take_few_parameters(modules: dict[str, Path]) -> None:
    greedy = [
        f"{name}.{node.name}: {num_parameters(node)} parameters"
        for name, path in modules.items()
        for node in functions(ast.parse(path.read_text(encoding="utf-8")))
        if num_parameters(node) > MAX_PARAMETERS
    ]
    assert not greedy


def test_every_module_says_what_it_is(modules: dict[str, Path]) -> None:
    silent = [
        name
        for name, path in modules.items()
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_public_names_have_docstrings(modules: dict[str, Path]) -> None:
    silent = [
        f"{name}.{missing}"
        for name, path in modules.items()
        for missing in undocumented(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_no_module_is_a_drawer(modules: dict[str, Path]) -> None:
    assert not [name for name in modules if name.split(".")[-1] in VAGUE]


def test_the_rules_see_what_they_should() -> None:
    body = "    x = 1\n" * 70
    tree = ast.parse(f'class A:\n    """A."""\n\n    def f(self): ...\n\n\ndef g():\n{body}')
    assert list(undocumented(tree)) == ["A.f", "g"]
    assert [length(node) for node in functions(tree) if length(node) > MAX_FUNCTION_LINES] == [71]
    (wide,) = functions(ast.parse("def f(self, a, /, b, *c, d=1, **e): ..."))
    assert num_parameters(wide) == 3
