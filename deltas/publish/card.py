"""Write a delta's model card: a page for people, made from its manifest alone."""

from __future__ import annotations

from pathlib import Path

from deltas.format import read_manifest
from deltas.manifest import DataSetRef, InitialDelta, Manifest
from deltas.publish.describe import describe_size, describe_training


def card_path(path: Path) -> Path:
    """Return the path of a delta's card, beside the delta."""
    return path.with_suffix(".md")


def render_card(path: Path) -> str:
    """Render the card of a delta file in Markdown.

    Raises:
        DeltaError: the file is not a delta.
    """
    manifest, version = read_manifest(path)
    task, training = manifest.task, manifest.training
    labels = ", ".join(f"`{label}`" for label in task.labels) or "none; it answers with a number"
    facts = {
        "backbone": f"{manifest.backbone.id}, `{manifest.backbone.fingerprint}`",
        "version": f"`{version}`, {path.stat().st_size / 1000:,.1f} kB",
        "input": f"{' and '.join(f'`{name}`' for name in task.text_fields)}, cut at "
        f"{task.max_length} tokens together",
        "kind": task.kind.replace("_", " "),
        "labels": labels,
        "trained": f"{describe_size(manifest)} ({manifest.trained_share:.3%}), the head included",
        "rows": f"{training.train_rows:,} to train on, {training.selection_rows:,} to select by"
        f"{_source(training.data_set)}{_note(training.data_note)}",
        "training": describe_training(manifest, f"seed {training.seed}"),
        **_start(training.init_from),
        "software": ", ".join(f"{name} {found}" for name, found in training.versions.items()),
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    return (
        f"# {task.name}, {manifest.strategy.served_as}\n\n"
        f"A delta for the task `{task.name}`: the values of the parameters that "
        f"`{manifest.strategy.served_as}` trains, and a head, to be laid over the frozen "
        f"backbone.\n\n| | |\n|---|---|\n{table}\n"
        f"## Scores\n\n{_scores(manifest)}\n"
        f"## Use\n\n```sh\ncurl -s localhost:8000/predict/{task.name} "
        f"-H 'content-type: application/json' \\\n  -d '{_request(manifest)}'\n```\n\n"
        f"## Made by\n\n```sh\n{training.command}\n```\n\n## Limits\n\n{_limits(manifest)}"
    )


def _source(data_set: DataSetRef | None) -> str:
    return f", of {data_set.spelled}, split {data_set.train_split}" if data_set else ""


def _start(start: InitialDelta | None) -> dict[str, str]:
    if start is None:
        return {}
    head = ", head included" if start.with_head else ""
    return {"start": f"the delta {start.task}/{start.strategy}, version `{start.version}`{head}"}


def _note(note: str) -> str:
    return f" ({note})" if note else ""


def _scores(manifest: Manifest) -> str:
    lines = ["| rows of | metric | value | rows |\n|---|---|---:|---:|\n"]
    for split, part in manifest.metrics.items():
        for name, value in part.values.items():
            shown = f"{part.rows:,}{_note(part.note)}"
            lines.append(f"| {split} | {name} | {value:.4f} | {shown} |\n")
    return "".join(lines)


def _request(manifest: Manifest) -> str:
    fields = manifest.task.text_fields
    row = '"..."' if len(fields) == 1 else "{" + ", ".join(f'"{f}": "..."' for f in fields) + "}"
    return f'{{"inputs": {row}, "strategy": "{manifest.strategy.served_as}"}}'


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
        lines.append(f"- Its train rows are not the whole published set: {training.data_note}.")
    return "".join(f"{line}\n" for line in lines)
