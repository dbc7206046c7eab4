"""Decides which labels of a task count as firing, and says why; `--fires task=label` overrules.

A task of two labels fires on the affirmative one, by its name: `spam` beside `not_spam`, `yes`
beside `no`. If names say nothing, it fires on the label that was rarer among the rows that the run
was validated on, as the manifest counts them. If that is not known either, the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from deltas.errors import did_you_mean
from deltas.manifest import Manifest
from training.errors import ConfigError, listing

Decision = str | list[str] | float | None  # as in a prediction of the server

_ANY = "*"
_OPPOSITES = {
    "yes": "no",
    "y": "n",
    "true": "false",
    "t": "f",
    "1": "0",
    "positive": "negative",
    "pos": "neg",
    "on": "off",
}
_NEGATIONS = ("not", "no", "non")


@dataclass(frozen=True)
class Firing:
    """The labels on which a task fires, in the order of its head, and the reason for them."""

    labels: tuple[str, ...]
    reason: str

    def fires(self, decision: Decision) -> bool:
        """Tell whether a row with this decision fires; a row without an answer does not."""
        given = decision if isinstance(decision, list) else [decision]
        return any(label in self.labels for label in given)


def parse_fires(values: Sequence[str], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return the labels of each task that `--fires task=label` names, in the given order.

    Raises:
        ConfigError: a value of another form, or a task that is not audited.
    """
    named: dict[str, list[str]] = {}
    for value in values:
        task, equals, label = value.partition("=")
        if not equals or not label:
            raise ConfigError(f"--fires {value!r}: write it as task=label, such as {tasks[0]}=yes")
        if task not in tasks:
            raise ConfigError(
                f"--fires {value!r}: no such task here.{did_you_mean(task, tasks)} "
                f"Available: {listing(tasks)}"
            )
        named.setdefault(task, []).append(label)
    return named


def firing_of(manifest: Manifest, named: Mapping[str, Sequence[str]]) -> Firing:
    """Return the labels on which a task fires.

    Raises:
        ConfigError: the task is a regression, has no such label, or must be told its label.
    """
    task = manifest.task
    if task.kind == "regression":
        raise ConfigError(
            f"{task.name!r} is a regression: it answers with a number and never fires; leave it "
            "out (--tasks names the deltas of a folder)"
        )
    if task.name in named:
        return _named(task.name, task.labels, named[task.name])
    if task.kind == "multi_label":
        return Firing(task.labels, "any label")
    if len(task.labels) == 2:
        pair = task.labels[0], task.labels[1]
        if found := _by_name(pair) or _by_rows(manifest):
            return found
    shown = listing(map(repr, task.labels))
    advice = f"--fires {task.name}={task.labels[-1]}"
    if len(task.labels) > 2:
        advice += f", once for each label, or --fires '{task.name}={_ANY}' for any answer"
    raise ConfigError(
        f"{task.name!r} has the labels {shown}; say on which one it fires, such as {advice}"
    )


def _named(task: str, labels: tuple[str, ...], wanted: Sequence[str]) -> Firing:
    if _ANY in wanted and _ANY not in labels:
        return Firing(labels, "any label, by --fires")
    for label in wanted:
        if label not in labels:
            hint = did_you_mean(label, labels)
            raise ConfigError(
                f"--fires {f'{task}={label}'!r}: {task!r} has no such label.{hint} "
                f"Available: {listing(labels)}"
            )
    return Firing(tuple(label for label in labels if label in wanted), "by --fires")


def _by_name(labels: tuple[str, str]) -> Firing | None:
    for label, other in permutations(labels):
        said, denied = _words(label), _words(other)
        is_negated = denied in [f"{word} {said}" for word in _NEGATIONS] + [f"non{said}"]
        if is_negated or _OPPOSITES.get(said) == denied:
            return Firing((label,), "by its name")
    return None


def _words(label: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", label.casefold()))


def _by_rows(manifest: Manifest) -> Firing | None:
    """Return the rarer label of two, if the manifest has counted their validation rows."""
    split = manifest.validation_split
    counted = manifest.metrics[split].by_label if split else {}
    rows = {label: found.rows for label, found in counted.items()}
    if set(rows) != set(manifest.task.labels) or len(set(rows.values())) == 1:
        return None
    rarer = min(rows, key=rows.__getitem__)
    reason = f"the rarer label, {rows[rarer]:,} of {sum(rows.values()):,} validation rows"
    return Firing((rarer,), reason)
