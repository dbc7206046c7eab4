"""Write the parts of README.md that are made: settings, the zoo, measured performance, file tree.

`make docs` calls it; tests/meta/test_docs.py fails while the README differs from its result.
A file's line in the tree is the first sentence of its own docstring or leading comment, so that
it is written once, where it is read most.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltas.manifest import Manifest, SplitMetrics
    from deltas.store import Record

ROOT = Path(__file__).resolve().parent.parent

# Files whose form leaves no room for a sentence about themselves.
ABOUT = {
    "CHANGELOG.md": "What changed, for users",
    "CONTRIBUTING.md": "How to change something here",
    "DECISIONS.md": "Choices, their reasons, and what would change them",
    "LICENSE": "Apache License 2.0",
    "README.md": "This page",
    "frontend/icon.svg": "The page's icon",
}
FOLDERS = {
    "docs/results": "The study: what is run, its results line by line, and the report made of them",
    "docs/performance": "What the benchmarks measured last, with the machine",
    "deltas/zoo": "The shipped deltas, <backbone>/<task>/<strategy>.safetensors",
    "tests/golden/data": "Delta files of every format version, with the outputs recorded for them",
}
GROUPS = ("deltas", "training", "app", "frontend", "tests")


class ReadmeError(Exception):
    """Something that the README is made from is missing; the message says what and where."""


def replace_block(text: str, name: str, content: str) -> str:
    """Replace what stands between the markers of a block.

    Raises:
        ReadmeError: the markers are not there exactly once.
    """
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ReadmeError(f"README.md needs the markers <!-- {name}:begin/end --> exactly once")
    return pattern.sub(lambda found: f"{found[1]}{content}{found[2]}", text)


def settings_table() -> str:
    """One row a setting, from the fields of `app.settings.Settings`."""
    from app.settings import PREFIX, Settings

    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if default in (None, (), ""):
            shown = "unset"
        else:
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows) + "\n"


# Shown first and in this order; others follow by name.
STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")


def zoo_table() -> str:
    """Dev scores of the shipped deltas, from their manifests: a row a task, a column a strategy."""
    from deltas.store import Store, zoo_path

    store = Store([zoo_path()])
    if store.rejected:
        raise ReadmeError(f"deltas/zoo holds a file that is no delta: {store.rejected[0]}")
    by_key = {record.manifest.key: record for record in store.records}
    strategies = _in_order({strategy for _, strategy in by_key})
    notes: list[str] = []
    head = ["task", "metric", "train rows", "dev rows", *(f"`{name}`" for name in strategies)]
    rows = [head, ["---"] * len(head)]
    for task in store.tasks:
        of_task = {name: by_key[task, name] for name in strategies if (task, name) in by_key}
        cells = _task_cells(task, [record.manifest for record in of_task.values()], notes)
        cells += [_scores(of_task[name].manifest) if name in of_task else "" for name in strategies]
        rows.append(cells)
    for title, show in (("trained", _share), ("file", _size)):
        cells = [_range(by_key.values(), name, show) for name in strategies]
        rows.append([title, "", "", "", *cells])
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return table + "\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))


def _in_order(strategies: Collection[str]) -> list[str]:
    first = [name for name in STRATEGIES if name in strategies]
    return first + sorted(set(strategies) - set(first))


def _task_cells(task: str, manifests: Sequence[Manifest], notes: list[str]) -> list[str]:
    """Name, metrics, train and dev rows; what are only samples refer to a note below the table."""

    def counted(samples: Iterable[tuple[int, str]]) -> str:
        """Numbers of rows, each with its notes: deltas of a task may have seen other samples."""
        cells: dict[int, list[str]] = {}
        for rows, note in samples:
            if note and note not in notes:
                notes.append(note)
            numbers = cells.setdefault(rows, [])
            if note and (number := str(notes.index(note) + 1)) not in numbers:
                numbers.append(number)
        return " / ".join(
            f"{rows:,} ({', '.join(numbers)})" if numbers else f"{rows:,}"
            for rows, numbers in cells.items()
        )

    dev = _dev(manifests[0])
    metrics = list(dict.fromkeys(name for part in dev.values() for name in part.values))
    parts = [name.partition("_")[2] for name in dev if "_" in name]
    measured = " / ".join(metrics) + (f", {' / '.join(parts)}" if parts else "")
    trained = [manifest.training for manifest in manifests]
    train_rows = counted((run.train_rows + run.selection_rows, run.data_note) for run in trained)
    dev_rows = " / ".join(counted([(part.rows, part.note)]) for part in dev.values())
    return [task, measured, train_rows, dev_rows]


def _dev(manifest: Manifest) -> dict[str, SplitMetrics]:
    return {name: part for name, part in manifest.metrics.items() if name != "selection"}


def _scores(manifest: Manifest) -> str:
    return " / ".join(
        f"{value:.3f}" for part in _dev(manifest).values() for value in part.values.values()
    )


def _share(record: Record) -> str:
    return f"{record.manifest.trainable_parameters / record.manifest.total_parameters:.3%}"


def _size(record: Record) -> str:
    return f"{record.num_bytes / 1000:.0f} KB"


def _range(records: Iterable[Record], strategy: str, show: Callable[[Record], str]) -> str:
    """The least and the most over a strategy's deltas."""
    of_strategy = [record for record in records if record.manifest.key[1] == strategy]
    ordered = sorted(of_strategy, key=lambda record: record.num_bytes)
    ends = dict.fromkeys(show(record) for record in (ordered[0], ordered[-1]))
    return " to ".join(ends)


