"""Imports point one way: training -> deltas <- app; frontend speaks HTTP only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

OURS = ("app", "deltas", "frontend", "training", "tests")
MAY_IMPORT = {
    "deltas": {"deltas"},
    "training": {"training", "deltas"},
    "app": {"app", "deltas"},
    "frontend": {"frontend"},
}
WEB = {"fastapi", "starlette", "uvicorn", "streamlit", "altair"}
MUST_NOT_IMPORT = {
    "deltas": WEB | {"datasets", "sklearn", "pydantic_settings", "sentence_transformers"},
    "training": WEB | {"sentence_transformers"},
    "app": {"datasets", "sklearn", "streamlit", "altair", "transformers", "sentence_transformers"},
    "frontend": {"torch", "transformers", "datasets", "fastapi", "safetensors"},
}


def imported(source: str) -> set[str]:
    """Every module that a source imports, anywhere in it, also by `import_module("...")`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
                found.add(str(first.value))
    return found


def problems(package: str, source: str) -> set[str]:
    """The imports of a source that its package may not have."""
    wrong = set()
    for name in imported(source):
        top = name.split(".")[0]
        if (
            name.startswith(".")
            or (top in OURS and top not in MAY_IMPORT[package])
            or top in MUST_NOT_IMPORT[package]
        ):
            wrong.add(name)
    return wrong


def test_imports_point_one_way(modules: dict[str, Path]) -> None:
    wrong = {}
    for name, path in modules.items():
        found = problems(name.split(".")[0], path.read_text(encoding="utf-8"))
        if found:
            wrong[name] = sorted(found)
    assert not wrong, f"imports against the direction of the architecture: {wrong}"


@pytest.mark.parametrize(
    ("package", "planted"),
    [
        ("deltas", "import app.settings"),
        ("deltas", "def f():\n    from training import loop"),
        ("app", "from training.data.tasks import TASKS"),
        ("app", "def f():\n    import datasets"),
        ("training", "from fastapi import FastAPI"),
        ("frontend", "import deltas"),
        ("frontend", "import importlib\nimportlib.import_module('torch.nn')"),
        ("app", "from . import settings"),
    ],
)
def test_a_planted_import_is_found(package: str, planted: str) -> None:
    assert problems(package, planted)


def test_every_package_has_rules(modules: dict[str, Path], packages: tuple[str, ...]) -> None:
    assert {name.split(".")[0] for name in modules} == set(packages) == set(MAY_IMPORT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("app.main", {"datasets", "sklearn", "streamlit", "sentence_transformers", "training"}),
        ("training.fit", {"fastapi", "uvicorn", "streamlit", "sentence_transformers", "app"}),
        ("frontend.client", {"torch", "transformers", "fastapi", "deltas", "app", "training"}),
    ],
)
def test_nothing_forbidden_arrives_by_a_detour(module: str, forbidden: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert module.split(".")[0] in loaded
    assert not loaded & forbidden
