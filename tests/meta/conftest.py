"""Fixtures of the tests about the project itself: root, files, the scripts that make runs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest

from tests.meta.source import OURS, Source


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def packages() -> tuple[str, ...]:
    """The names of our six packages."""
    return OURS


@pytest.fixture(scope="session")
def project_files(root: Path) -> list[Path]:
    """Every file that is in the project or about to be: no caches, no builds, no environments."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    names = sorted(set(found.stdout.split("\0")) - {""})
    return [root / name for name in names if (root / name).is_file()]


@pytest.fixture(scope="session")
def modules(root: Path, project_files: list[Path]) -> dict[str, Path]:
    """Our modules: dotted name to file."""
    found = {}
    for path in project_files:
        parts = path.relative_to(root).with_suffix("").parts
        if path.suffix == ".py" and parts[0] in OURS:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def _parsed(root: Path, paths: list[Path]) -> dict[str, Source]:
    made = [
        Source.parse(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        for path in paths
        if path.suffix == ".py"
    ]
    return {source.module: source for source in made}


@pytest.fixture(scope="session")
def sources(root: Path, modules: dict[str, Path]) -> dict[str, Source]:
    """The product's files, parsed, by dotted name."""
    return _parsed(root, list(modules.values()))


@pytest.fixture(scope="session")
def test_sources(root: Path, project_files: list[Path]) -> dict[str, Source]:
    """The files of the tests and benchmarks, parsed, by dotted name."""
    tests = [path for path in project_files if path.relative_to(root).parts[0] == "tests"]
    return _parsed(root, tests)


@pytest.fixture(scope="session")
def script(root: Path) -> Callable[[str], ModuleType]:
    """Import a script of `.make` by its name."""

    def load(name: str) -> ModuleType:
        qualified = f"make_{name}"
        if qualified not in sys.modules:
            spec = importlib.util.spec_from_file_location(qualified, root / ".make" / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[qualified] = module  # dataclasses look their module up there
            with patch.object(sys, "path", [str(root / ".make"), *sys.path]):
                spec.loader.exec_module(module)
        return sys.modules[qualified]

    return load
