"""Describe a manifest in words: `deltas show`, the model card and the summary of a run share these.

`deltas.publish.card` writes the card; `deltas.manifest` documents the fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deltas.manifest import EntryInfo, Manifest

_MAX_LABELS = 12


def describe(manifest: Manifest) -> dict[str, str]:
    """Return the facts of a manifest as one line of text each, by heading."""
    task, training, strategy = manifest.task, manifest.training, manifest.strategy
    labels = ", ".join(task.labels[:_MAX_LABELS])
    if len(task.labels) > _MAX_LABELS:
        labels += f" and {len(task.labels) - _MAX_LABELS} more"
    rows = training.data_set
    facts = {
        "backbone": f"{manifest.backbone.id} {manifest.backbone.fingerprint}",
        "task": f"{task.name} ({task.kind}); fields {', '.join(task.text_fields)}; "
        f"at most {task.max_length} tokens",
        "labels": labels or "none: a number",
        "strategy": f"{strategy.name}, reinit {strategy.reinit}, seed {strategy.seed}",
        "trained": f"{describe_size(manifest)} ({100 * manifest.trained_share:.3f} %)",
        "entries": _describe_entries(manifest.entries),
        "data": f"{training.data}{f' {rows.spelled} ({rows.train_split})' if rows else ''}, "
        f"{training.train_rows:,} train rows{_note(training.data_note)}",
        "training": describe_training(manifest),
        "command": training.command,
    }
    for split, part in manifest.metrics.items():
        values = ", ".join(f"{name} {value:.4f}" for name, value in part.values.items())
        facts[split] = f"{values} ({part.rows:,} rows){_note(part.note)}"
    return facts


def describe_size(manifest: Manifest) -> str:
    """Return how many of the parameters were trained, head included."""
    return f"{manifest.trainable_parameters:,} of {manifest.total_parameters:,} parameters"


def describe_training(manifest: Manifest, *more: str) -> str:
    """Return length, learning rate and cost of the run, with `more` before the cost."""
    training = manifest.training
    parts = [
        f"{training.epochs:g} epochs",
        f"{training.steps:,} steps of {training.batch_size}",
        f"learning rate {training.learning_rate:g}",
        *more,
        f"{training.precision} on {training.device}",
        f"{training.duration_s:,.0f} s",
    ]
    return ", ".join(parts)


def in_columns(facts: Mapping[str, str]) -> str:
    """Return one line for each fact: its heading, then its text, in two columns."""
    width = max(map(len, facts))
    return "".join(f"{name:{width}}  {value}\n" for name, value in facts.items())


def _note(note: str) -> str:
    return f" [{note}]" if note else ""


def _describe_entries(entries: Sequence[EntryInfo]) -> str:
    kinds = [entry.kind for entry in entries]
    return f"{kinds.count('dense')} dense, {kinds.count('sparse')} sparse"
