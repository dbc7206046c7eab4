"""Checks what the documents say: commands, files, links, generated pages, decisions, addresses."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from deltas.__main__ import AUDITS, main
from tests.bench import precision
from tests.bench.serving import RATIOS

MAX_README_LINES = 250
MAX_LINE_LENGTH = 120
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
LINK = re.compile(r"\]\(([^)\s]+)\)")
DECISION = re.compile(
    r"# (?P<number>\d{4})\. (?P<title>.+)\n\n"
    r"Date: (?P<date>\d{4}-\d\d-\d\d)(?: \(revised \d{4}-\d\d-\d\d\))?\n\n"
    r"Status: (?P<status>accepted|superseded by \[\d{4}\]\((?P<successor>[\w-]+\.md)\))\n\n"
    r"## Decision\n\n.+\n\n## Context\n\n.+\n\n## Consequences\n\n.+",
    re.DOTALL,
)


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, str]:
    """Every page written by hand, by its path; the study's are the report's business."""
    found = [*root.glob("*.md"), *(root / "docs").rglob("*.md")]
    names = sorted(path.relative_to(root).as_posix() for path in found)
    names = [name for name in names if not name.startswith("docs/results/")]
    return {name: (root / name).read_text(encoding="utf-8") for name in names}


@pytest.fixture(scope="module")
def guides(pages: dict[str, str]) -> dict[str, str]:
    """Pages that tell people what to type today, not what was typed once."""
    dated = ("CHANGELOG.md", "docs/decisions/", "docs/performance/")
    return {name: text for name, text in pages.items() if not name.startswith(dated)}


def shell_commands(text: str) -> list[str]:
    """Return every command of a page's shell blocks, continued lines joined."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for line in "".join(blocks).replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def commands(guides: dict[str, str]) -> list[str]:
    return [command for text in guides.values() for command in shell_commands(text)]


def test_the_readme_is_short_and_written_by_hand(pages: dict[str, str]) -> None:
    assert pages["README.md"].count("\n") <= MAX_README_LINES
    assert "<!--" not in pages["README.md"]


def test_the_two_commands_stand_first(pages: dict[str, str]) -> None:
    readme = pages["README.md"]
    first, second, third = shell_commands(readme)[:3]
    assert [shlex.split(line, comments=True) for line in (first, second)] == [
        ["make", "run"],
        ["make", "test"],
    ]
    assert readme.index("make test") < readme.index("\n## ")
    words = shlex.split(third)
    assert words[:2] == ["curl", "http://127.0.0.1:8000/predict/sst2"]
    assert isinstance(json.loads(words[words.index("-d") + 1])["inputs"], str)


def test_readme_start_and_page_begin_with_the_same_example(
    pages: dict[str, str], root: Path
) -> None:
    """tests/http/test_guides.py sends it to a server and compares the answer."""
    readme, start = pages["README.md"], pages["docs/start.md"]
    commands, answer = re.findall(r"^(```(?:sh|json)\n.*?^```)", start, re.DOTALL | re.MULTILINE)[
        1:3
    ]
    assert commands in readme
    assert answer in readme
    sent = json.loads(shlex.split(shell_commands(readme)[2])[-1])["inputs"]
    examples = tomllib.loads((root / "frontend/examples.toml").read_text(encoding="utf-8"))
    assert examples["sst2"][0]["texts"] == [sent]


@pytest.mark.parametrize(
    "name",
    [
        "docs/guide/choosing.md",
        "docs/guide/zoo.md",
        "docs/reference/settings.md",
        "docs/reference/cli.md",
        "docs/reference/http.md",
        "docs/performance.md",
        "docs/performance/quality.md",
    ],
)
def test_generated_pages_are_those_of_make_docs(
    name: str, pages: dict[str, str], script: Callable[[str], ModuleType]
) -> None:
    generator = script("docs")
    assert pages[name] == generator.replace_generated(pages[name], generator.PAGES[name]()), (
        "run make docs"
    )


def test_the_served_numbers_are_those_of_make_docs(
    root: Path, script: Callable[[str], ModuleType]
) -> None:
    for name, make in script("docs").FILES.items():
        assert (root / name).read_text(encoding="utf-8") == make(), "run make docs"


