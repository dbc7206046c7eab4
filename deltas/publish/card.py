"""Describe a delta in words, from its manifest alone: in lines of text, or as a model card.

`deltas show` and the summary of a training run print the lines; a card is a page in Markdown beside
the delta. `deltas.manifest` documents the fields.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from deltas.errors import one_line, visible_lines
from deltas.manifest import Manifest, Reliability

_CALIBRATION_ERROR = "expected calibration error"
_MAX_LABELS = 12
_BAR = r"\|"  # a bar that ends no cell of a table


def describe(manifest: Manifest) -> dict[str, str]:
    """Return the facts of a manifest as one line of text each, by heading."""
    task, training, strategy = manifest.task, manifest.training, manifest.strategy
    labels = ", ".join(task.labels[:_MAX_LABELS])
    if len(task.labels) > _MAX_LABELS:
        labels += f" and {len(task.labels) - _MAX_LABELS} more"
    rows = training.data_set
    kinds = [entry.kind for entry in manifest.entries]
    facts = {
        "backbone": f"{manifest.backbone.id} {manifest.backbone.fingerprint}",
        "task": f"{task.name} ({task.kind}); fields {', '.join(task.text_fields)}; "
        f"at most {task.max_length} tokens",
        "labels": labels or "none: a number",
        "strategy": f"{strategy.name}, reinit {strategy.reinit}, seed {strategy.seed}",
        "trained": f"{_describe_size(manifest)} ({100 * manifest.trained_share:.3f} %)",
        "entries": f"{kinds.count('dense')} dense, {kinds.count('sparse')} sparse",
        "data": f"{training.data}{f' {rows.spelled} ({rows.train_split})' if rows else ''}, "
        f"{training.train_rows:,} train rows{_note(training.data_note)}",
        "training": _describe_training(manifest),
        "command": training.command,
    }
    for split, part in manifest.metrics.items():
        values = [f"{name} {value:.4f}" for name, value in part.values.items()]
        if found := part.reliability:
            values.append(f"{_CALIBRATION_ERROR} {found.error:.4f}{_error_before(found)}")
        facts[split] = f"{', '.join(values)} ({part.rows:,} rows){_note(part.note)}"
    return facts


def _error_before(found: Reliability) -> str:
    """Return the calibration error of the head as trained, "" if calibrating changed nothing."""
    changed = found.error_before != found.error
    return _note(f"{found.error_before:.4f} before calibration") if changed else ""


def _describe_size(manifest: Manifest) -> str:
    """Return how many of the parameters were trained, head included."""
    return f"{manifest.trainable_parameters:,} of {manifest.total_parameters:,} parameters"


def _describe_training(manifest: Manifest, *more: str) -> str:
    """Return length, learning rate and cost of the run, with `more` before the cost."""
    training = manifest.training
    length = [
        f"{training.epochs:g} epochs",
        f"{training.steps:,} steps of {training.batch_size}",
        f"learning rate {training.learning_rate:g}",
    ]
    start = ["head solved"] if training.head_start == "solved" else []
    parts = [
        *start,
        *(length if training.steps else []),
        *more,
        f"{training.precision} on {training.device}",
        f"{training.duration_s:,.0f} s",
    ]
    return ", ".join(parts)


def in_columns(facts: Mapping[str, str]) -> str:
    """Return one line for each fact: its heading, then its text, in two columns."""
    width = max(map(len, facts))
    return "".join(f"{name:{width}}  {one_line(value)}\n" for name, value in facts.items())


def card_path(path: Path) -> Path:
    """Return the path of a delta's card, beside the delta."""
    return path.with_suffix(".md")


