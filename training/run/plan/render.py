"""Writes the plan of a run down: as lines for people, or as one JSON object.

The plan itself is `training.run.plan.plan`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from training.errors import counted
from training.run.plan.wording import format_range, percent, printable, shortened

if TYPE_CHECKING:
    from training.run.plan.facts import Baseline, RunFacts
    from training.run.plan.plan import Actions, RunPlan

_MAX_LABELS = 8  # most frequent ones shown; the rarest is always named
_PAIRS = {"joint": "together", "separate": "apart"}
_TRAIN, _SELECTION = "train", "selection"


def plan_lines(plan: RunPlan) -> dict[str, str]:
    """Return the plan for people as one line of text each, by heading; without the oddities."""
    facts, task = plan.facts, plan.facts.task
    lines = {
        "read": "; ".join(plan.notes) or f"{task.name} from {plan.source}",
        "task": _task(plan),
        "labels": _labels(facts),
        "split": _split(facts),
        "repeats": _repeats(facts),
        "lengths": _lengths(facts),
        "baseline": baseline_line(facts.baseline, task.primary_metric),
        "strategy": _strategy(plan.actions),
        "training": _training(plan.actions),
        "device": _device(plan.actions),
        "writes": _target(plan.actions),
        "time": time_line(plan),
    }
    return {heading: printable(line) for heading, line in lines.items()}


def plan_json(plan: RunPlan) -> str:
    """Return the plan as one JSON object on one line."""
    facts = plan.facts
    low, high = plan.duration.range
    content: dict[str, Any] = {
        "task": facts.task.name,
        "kind": facts.task.kind,
        "text_fields": list(facts.task.text_fields),
        "source": plan.source,
        "reading_notes": list(plan.notes),
        "rows": facts.rows,
        "labels": facts.labels,
        "value_range": facts.value_range,
        "repeats": asdict(facts.repeats),
        "empty_texts": facts.blank,
        "tokens": asdict(facts.tokens),
        "baseline": asdict(facts.baseline),
        "actions": asdict(plan.actions),
        "odd": [*plan.warnings, *plan.oddities],
        "seconds": {
            "about": _rounded(plan.duration.seconds),
            "low": _rounded(low),
            "high": _rounded(high),
            "by_stage": {name: _rounded(part) for name, part in plan.duration.stages.items()},
        },
    }
    return json.dumps(content) + "\n"


def time_line(plan: RunPlan) -> str:
    """Return the sentence on the run's length, and on how to stop it and to go on."""
    actions, rows = plan.actions, plan.facts.rows[_TRAIN]
    about = format_range(plan.duration.seconds, *plan.duration.range)
    if not actions.steps:
        return f"{counted(rows, 'row')}, no steps: {about}; Ctrl-C stops the run"
    most = "at most " if actions.patience is not None else ""
    return (
        f"{counted(rows, 'row')} x {_epochs(actions)} in {most}{counted(actions.steps, 'step')}: "
        f"{about}; Ctrl-C stops the run, the same command with --resume continues it from its "
        "last evaluation"
    )


def baseline_line(baseline: Baseline, metric: str) -> str:
    """Return the score of the one answer that is best without reading the texts."""
    scores = ", ".join(
        f"{metric} {values[metric]:.4f} on {split}" for split, values in baseline.metrics.items()
    )
    return f"always answering {shortened(baseline.answer)!r}: {scores}"


def _task(plan: RunPlan) -> str:
    task = plan.facts.task
    inferred = " by the labels, --kind overrules" if plan.is_kind_inferred else ""
    return f"{task.name} ({task.kind}{inferred}), text: {', '.join(task.text_fields)}"


def _labels(facts: RunFacts) -> str:
    if facts.value_range is not None:
        low, high = facts.value_range
        return f"none: a number, from {low:g} to {high:g}"
    names = list(facts.labels)
    parts = [f"{shortened(name)} {_counted(facts, name)}" for name in names[:_MAX_LABELS]]
    if len(names) > _MAX_LABELS:
        rarest = names[-1]
        more = len(names) - len(parts)
        parts.append(f"and {more} more, the rarest {shortened(rarest)} {facts.labels[rarest]:,}")
    return f"{len(names)} in the train rows: {', '.join(parts)}"


def _counted(facts: RunFacts, name: str) -> str:
    count = facts.labels[name]
    return f"{count:,} ({percent(count / facts.rows[_TRAIN])})"


def _split(facts: RunFacts) -> str:
    others = {
        split: rows for split, rows in facts.rows.items() if split not in (_TRAIN, _SELECTION)
    }
    parts = [
        f"{facts.rows[_TRAIN]:,} rows to train on",
        f"{facts.rows[_SELECTION]:,} to select the best state by",
        *(f"{rows:,} to report on ({split})" for split, rows in others.items()),
    ]
    return ", ".join(parts)


def _repeats(facts: RunFacts) -> str:
    repeats = facts.repeats
    parts = {
        "with the text of an earlier row to learn from": repeats.repeated,
        "to learn from with a text that has another label elsewhere": repeats.contradicting,
        **{f"of {split} with the text of a train row": n for split, n in repeats.shared.items()},
        **{f"of {split} with an empty text": count for split, count in facts.blank.items()},
    }
    found = [f"{counted(count, 'row')} {text}" for text, count in parts.items() if count]
    return ", ".join(found) or "no text occurs twice"


def _lengths(facts: RunFacts) -> str:
    tokens = facts.tokens
    half, *rest = tokens.percentiles.items()
    shares = ", ".join(f"{part} % at most {count}" for part, count in rest)
    cut = ", ".join(
        f"{percent(share)} of the {split} rows" for split, share in tokens.cut.items() if share
    )
    return (
        f"median {half[1]} tokens, {shares}, longest {tokens.longest}; "
        f"{cut or 'no rows'} cut at {tokens.limit}"
    )


def _strategy(actions: Actions) -> str:
    pairs = f", pairs read {_PAIRS[actions.pairs]}" if actions.pairs else ""
    return (
        f"{actions.strategy} over {actions.backbone}: trains {actions.trained_parameters:,} of "
        f"{actions.total_parameters:,} parameters, {actions.pooling} pooling{pairs}"
    )


def _training(actions: Actions) -> str:
    if not actions.steps:
        return "the head is solved on frozen features; nothing else trains"
    patience = f" (stops after {actions.patience} without gain)" if actions.patience else ""
    start = {"solved": "from a solved head", "given": "from the head of --init-from"}
    return (
        f"{start.get(actions.head_start, 'from a random head')}: "
        f"{_epochs(actions)}, {counted(actions.steps, 'step')} of {actions.step_rows} rows, "
        f"learning rate {actions.learning_rate:g} (head {actions.head_learning_rate:g}), "
        f"{counted(actions.evaluations, 'evaluation')}{patience}"
    )


def _epochs(actions: Actions) -> str:
    epochs = f"{actions.epochs:.3g}"
    return f"{epochs} epoch{'' if epochs == '1' else 's'}"


def _device(actions: Actions) -> str:
    threads = f", {counted(actions.threads, 'thread')}" if actions.device == "cpu" else ""
    processes = f", {actions.processes} processes" if actions.processes > 1 else ""
    return f"{actions.device} in {actions.precision}{threads}{processes}"


def _target(actions: Actions) -> str:
    if actions.resumes:
        return f"{actions.file}, continuing a stopped run"
    return f"{actions.file}{', replacing the delta there' if actions.overwrites else ''}"


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.3g}")