def test_numbers_of_the_advice_are_those_of_its_sources(root: Path) -> None:
    """Scores with three digits; differences of them are for a reader to check."""
    advice, tables = (root / "docs/guide/choosing.md").read_text("utf-8").split("<!-- generated")
    sources = ("docs/results/README.md", "docs/guide/zoo.md", "docs/performance.md")
    known = tables + "".join((root / name).read_text("utf-8") for name in sources)
    stated = set(re.findall(r"\b0\.\d{3}\b", advice)) - {"0.008", "0.001"}
    assert len(stated) > 8
    assert not [number for number in stated if number not in known]


def test_routes_and_bodies_are_described_in_words(script: Callable[[str], ModuleType]) -> None:
    name = {"type": "string", "minLength": 1, "maxLength": 9}
    fields = {
        "names": {"type": "array", "items": {"anyOf": [name, {"type": "null"}]}, "minItems": 2},
        "share": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.5},
        "scores": {"type": "object", "additionalProperties": {"$ref": "#/x/Score"}},
        "kind": {"enum": ["a", "b"], "description": "Two\nlines."},
    }
    error = {"example": {"error": {"code": "gone"}}}
    operation = {
        "tags": ["odds"],
        "summary": "Try it",
        "parameters": [{"name": "q", "in": "query", "schema": name, "required": True}],
        "requestBody": {"content": {"text/csv": {"schema": {"type": "string"}}}},
        "responses": {
            "200": {"content": {"application/json": {"schema": {"$ref": "#/x/Row"}}}},
            "410": {"description": "It left.", "content": {"application/json": error}},
            "422": {"description": "Bad.", "content": {"application/json": {}}},
        },
    }
    row = {"properties": fields, "required": ["kind"], "description": "A row."}
    document = {
        "paths": {"/try/{it}": {"post": operation}},
        "components": {"schemas": {"Row": row}},
    }
    text = script("http_reference").http_reference(document)
    for line in (
        "| [`POST /try/{it}`](#post-tryit) | Try it |",
        "| 410 | `gone` | It left. |",
        "## Odds",
        "| `q` | query | string (1 to 9 characters), required |  |",
        "Body: string as `text/csv`",
        "Answer 200: [Row](#row)",
        "Answer 422: any value (Bad.)",
        "Errors: 410 `gone`",
        "| `names` | list of (string (1 to 9 characters) or null) (at least 2 entries) |  |",
        "| `share` | number (0 to 1, default `0.5`) |  |",
        "| `scores` | object of [Score](#score) by name |  |",
        "| `kind` | `a` or `b`, required | Two lines. |",
    ):
        assert f"\n{line}\n" in text


def test_missed_targets_are_marked(script: Callable[[str], ModuleType]) -> None:
    target = script("docs").target
    assert [target(value, "at least 0.9") for value in (0.9, 0.899)] == [
        "at least 0.9",
        "at least 0.9: **missed**",
    ]
    assert target(3.01, "at most 3") == "at most 3: **missed**"


def test_targets_are_those_of_the_benchmarks(root: Path) -> None:
    about = tomllib.loads((root / ".make" / "ratios.toml").read_text(encoding="utf-8"))
    assert about["wanted"].keys() <= about["words"].keys()
    stated = {name: f"at least {least:g}" for name, (_, _, least) in RATIOS.items() if least}
    stated |= precision.WANTED
    assert about["wanted"] | stated == about["wanted"]