def performance_tables() -> str:
    """The ratios of docs/performance/*.json, one table a benchmark."""
    parts = []
    for name, title in (
        ("serving", "Engine"),
        ("precision", "Precisions"),
        ("scale", "Scale"),
        ("http", "HTTP"),
        ("training", "Training"),
    ):
        path = ROOT / "docs" / "performance" / f"{name}.json"
        if path.exists():
            report = json.loads(path.read_text(encoding="utf-8"))
            parts.append(_performance_table(name, title, report))
    return "\n".join(parts)


def _performance_table(name: str, title: str, report: dict[str, Any]) -> str:
    machine = report["machine"]
    about = tomllib.loads((ROOT / ".make" / "ratios.toml").read_text(encoding="utf-8"))
    words, wanted = about["words"], about["wanted"]
    shown = {key: value for key, value in report["ratios"].items() if key in words}
    is_wanted = not wanted.keys().isdisjoint(shown)
    lines = [
        f"{title} (`make bench-{name}`): {machine['cpu']}, {machine['threads']} threads, "
        f"{machine['instructions']}, {report['precision']}, rows of {report['data']}. "
        f"{report.get('note', '')}".rstrip(),
        "",
        "| | measured | wanted |" if is_wanted else "| | measured |",
        "|---|---|---|" if is_wanted else "|---|---|",
    ]
    for key, value in shown.items():
        target = f" {_target(value, wanted.get(key))} |" if is_wanted else ""
        lines.append(f"| {words[key]} | {value:.3g} |{target}")
    if "strategies" in report:
        lines += ["", *_losses_table(report["strategies"])]
    return "\n".join(lines) + "\n"


def _target(value: float, wanted: str | None) -> str:
    """What is wanted of a ratio, and whether that is missed."""
    if wanted is None:
        return ""
    bound, _, number = wanted.rpartition(" ")
    is_met = {"at least": value >= float(number), "at most": value <= float(number)}[bound]
    return wanted if is_met else f"{wanted}: **missed**"


def _losses_table(strategies: dict[str, dict[str, Any]]) -> list[str]:
    """What each precision costs the deltas of each strategy, a line a strategy."""
    precisions = list(next(iter(strategies.values())))
    head = ["strategy"]
    for precision in precisions:
        head += [f"{precision}: most points lost", "labels changed"]
    rows = [head, ["---"] * len(head)]
    for name in _in_order(strategies):
        cells = [f"`{name}`"]
        for precision in precisions:
            loss = strategies[name][precision]
            where = f" ({loss['task']})" if loss["task"] else ""
            cells += [f"{loss['most_points_lost']:.3g}{where}", f"{loss['flips']:.2%}"]
        rows.append(cells)
    return [f"| {' | '.join(row)} |" for row in rows]


def project_files(committed: bool = False) -> list[str]:
    """Every file of the project in order: the committed ones, or also those about to be."""
    command = ["git", "ls-files", "--cached"]
    if not committed:
        command += ["--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return sorted({name for name in found.stdout.splitlines() if (ROOT / name).is_file()})


def leading_comment(text: str) -> str:
    """The comment that a file begins with: `/* ... */`, `<!-- ... -->`, or lines of `#`."""
    framed = re.match(r"\s*(?:/\*|<!--)(.*?)(?:\*/|-->)", text, re.DOTALL)
    if framed:
        return framed[1].strip()
    lines = [line for line in text.splitlines() if not line.startswith("#!")]
    comment = itertools.takewhile(lambda line: line.startswith("#") and line.strip("# "), lines)
    return " ".join(line.strip("# ") for line in comment)


def first_sentence(path: Path) -> str:
    """What a file says about itself, as one line without the full stop.

    Raises:
        ReadmeError: it says nothing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        text = ""  # weights, pictures
    if path.suffix == ".py":
        about = ast.get_docstring(ast.parse(text)) or ""
    elif path.suffix == ".md":
        about = text.split("\n", 1)[0].lstrip("# ")
    else:
        about = leading_comment(text)
    paragraph = " ".join(about.split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.])\.(?:\s|$)", paragraph, maxsplit=1)[0]
    if not sentence:
        raise ReadmeError(
            f"{path.relative_to(ROOT)} does not say what it is: begin it with a docstring or a "
            "comment, or describe it in .make/readme.py"
        )
    return sentence


def tree_lines(committed: bool = False) -> dict[str, str]:
    """File, or folder that stands for its files, to its one line."""
    lines = {}
    for name in project_files(committed):
        folder = next((folder for folder in FOLDERS if name.startswith(f"{folder}/")), None)
        if folder is not None:
            lines[folder] = FOLDERS[folder]
        elif Path(name).name != "py.typed":
            lines[name] = ABOUT.get(name) or first_sentence(ROOT / name)
    return lines


def place(name: str) -> tuple[int, bool, str]:
    """Where a file stands in the tree: root files first, then the packages, then the tests."""
    top = name.split("/")[0]
    return GROUPS.index(top) + 1 if top in GROUPS else 0, name.startswith("."), name


def tree() -> str:
    """The files, one line each, by folder."""
    lines = tree_lines()
    width = max(len(name) for name in lines)
    parts = []
    for _, group in itertools.groupby(sorted(lines, key=place), key=lambda name: place(name)[0]):
        parts.append("".join(f"{name:<{width}}  {lines[name]}\n" for name in group))
    return "```\n" + "\n".join(parts) + "```\n"


def render(text: str) -> str:
    """The README with all of its blocks made anew."""
    text = replace_block(text, "settings", settings_table())
    text = replace_block(text, "zoo", zoo_table())
    text = replace_block(text, "performance", performance_tables())
    return replace_block(text, "tree", tree())


def main() -> int:
    """Write README.md; say in one sentence what is missing."""
    readme = ROOT / "README.md"
    try:
        readme.write_text(render(readme.read_text(encoding="utf-8")), encoding="utf-8")
    except ReadmeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
