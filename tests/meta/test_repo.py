"""Checks the files of the repository, its scripts and its workflows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

from tests.meta.source import Source

MAX_FILE_BYTES = 5 * 2**20
MAX_TOTAL_BYTES = 64 * 2**20
# Formats that run code when they are loaded, and ones that hide what they hold from a review.
FORBIDDEN_SUFFIXES = {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".ckpt", ".ipynb"}
BINARY_SUFFIXES = {".safetensors", ".png", ".parquet"}


def test_no_file_is_large(project_files: list[Path]) -> None:
    sizes = {path.name: path.stat().st_size for path in project_files}
    assert not {name: size for name, size in sizes.items() if size > MAX_FILE_BYTES}
    assert sum(path.stat().st_size for path in project_files) <= MAX_TOTAL_BYTES


def test_no_file_has_a_forbidden_format(project_files: list[Path]) -> None:
    assert not [path for path in project_files if path.suffix.lower() in FORBIDDEN_SUFFIXES]


def test_no_link_leads_away(project_files: list[Path]) -> None:
    assert not [path for path in project_files if path.is_symlink()]


def test_text_files_are_plain(project_files: list[Path]) -> None:
    untidy = []
    for path in project_files:
        content = path.read_bytes()
        if path.suffix in BINARY_SUFFIXES or not content:
            continue
        content.decode("utf-8")
        ends_well = content.endswith(b"\n") and not content.endswith(b"\n\n")
        trailing = any(line.rstrip() != line for line in content.splitlines())
        if b"\r" in content or not ends_well or trailing:
            untidy.append(path.name)
    assert not untidy, (
        f"carriage returns, trailing space, or no single newline at the end: {untidy}"
    )


def test_nothing_can_unpickle(sources: dict[str, Source]) -> None:
    """Reading a delta or data of somebody else must not be able to run code."""
    dangerous = []
    for name, source in sources.items():
        for node in source.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                if names & {"pickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}:
                    dangerous.append(f"{name}: imports a pickle")
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                if called == "torch.load" and keywords.get("weights_only") != "True":
                    dangerous.append(f"{name}:{node.lineno}: {called} without weights_only=True")
                if keywords.get("trust_remote_code", "False") != "False":
                    dangerous.append(f"{name}:{node.lineno}: trust_remote_code")
    assert not dangerous


def test_scripts_parse_and_can_run(root: Path) -> None:
    assert os.access(root / ".ci" / "run", os.X_OK)
    for shell, script in (("bash", ".ci/run"), ("sh", ".make/setup.sh")):
        result = subprocess.run(
            [shell, "-n", script], cwd=root, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr


def test_ci_decides_nothing_itself(root: Path) -> None:
    """Check that anyone can run the steps of CI: each step is a make target."""
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    script = (root / ".ci" / "run").read_text(encoding="utf-8")
    called = set(re.findall(r"^step .* make ([a-z-]+)$", script, re.MULTILINE))
    assert {"setup", "lint", "types", "test", "test-slow"} <= called <= targets


def test_actions_are_pinned_by_hash(root: Path) -> None:
    workflow = (root / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(workflow)["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    used = [step["uses"] for step in steps if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", action), action


def test_hooks_need_no_network(root: Path) -> None:
    config = yaml.safe_load((root / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {"ruff", "ruff-format", "large-files", "types"} <= {hook["id"] for hook in hooks}


def test_license_is_whole(root: Path) -> None:
    text = (root / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "DeltaBERT contributors" in text
    content = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["project"]["license"] == "Apache-2.0"


def test_changelog_has_a_place_for_the_next_change(root: Path) -> None:
    assert "\n## [Unreleased]\n" in (root / "CHANGELOG.md").read_text(encoding="utf-8")
