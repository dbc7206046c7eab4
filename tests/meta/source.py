"""Parsed Python files for the rules of `tests/meta`, and how a rule reports what it found."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pytest

Function = ast.FunctionDef | ast.AsyncFunctionDef
OURS = ("app", "audit", "deltabert", "deltas", "frontend", "training")


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def parse(cls, path: str, text: str) -> Source:
        """Parse a file's text."""
        return cls(path, text, ast.parse(text))

    @property
    def module(self) -> str:
        """The dotted name by which others import the file."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def num_lines(self) -> int:
        """The number of lines of the file."""
        return self.text.count("\n")

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """Every node of the syntax tree. The rules share it, since to walk takes seconds."""
        return tuple(ast.walk(self.tree))

    def functions(self) -> Iterator[Function]:
        """Yield every function, including methods and nested functions."""
        return (node for node in self.nodes if isinstance(node, Function))

    @cached_property
    def imports(self) -> tuple[tuple[str, str], ...]:
        """Each imported module and the name taken from it ("" for a whole module)."""
        return tuple(self._imports())

    def _imports(self) -> Iterator[tuple[str, str]]:
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for module in (alias.name for alias in node.names):
                    used = self._attributes(module) if module in OURS else {""}
                    yield from ((module, name) for name in used)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and node.args:
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                first = node.args[0]
                if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                    yield str(first.value), ""

    def _attributes(self, module: str) -> set[str]:
        """Return the names that the file takes from a module as `module.name`."""
        return {
            node.attr
            for node in self.nodes
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == module
        }


def imported_names(source: Source, sources: Mapping[str, Source]) -> Iterator[tuple[str, str]]:
    """Yield (module, name) for each import of a source, seen through what packages re-export.

    Args:
        source: the importing file.
        sources: all files of the product by dotted name.
    """
    for module, name in source.imports:
        if f"{module}.{name}" in sources:
            yield f"{module}.{name}", ""
        elif module in sources and sources[module].path.endswith("__init__.py"):
            again = {taken: origin for origin, taken in sources[module].imports if taken}
            yield again.get(name, module), name
        else:
            yield module, name


def report(rule: str, found: Iterable[str]) -> None:
    """Fail with the violations of a rule.

    Args:
        rule: the rule's name.
        found: one line per violation, which begins with the file's path and a colon.
    """
    bad = sorted(found)
    if bad:
        lines = "\n".join(bad)
        pytest.fail(f"{len(bad)} violations of the rule '{rule}':\n{lines}", pytrace=False)