def test_numbers_of_a_gpu_do_not_replace_the_published_ones(root: Path) -> None:
    command = ["make", "--dry-run", "bench-serving", "ARGS=--device=cuda"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "--json runs/serving-cuda.json" in result.stdout


def test_make_targets_exist(guides: dict[str, str], root: Path) -> None:
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pattern = r"(?:^|`|&& )(?:[A-Z_]+=\S+ )?make ((?:[a-z-]+ ?)+)"
    named = re.findall(pattern, "\n".join(guides.values()), re.MULTILINE)
    used = {target for line in named for target in line.split()}
    assert {"run", "test"} <= used
    assert used <= targets


def test_modules_that_commands_run_exist(guides: dict[str, str]) -> None:
    used = set(re.findall(r"python -m ([\w.]*\w)", "\n".join(guides.values())))
    assert used
    for name in used:
        found = importlib.util.find_spec(name)
        assert found is not None, f"python -m {name}: no such module"
        if found.submodule_search_locations:
            assert importlib.util.find_spec(f"{name}.__main__"), f"{name} can't be run"


def test_files_that_guides_name_exist(guides: dict[str, str], root: Path) -> None:
    text = "\n".join(guides.values())
    named = set(re.findall(r"`((?:\.?[\w-]+/)+[\w.-]+\.\w+)`", text))
    assert named
    assert not [name for name in named if not (root / name).exists()]


def test_flags_that_commands_use_exist(
    commands: list[str], script: Callable[[str], ModuleType]
) -> None:
    generator = script("docs")
    modules = {name: name for name in generator.COMMANDS}
    modules |= {f"audit.{verb}": f"deltas {verb}" for verb in AUDITS}
    for module, name in modules.items():
        known = generator.parser_of(module)._option_string_actions
        for command in commands:
            _, is_used, arguments = command.partition(f" -m {name} ")
            if is_used:
                assert set(re.findall(r"--[\w-]+", arguments)) <= known.keys(), command


def test_every_deltas_command_runs(
    commands: list[str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs the guides' `python -m deltas` commands; only the folder for exports is another.

    Audits need rows that are not in the project.
    """
    monkeypatch.chdir(root)
    verbs = []
    for command in commands:
        _, is_used, arguments = command.replace("runs/", f"{tmp_path}/").partition(" -m deltas ")
        if is_used and arguments.split()[0] not in AUDITS:
            assert main(shlex.split(arguments)) == 0, command
            assert capsys.readouterr().out.strip(), command
            verbs.append(shlex.split(arguments)[0])
    assert verbs == ["list", "show", "verify", "export"]
    assert any(tmp_path.iterdir())


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


def test_links_lead_somewhere(pages: dict[str, str], root: Path) -> None:
    broken = []
    for name, text in pages.items():
        for link in LINK.findall(text):
            path, _, anchor = link.partition("#")
            if "://" in link:
                continue
            target = (root / name).parent / path if path else root / name
            if not target.exists() or (
                anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
            ):
                broken.append(f"{name}: {link}")
    assert not broken


def test_drawings_have_words_for_all_and_colours_for_the_dark(root: Path) -> None:
    drawings = [*(root / "docs").glob("*.svg"), *(root / "docs/drawings").glob("*.svg")]
    assert len(drawings) >= 4
    for path in drawings:
        drawing = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert len(drawing.attrib["aria-label"].split()) > 10, path
        (style,) = drawing.iter("{http://www.w3.org/2000/svg}style")
        assert "prefers-color-scheme: dark" in (style.text or ""), path


def prose_lines(text: str) -> Iterator[str]:
    """Yield the lines that a writer breaks: no tables, no code, nothing generated, no addresses."""
    text = re.sub(r"<!-- generated.*?<!-- end", "", text, flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in text.splitlines():
        if not line.startswith("|") and "](" not in line and "://" not in line:
            yield line


def test_lines_of_prose_are_short(pages: dict[str, str]) -> None:
    long = {
        name: line
        for name, text in pages.items()
        for line in prose_lines(text)
        if len(line) > MAX_LINE_LENGTH
    }
    assert not long


def test_decisions_are_numbered_dated_and_indexed(pages: dict[str, str]) -> None:
    decisions = {name: text for name, text in pages.items() if name.startswith("docs/decisions/")}
    rows = []
    for number, (name, text) in enumerate(decisions.items(), 1):
        found = DECISION.fullmatch(text)
        assert found, f"{name} has not the form of the other pages"
        assert found["number"] == f"{number:04d}" == Path(name).name[:4]
        if found["successor"]:
            successor = decisions[f"docs/decisions/{found['successor']}"]
            assert f"]({Path(name).name})" in successor, f"{name}: its successor does not say so"
        rows.append(f"| [{found['number']}]({name}) | {found['date']} | {found['title']} | ")
    index = [line for line in pages["DECISIONS.md"].splitlines() if line.startswith("| [")]
    assert len(index) == len(rows)
    assert all(line.startswith(row) for line, row in zip(index, rows, strict=True))


def test_no_file_names_a_path_of_a_machine_or_a_package_host(project_files: list[Path]) -> None:
    """The one host is that of PyTorch's CPU build, which the package index does not have."""
    assert MACHINE_PATH.search("cd /mnt/disk/checkout")
    assert PACKAGE_HOST.search("--index-url http://mirror/simple")
    found = {}
    for path in project_files:
        if path.suffix not in BINARY_SUFFIXES and path.name != Path(__file__).name:
            text = path.read_text(encoding="utf-8")
            hosts = PACKAGE_HOST.findall(text)
            if path.name == "Dockerfile":
                hosts = [host for host in hosts if not host.endswith(PYTORCH)]
            if named := [*(set(MACHINE_PATH.findall(text)) - IN_THE_IMAGE), *hosts]:
                found[path.name] = named
    assert not found
