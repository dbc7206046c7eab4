"""What the documents say is so: tables, tree, commands, files and addresses."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from deltas.store import Store, zoo_path
from tests.bench import precision
from tests.bench.serving import RATIOS

BINARY_SUFFIXES = {".safetensors", ".png", ".parquet"}
# Folders in which people keep their checkouts and machines their mirrors; none of them is ours.
MACHINE_PATH = re.compile(
    r"(?<![\w.\-~}$\])*?])/"
    r"(?:home|root|Users|mnt|media|work|workspaces?|opt|srv|scratch)/[\w.\-]+"
)
PYTORCH = " https://download.pytorch.org/whl/${TORCH}"
IN_THE_IMAGE = {"/opt/deltabert", "/home/deltabert"}
PACKAGE_HOST = re.compile(
    r"file://|(?:https?://|index-url[ =]+)[^\s)\"'`]*"
    r"(?:pypi|pythonhosted|simple|artifact|nexus|devpi|whl)[^\s)\"'`]*"
)


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    """The README's text."""
    return (root / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documents(root: Path) -> str:
    """All pages that tell people what to type."""
    pages = (root / name for name in ("README.md", "CONTRIBUTING.md", "DECISIONS.md"))
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.exists())


@pytest.fixture
def commands(readme: str) -> list[str]:
    """Every command of the README's shell blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip()]


def test_zoo_table_is_that_of_the_manifests(
    readme: str, script: Callable[[str], ModuleType]
) -> None:
    block = readme.split("<!-- zoo:begin -->\n")[1].split("<!-- zoo:end -->")[0]
    assert block == script("readme").zoo_table(), "run make docs"
    for record in Store([zoo_path()]).records:
        assert record.manifest.training.data_note in block
        for split, metrics in record.manifest.metrics.items():
            if split != "selection":
                assert all(f"{value:.3f}" in block for value in metrics.values.values())
                assert metrics.note in block


def test_performance_is_that_of_the_measurements(
    readme: str, root: Path, script: Callable[[str], ModuleType]
) -> None:
    block = readme.split("<!-- performance:begin -->\n")[1].split("<!-- performance:end -->")[0]
    assert block == script("readme").performance_tables(), "run make docs"
    for path in (root / "docs" / "performance").glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert f"`make bench-{path.stem}`" in block
        assert report["machine"]["cpu"] in block


@pytest.mark.parametrize(
    ("flags", "path"),
    [
        ("", "docs/performance/serving.json"),
        ("--rounds 3", "docs/performance/serving.json"),
        ("--device cuda", "runs/serving-cuda.json"),
        ("--rounds 3 --device=cuda", "runs/serving-cuda.json"),
    ],
)
def test_a_gpus_numbers_do_not_replace_those_of_the_readme(
    flags: str, path: str, root: Path
) -> None:
    command = ["make", "--dry-run", "bench-serving", f"ARGS={flags}"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert f"tests.bench.serving --json {path} {flags}".strip() in result.stdout


def test_precisions_are_shown_by_strategy(script: Callable[[str], ModuleType]) -> None:
    """A line a strategy, in the zoo's order; a task's name where something is lost."""
    lost = {"most_points_lost": 0.361, "task": "rte", "flips": 0.0042}
    none = {"most_points_lost": 0.0, "task": "", "flips": 0.0}
    report = {
        "machine": {"cpu": "a processor", "threads": 2, "instructions": "AVX512"},
        "precision": "fp32, bf16, int8",
        "data": "GLUE dev sets",
        "ratios": {"int8_vs_bf16": 1.345, "int8_most_points_lost": 0.361, "unnamed": 1.0},
        "strategies": {
            "random:0.001": {"bf16": lost, "int8": none},
            "bitfit": {"bf16": none, "int8": lost},
        },
    }
    table = script("readme")._performance_table("precision", "Precisions", report)
    first, *lines = table.splitlines()
    assert first.startswith("Precisions (`make bench-precision`): a processor, 2 threads, AVX512, ")
    assert lines[1:3] == ["| | measured | wanted |", "|---|---|---|"]
    assert [line.split(" | ", 1)[1] for line in lines[3:5]] == [
        "1.34 | at least 1.3 |",
        "0.361 |  |",
    ]
    assert lines[-2:] == [
        "| `bitfit` | 0 | 0.00% | 0.361 (rte) | 0.42% |",
        "| `random:0.001` | 0.361 (rte) | 0.42% | 0 | 0.00% |",
    ]


def test_what_is_wanted_and_missed_is_said(script: Callable[[str], ModuleType]) -> None:
    target = script("readme")._target
    assert target(0.5, None) == ""
    assert [target(value, "at least 0.9") for value in (0.9, 0.899)] == [
        "at least 0.9",
        "at least 0.9: **missed**",
    ]
    assert [target(value, "at most 3") for value in (3, 3.01)] == [
        "at most 3",
        "at most 3: **missed**",
    ]


def test_targets_are_those_of_the_benchmarks(root: Path) -> None:
    """They are said in the README's tables and in the benchmarks' own; and of known ratios."""
    about = tomllib.loads((root / ".make" / "ratios.toml").read_text(encoding="utf-8"))
    assert about["wanted"].keys() <= about["words"].keys()
    theirs = {name: f"at least {least:g}" for name, (_, _, least) in RATIOS.items() if least}
    theirs |= precision.WANTED
    assert about["wanted"] | theirs == about["wanted"]


def test_settings_table_has_every_setting(readme: str, script: Callable[[str], ModuleType]) -> None:
    from app.settings import PREFIX, Settings

    block = readme.split("<!-- settings:begin -->\n")[1].split("<!-- settings:end -->")[0]
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \|", block, re.MULTILINE)
    assert rows == [name.upper() for name in Settings.model_fields]
    assert block == script("readme").settings_table(), "run make docs"


def test_tree_names_every_file(
    readme: str, root: Path, script: Callable[[str], ModuleType]
) -> None:
    """Every committed file has its line, and what the line says is what the file says."""
    generator = script("readme")
    block = readme.split("<!-- tree:begin -->")[1].split("<!-- tree:end -->")[0]
    rows = dict(re.findall(r"^([\w./-]+) {2,}(\S.*)$", block, re.MULTILINE))
    missing = set(generator.tree_lines(committed=True)) - set(rows)
    assert not missing, f"run make docs: the README's tree lacks {sorted(missing)}"
    assert not [name for name in rows if not (root / name).exists()], "run make docs"
    lines = generator.tree_lines()
    assert rows == {name: lines[name] for name in rows}, "run make docs"


def test_the_two_commands_stand_first(commands: list[str], readme: str) -> None:
    assert [shlex.split(line, comments=True) for line in commands[:2]] == [
        ["make", "run"],
        ["make", "test"],
    ]
    assert commands[2].startswith("curl ")
    assert readme.index("make test") < readme.index("\n## ")


def test_make_targets_exist(documents: str, root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = re.findall(
        r"(?:^|`|&& )(?:[A-Z_]+=\S+ )?make ((?:[a-z-]+ ?)+)", documents, re.MULTILINE
    )
    used = {target for line in named for target in line.split()}
    assert {"run", "test"} <= used
    assert used <= targets


def test_modules_that_commands_run_exist(documents: str) -> None:
    used = set(re.findall(r"python -m ([\w.]+)", documents))
    assert used
    for name in used:
        found = importlib.util.find_spec(name)
        assert found is not None, f"python -m {name}: no such module"
        if found.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__"), f"{name} can't be run"


def test_files_that_pages_name_exist(documents: str, root: Path) -> None:
    named = set(re.findall(r"`((?:\.?[\w-]+/)+[\w.-]+\.\w+)`", documents))
    assert named
    assert not [name for name in named if not (root / name).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["training.fit", "deltas"])
def test_flags_that_the_readme_names_exist(module: str, readme: str, commands: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for command in commands:
        words = shlex.split(command, comments=True)
        if module not in words:
            continue
        rest = words[words.index(module) + 1 :]
        for word in rest:
            if word.startswith("--") or (word.isalpha() and module == "deltas"):
                assert word in result.stdout, f"{command!r}: {module} --help has no {word}"


@pytest.mark.slow
def test_every_deltas_command_runs(commands: list[str], root: Path, tmp_path: Path) -> None:
    """The README's `python -m deltas` commands as they stand there, but for where export writes."""
    verbs = set()
    for command in commands:
        words = [word.replace("runs/", f"{tmp_path}/") for word in shlex.split(command)]
        if words[1:3] == ["-m", "deltas"]:
            result = subprocess.run(
                [sys.executable, *words[1:]], cwd=root, capture_output=True, text=True, check=False
            )
            assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
            assert result.stdout.strip(), command
            verbs.add(words[3])
    assert verbs == {"list", "show", "verify", "export"}
    assert any(tmp_path.iterdir())


