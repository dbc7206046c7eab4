"""The built-in sample: generated rows for every GLUE task, for when no real data can be had.

Rows come from the project's own grammar and resemble the task enough to learn something, not enough
to say anything about GLUE. The same on every machine. The grammar is in `training.sample_tasks`.
"""

from __future__ import annotations

import random

from training.rows import Labels, Rows
from training.sample_scenes import Grammar
from training.sample_tasks import RULES
from training.sample_words import SEA, TOWN
from training.tasks import Task

TRAIN_ROWS = 3000
VALIDATION_ROWS = 400
# Attempts at a row before giving up on finding a new one; tables that small are a mistake here.
_MOST_REPEATS = 1000


def sample_splits(task: Task) -> dict[str, Rows]:
    """Train and validation rows of a GLUE task; no two rows have the same texts.

    As in MNLI, "validation_mismatched" is about other things than the train set.
    """
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in (task.train_split, *task.validation_splits):
        size = TRAIN_ROWS if split == task.train_split else VALIDATION_ROWS
        # A text as seed gives the same numbers everywhere; hash() would not.
        world = SEA if split.endswith("mismatched") else TOWN
        grammar = Grammar(random.Random(f"{task.name}/{split}"), world)
        splits[split] = _draw(task, grammar, size, seen)
    return splits


def _draw(task: Task, grammar: Grammar, size: int, seen: set[tuple[str, ...]]) -> Rows:
    rows: list[tuple[tuple[str, ...], float]] = []
    repeats = 0
    while len(rows) < size:
        texts, label = RULES[task.name](grammar, len(rows) % max(1, len(task.labels)))
        key = tuple(text.casefold() for text in texts)
        if key in seen or len(set(key)) < len(key):
            repeats += 1
            if repeats > _MOST_REPEATS:
                raise RuntimeError(f"the grammar of {task.name} has fewer than {size} rows")
            continue
        repeats = 0
        seen.add(key)
        rows.append((texts, label))
    grammar.rng.shuffle(rows)
    values = [label for _, label in rows]
    labels: Labels = values if task.kind == "regression" else [int(value) for value in values]
    return Rows([texts for texts, _ in rows], labels)
