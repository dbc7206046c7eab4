"""Checks that all public names exist, and that importing the packages has no effects."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

from tests.meta.source import Source

# Read by their own programs, and only there; matplotlib makes folders when it is imported.
RUN_NOT_IMPORTED = {"frontend.main", "training.study.figures"}


def test_deltas_says_what_it_offers() -> None:
    deltas = importlib.import_module("deltas")
    assert len(set(deltas.__all__)) == len(deltas.__all__)
    for name in deltas.__all__:
        assert hasattr(deltas, name), f"deltas.__all__ names {name}, which is not there"


def test_everything_offered_has_a_docstring() -> None:
    deltas = importlib.import_module("deltas")
    offered = {name: getattr(deltas, name) for name in deltas.__all__}
    silent = [
        name
        for name, value in offered.items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and not value.__doc__
    ]
    assert not silent


def test_others_use_deltas_by_its_public_names(sources: dict[str, Source]) -> None:
    deltas = importlib.import_module("deltas")
    private = []
    for name, source in sources.items():
        if name.split(".")[0] == "deltas":
            continue
        for node in source.nodes:
            if isinstance(node, ast.ImportFrom) and node.module == "deltas":
                private += [
                    f"{name}: {alias.name}"
                    for alias in node.names
                    if alias.name not in deltas.__all__
                ]
    assert not private


def test_importing_does_nothing_else(root: Path, modules: dict[str, Path], tmp_path: Path) -> None:
    """No logging setup, no threads, no environment needed, no file written, nothing printed."""
    names = sorted(set(modules) - RUN_NOT_IMPORTED)
    names = [name for name in names if not name.endswith("__main__")]
    program = f"""
import importlib, logging, sys, threading
for name in {names!r}:
    importlib.import_module(name)
assert not logging.getLogger().handlers, logging.getLogger().handlers
assert threading.active_count() == 1, threading.enumerate()
torch = sys.modules["torch"]
assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
assert not torch.cuda.is_initialized()
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=tmp_path,
        env={"DELTABERT_MISTYPED": "1", "HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir())


def test_importing_deltas_loads_nothing(modules: dict[str, Path]) -> None:
    """A name is loaded when it is first used; the table of names is what type checkers see."""
    program = """
import sys, deltas
assert "Store" in dir(deltas) and not {"torch", "pydantic"} & set(sys.modules)
from deltas import DeltaError
assert "torch" not in sys.modules
try:
    deltas.nothing
except AttributeError as error:
    assert "no attribute 'nothing'" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    source = modules["deltas"].read_text(encoding="utf-8")
    (block,) = [node for node in ast.parse(source).body if isinstance(node, ast.If)]
    typed = {
        alias.asname or alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    deltas = importlib.import_module("deltas")
    assert typed == {
        key: deltas._MODULES[key] for key in set(deltas.__all__) - set(deltas._ALIASES)
    }
    assert deltas.SingleOverlay is deltas.TrainableOverlay
