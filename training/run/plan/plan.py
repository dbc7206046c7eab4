"""Makes the plan of a prepared run: what was read, what will be done, what looks odd, how long.

`training.run.plan.facts` counts, `training.run.plan.oddities` judges, `training.run.plan.timing`
measures and `training.run.plan.render` writes it down. `training.fit` prints it before training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from deltas.backbone.tokenizer import TokenizedRow, tokenize_texts
from deltas.hardware import pick_device, pick_precision
from training.data.rows import Rows
from training.run import distributed
from training.run.plan.facts import SELECTION, TRAIN, RunFacts, count_facts, sampled
from training.run.plan.oddities import find_oddities
from training.run.plan.timing import Duration, measure
from training.run.plan.wording import format_duration, percent

if TYPE_CHECKING:
    from training.run.train_delta import PreparedRun

LIMIT_S = 2.0  # of the measurement


@dataclass(frozen=True)
class Actions:
    """Everything that a run will do, resolved to numbers and names."""

    backbone: str
    strategy: str
    pooling: str
    pairs: str | None  # None for tasks with one text
    trained_parameters: int  # the head included
    total_parameters: int
    head_start: str  # "solved", "random" or "given"
    epochs: float
    steps: int  # 0 if the head is solved and nothing else trains
    step_rows: int
    learning_rate: float
    head_learning_rate: float
    evaluations: int
    patience: int | None
    precision: str
    device: str
    threads: int
    processes: int
    file: str
    exists: bool  # a delta is there already
    overwrites: bool  # it will be replaced
    resumes: bool  # from the state of a stopped run


@dataclass(frozen=True)
class RunPlan:
    """A run as it is told to its user before it starts."""

    source: str  # "hub", "folder", "sample" or "files"
    notes: tuple[str, ...]  # on how the rows were read and split
    warnings: tuple[str, ...]  # of the reading; they were logged, too
    is_kind_inferred: bool  # from the labels; neither a task nor the user states it
    facts: RunFacts
    actions: Actions
    oddities: tuple[str, ...]
    duration: Duration


def make_plan(run: PreparedRun, limit_s: float = LIMIT_S) -> RunPlan:
    """Count, judge and measure; the run itself stays as it is.

    Several processes that train together must all call this. `limit_s` is the time that the
    measurement may take, besides counting.
    """
    data = run.data
    splits = {TRAIN: run.rows[0], SELECTION: run.rows[1], **data.validation}
    tokenized = _tokenized(run, data.validation)
    facts = count_facts(data.task, splits, tokenized, run.spec.max_length)
    tokens = {
        split: sum(row.num_tokens for row in rows) * len(splits[split]) / len(rows)
        for split, rows in tokenized.items()
        if rows
    }
    duration = measure(run, tokens, limit_s)
    notes = [*data.reading_notes, *filter(None, (data.note, *data.validation_notes.values()))]
    actions = _actions(run)
    return RunPlan(
        source=data.source,
        notes=tuple(dict.fromkeys(notes)),
        warnings=data.warnings,
        is_kind_inferred=not run.config.task and run.config.kind is None,
        facts=facts,
        actions=actions,
        oddities=(
            *_odd_target(run, actions),
            *_unread_rows(run, actions, duration),
            *find_oddities(facts, splits),
        ),
        duration=duration,
    )


def _tokenized(run: PreparedRun, validation: Mapping[str, Rows]) -> dict[str, list[TokenizedRow]]:
    """Return the rows of each split tokenized; of validation splits at most 2,000 rows."""
    found = {TRAIN: run.splits[0].rows, SELECTION: run.splits[1].rows}
    for split, rows in validation.items():
        texts = [rows.texts[position] for position in sampled(len(rows))]
        found[split] = tokenize_texts(
            run.backbone.tokenizer, run.spec.max_length, texts, pairs=run.spec.pairs
        )
    return found


def _actions(run: PreparedRun) -> Actions:
    config, loop, device = run.config, run.loop, pick_device(run.config.device)
    head = sum(part.numel() for part in run.model.head)
    return Actions(
        backbone=run.backbone.ref.id,
        strategy=run.strategy.served_as,
        pooling=run.spec.pooling,
        pairs=run.spec.pairs if len(run.spec.text_fields) == 2 else None,
        trained_parameters=sum(value.numel() for value in run.model.parameters.values()),
        total_parameters=run.backbone.num_parameters + head,
        head_start=loop.head_start,
        epochs=round(loop.steps * loop.step_rows / len(run.splits[0].rows), 3),
        steps=loop.steps,
        step_rows=loop.step_rows,
        learning_rate=loop.learning_rate,
        head_learning_rate=loop.head_learning_rate,
        evaluations=loop.evals,
        patience=loop.patience,
        precision=pick_precision(config.precision, device),
        device=device.type,
        threads=torch.get_num_threads(),
        processes=distributed.count(),
        file=str(run.path),
        exists=run.path.exists(),
        overwrites=config.overwrite and run.path.exists(),
        resumes=config.resume and run.state.exists(),
    )


def _odd_target(run: PreparedRun, actions: Actions) -> list[str]:
    """Return what would stop the run or surprise its user about the files that it writes."""
    found = []
    if actions.exists and not actions.overwrites:
        found.append(
            f"{run.path} exists, so the run would be refused; give --overwrite to replace it, or "
            "another --out"
        )
    folder = next((each for each in run.path.parents if each.exists()), Path())
    if not folder.is_dir():
        found.append(f"--out: {folder} is a file, so the run would be refused; name a folder")
    elif not os.access(folder, os.W_OK):
        found.append(f"--out: {folder} can't be written, so the run would be refused")
    if run.state.exists() and not run.config.resume:
        found.append(
            "a stopped run with these options left its state; --resume continues it, and without "
            "that option it is deleted"
        )
    return found


def _unread_rows(run: PreparedRun, actions: Actions, duration: Duration) -> list[str]:
    """Return that a run without `--epochs` ends before it has read all train rows."""
    if run.config.epochs is not None or not 0 < actions.epochs < 1:
        return []
    seconds = format_duration(duration.seconds / actions.epochs)
    return [
        f"the default length of a run trains on {percent(actions.epochs)} of the train rows; "
        f"--epochs 1 takes all of them once, in about {seconds}"
    ]