def render_card(path: Path) -> str:
    """Render the card of a delta file in Markdown.

    Raises:
        DeltaError: the file is not a delta.
    """
    from deltas.format import read_manifest  # late, since it loads torch

    manifest, version = read_manifest(path)
    task, training = manifest.task, manifest.training
    labels = ", ".join(map(_code, task.labels)) or "none; it answers with a number"
    rows, strategy = training.data_set, manifest.strategy.served_as
    source = _prose(f", of {rows.spelled}, split {rows.train_split}") if rows else ""
    facts = {
        "backbone": f"{_prose(manifest.backbone.id)}, {_code(manifest.backbone.fingerprint)}",
        "version": f"`{version}`, {path.stat().st_size / 1000:,.1f} kB",
        "input": f"{' and '.join(map(_code, task.text_fields))}, cut at "
        f"{task.max_length} tokens together",
        "kind": task.kind.replace("_", " "),
        "labels": labels,
        "trained": f"{_describe_size(manifest)} ({manifest.trained_share:.3%}), the head included",
        "rows": f"{training.train_rows:,} to train on, {training.selection_rows:,} to select by"
        f"{source}{_note(_prose(training.data_note))}",
        "training": _prose(_describe_training(manifest, f"seed {training.seed}")),
    }
    if start := training.init_from:
        head = ", head included" if start.with_head else ""
        delta = f"{start.task}/{_prose(start.strategy)}, version {_code(start.version)}"
        facts["start"] = f"the delta {delta}{head}"
    software = ", ".join(f"{name} {found}" for name, found in training.versions.items())
    facts["software"] = _prose(software)
    table = "".join(map(_table_row, facts.items()))
    return (
        f"# {task.name}, {_prose(strategy)}\n\n"
        f"A delta for the task `{task.name}`: the values of the parameters that "
        f"{_code(strategy)} trains, and a head, to be laid over the frozen "
        f"backbone.\n\n| | |\n|---|---|\n{table}\n"
        f"## Scores\n\n{_scores(manifest)}\n"
        f"## Use\n\n{_shell(_request(manifest))}\n"
        f"## Made by\n\n{_shell(training.command)}\n## Limits\n\n{_limits(manifest)}"
    )


def _code(text: str) -> str:
    """Return a text as code of Markdown; nothing in it has a meaning then."""
    text = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in (text[:1], text[-1:]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _prose(text: str) -> str:
    """Return a text for Markdown without a meaning of its signs, on one line."""
    return re.sub(r"([\\`*<\[])", r"\\\1", one_line(text))


def _table_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |\n"


def _shell(command: str) -> str:
    """Return a block of Markdown with a command."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
    return f"{fence}sh\n{visible_lines(command)}\n{fence}\n"


def _note(note: str) -> str:
    return f" ({note})" if note else ""


def _scores(manifest: Manifest) -> str:
    lines = ["| rows of | metric | value | rows |\n|---|---|---:|---:|\n"]
    for split, part in manifest.metrics.items():
        for name, value in part.values.items():
            shown = f"{part.rows:,}{_note(_prose(part.note))}"
            lines.append(_table_row((_prose(split), _prose(name), f"{value:.4f}", shown)))
        if found := part.reliability:
            shown = f"{part.rows:,}{_error_before(found)}"
            cells = _prose(split), _CALIBRATION_ERROR, f"{found.error:.4f}", shown
            lines.append(_table_row(cells))
    return "".join(lines)


def _request(manifest: Manifest) -> str:
    fields = manifest.task.text_fields
    row = "..." if len(fields) == 1 else dict.fromkeys(fields, "...")
    body = json.dumps({"inputs": row, "strategy": manifest.strategy.served_as})
    return (
        f"curl -s localhost:8000/predict/{manifest.task.name} "
        f"-H 'content-type: application/json' \\\n  -d {shlex.quote(body)}"
    )


def _limits(manifest: Manifest) -> str:
    training = manifest.training
    lines = [
        "- Works with the backbone of this fingerprint only; any other is refused.",
        f"- Texts beyond {manifest.task.max_length} tokens are cut; the answer says so.",
        "- One run with one seed: another seed gives another score.",
        "- The state was selected by the selection rows, so that their score is too good; the "
        "other splits played no part.",
    ]
    if training.data == "sample":
        lines.append("- Trained on generated rows: it knows nothing of the real task.")
    elif training.data_note:
        lines.append(
            f"- Its train rows are not the whole published set: {_prose(training.data_note)}."
        )
    return "".join(f"{line}\n" for line in lines)