def test_the_curl_is_valid(commands: list[str]) -> None:
    words = shlex.split(commands[2])
    body = json.loads(words[words.index("-d") + 1])
    assert words[1] == "http://127.0.0.1:8000/predict/sst2"
    assert isinstance(body["inputs"], str)


def test_no_path_of_a_machine(project_files: list[Path]) -> None:
    found = {}
    for path in project_files:
        if path.suffix in BINARY_SUFFIXES or path.name == Path(__file__).name:
            continue
        paths = set(MACHINE_PATH.findall(path.read_text(encoding="utf-8"))) - IN_THE_IMAGE
        if paths:
            found[path.name] = sorted(paths)
    assert not found


def test_no_package_host(project_files: list[Path]) -> None:
    """Where packages come from is the business of each machine's pip.

    One exception: the image's CPU build of PyTorch, which the package index does not have.
    """
    found = {}
    for path in project_files:
        if path.suffix in BINARY_SUFFIXES or path.name == Path(__file__).name:
            continue
        hosts = PACKAGE_HOST.findall(path.read_text(encoding="utf-8"))
        if path.name == "Dockerfile":
            hosts = [host for host in hosts if not host.endswith(PYTORCH)]
        if hosts:
            found[path.name] = hosts
    assert not found


@pytest.mark.parametrize(
    "planted", ["/home/someone/x", "cd /mnt/disk/checkout", '"/opt/mirror/simple"']
)
def test_a_planted_path_is_found(planted: str) -> None:
    assert set(MACHINE_PATH.findall(planted)) - IN_THE_IMAGE


@pytest.mark.parametrize(
    "planted", ["https://pypi.example.org/simple", "--index-url http://mirror/simple", "file:///x"]
)
def test_a_planted_host_is_found(planted: str) -> None:
    assert PACKAGE_HOST.search(planted)
