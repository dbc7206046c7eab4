"""What a run starts from: the selected values of the backbone or of another delta, and a head.

Also here: the scores by which `fisher` selects. What happens next: `training.run.loop`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.format import check_delta, read_delta
from deltas.hardware import DTYPES, pick_device, pick_precision
from deltas.manifest import InitialDelta, Manifest
from training.data.rows import TaskData
from training.data.tasks import Task
from training.errors import ConfigError, listing
from training.options import FitConfig, default_epochs
from training.run.evaluation import pooled_scale
from training.run.schedule import LoopConfig
from training.run.task_model import (
    Split,
    TaskModel,
    balanced_weights,
    initial_entries,
    initial_head,
    task_loss,
)
from training.strategies import grammar
from training.strategies.rules import Selection

_FISHER_ROWS = 256
_FEWEST_EVALS = 4
_HEAD_RATE = 1e-3
_SCALE_ROWS = 64


@dataclass(frozen=True)
class StartingPoint:
    """A delta of another task or of the very same split, and how the manifest speaks of it."""

    delta: Delta
    facts: InitialDelta


def read_starting_point(config: FitConfig, backbone: Backbone) -> StartingPoint | None:
    """The delta of `--init-from`, if that is given.

    Raises:
        DeltaError: it is no delta, or one of another backbone.
    """
    path = config.init_from
    if path is None:
        return None
    if not path.is_file():
        raise ConfigError(f"--init-from {path}: no such file")
    delta = read_delta(path)
    check_delta(delta, backbone)
    manifest = delta.manifest
    facts = InitialDelta(
        task=manifest.task.name,
        strategy=manifest.strategy.served_as,
        version=delta.version,
        digest=f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}",
        with_head=config.init_head,
    )
    return StartingPoint(delta, facts)


def refuse_seen_rows(
    start: StartingPoint | None, config: FitConfig, data: TaskData, parts: tuple[Split, Split]
) -> None:
    """Refuse a start that was trained on rows that are to select this run's best state.

    Another seed or share keeps other rows back, nine tenths of which the start has learnt: it would
    score too well on them. Rows are told apart by the task's name and the digest of all rows; equal
    seeds and numbers of rows then mean equal splits.

    Raises:
        ConfigError: the same task or rows, and not surely the same split.
    """
    if start is None:
        return
    task, facts = start.delta.manifest.task, start.delta.manifest.training
    if task.name != data.task.name and facts.data_digest != data.digest:
        return
    train, selection = (len(part.rows) for part in parts)
    mine = data.digest, config.seed, train, selection
    if mine == (facts.data_digest, facts.seed, facts.train_rows, facts.selection_rows):
        return
    raise ConfigError(
        f"--init-from {config.init_from}: it has learnt rows of {task.name}, maybe also some that "
        "select the best state here, which would score too well (its run: seed "
        f"{facts.seed}, {facts.train_rows:,} + {facts.selection_rows:,} rows; this one: seed "
        f"{config.seed}, {train:,} + {selection:,}). Start from another task's delta, or with the "
        "same --seed and --selection-share on the same rows; if your rows are really others, give "
        "them another --name"
    )


def make_task_model(
    config: FitConfig, backbone: Backbone, split: Split, task: Task, start: StartingPoint | None
) -> TaskModel:
    """Overlay and head to train.

    Args:
        config: strategy, seed, precision, device.
        backbone: the one to train over, already re-initialised if that was asked for.
        split: train rows.
        task: kind and labels.
        start: a delta whose values take the place of the backbone's.

    Raises:
        ConfigError: a strategy that selects nothing, or another than the delta to start from has.
    """
    device = pick_device(config.device)
    dtype = DTYPES[pick_precision(config.precision, device)]
    head = initial_head(len(task.labels) or 1, backbone.config.hidden_size, config.seed)
    output = (1.0, 0.0)
    if task.kind == "regression":
        labels = split.labels.double()
        output = float(labels.std(correction=0)) or 1.0, float(labels.mean())

    def scores() -> Mapping[str, Tensor]:
        every = initial_entries(backbone, dict.fromkeys(backbone.parameters), device)
        model = TaskModel(backbone, every, head, device, dtype, output)
        return fisher_scores(model, task.kind, split, config.seed)

    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    selection = grammar.select(config.freeze, shapes, config.seed, backbone.parameters, scores)
    entries = initial_entries(backbone, selection, device)
    if start is not None:
        _take_values(entries, selection, start.delta, config)
        if config.init_head:
            head = _head_of(start.delta.manifest, start.delta, task, output)
    return TaskModel(backbone, entries, head, device, dtype, output)


def fisher_scores(model: TaskModel, kind: str, split: Split, seed: int) -> dict[str, Tensor]:
    """Empirical Fisher information of every trained value: its squared gradient, summed over rows.

    Each row has its own gradient, of the loss of its own label (Sung et al. 2021,
    arXiv:2111.09839). 256 rows are enough for an order, drawn by the seed: a file sorted by label
    has one label only in its first rows.

    Returns:
        By parameter name, float32, the parameter's own shape.
    """
    values = {name: entry.values for name, entry in model.entries.items()}
    scores = {name: torch.zeros_like(value) for name, value in values.items()}
    total = len(split.rows)
    drawn = random.Random(f"{seed} fisher").sample(range(total), min(total, _FISHER_ROWS))
    for position in sorted(drawn):
        logits = model.logits([split.rows[position]])
        labels = split.labels[[position]].to(logits.device)
        loss = task_loss(kind, logits, labels, model.scale)
        grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        for score, grad in zip(scores.values(), grads, strict=True):
            if grad is not None:
                score.addcmul_(grad, grad)
    return {name: score.detach().cpu() for name, score in scores.items()}


def label_weights(config: FitConfig, task: Task, split: Split) -> Tensor | None:
    """Weights of the labels for `--class-weights`, float32 [C], or None where rows count alike.

    Raises:
        ConfigError: the task has no labels.
    """
    for flag, given in (
        ("--class-weights", config.class_weights != "none"),
        ("--label-smoothing", config.label_smoothing > 0),
    ):
        if given and task.kind == "regression":
            raise ConfigError(f"{flag}: {task.name} is a regression, which has no labels")
    if config.class_weights == "none":
        return None
    return balanced_weights(task.kind, split.labels, len(task.labels))


def loop_config(config: FitConfig, model: TaskModel, parts: tuple[Split, Split]) -> LoopConfig:
    """Options of the loop as numbers; defaults depend on the train rows and on the head's input."""
    rows, selection = (part.rows for part in parts)
    train_rows = len(rows)
    of_features = model.trains_head_only([*rows, *selection])
    epochs = config.epochs or default_epochs(train_rows, of_features=of_features)
    rows_a_step = config.batch_size * config.accumulate
    steps = max(1, math.ceil(epochs * math.ceil(train_rows / rows_a_step)))
    learning_rate = config.lr or grammar.default_learning_rate(config.freeze)
    head_rate = config.head_lr or (learning_rate if config.freeze == "head" else 0.0)
    if not head_rate:
        head_rate = float(f"{_HEAD_RATE / pooled_scale(model, rows[:_SCALE_ROWS]):.3g}")
    evals = config.evals or max(_FEWEST_EVALS, round(epochs))
    if config.evals_per_epoch is not None:
        evals = max(1, round(epochs * config.evals_per_epoch))
    return LoopConfig(
        steps=steps,
        batch_size=config.batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_rate,
        warmup=config.warmup,
        weight_decay=config.weight_decay,
        dropout=config.dropout,
        evals=min(steps, evals),
        seed=config.seed,
        decay=config.schedule,
        accumulate=config.accumulate,
        label_smoothing=config.label_smoothing,
        patience=config.patience,
    )


def _take_values(
    entries: dict[str, Entry], selection: Selection, delta: Delta, config: FitConfig
) -> None:
    """Put a delta's values where the backbone's are.

    Raises:
        ConfigError: its selection is another one.
    """
    found = delta.entries
    differing = sorted(set(entries) ^ set(found))
    differing += [
        name
        for name in selection
        if name in found and not _same_places(selection[name], found[name])
    ]
    if differing:
        strategy = delta.manifest.strategy
        raise ConfigError(
            f"--init-from {config.init_from}: its selection ({strategy.served_as}, seed "
            f"{strategy.seed}) is not that of --freeze {config.freeze} --seed {config.seed}; "
            f"they differ in {listing(differing)}. Give the same --freeze, and for strategies that "
            "draw at random the same --seed"
        )
    for name, entry in entries.items():
        entry.values.copy_(found[name].values)


def _same_places(indices: Tensor | None, entry: Entry) -> bool:
    if isinstance(entry, DenseEntry):
        return indices is None
    assert isinstance(entry, SparseEntry)
    return indices is not None and torch.equal(indices, entry.indices)


def _head_of(
    manifest: Manifest, delta: Delta, task: Task, output: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """The delta's head; for regression in units of the task's own labels, as it is trained."""
    theirs = manifest.task
    if (theirs.kind, len(theirs.labels)) != (task.kind, len(task.labels)):
        raise ConfigError(
            f"--init-head: {theirs.name} is {theirs.kind} with {len(theirs.labels)} labels, "
            f"{task.name} is {task.kind} with {len(task.labels)}; leave --init-head out"
        )
    scale, shift = output
    return delta.head_weight.clone() / scale, (delta.head_bias.clone() - shift) / scale


def path_digest(path: Path | None) -> str:
    """SHA-256 of a file's content; "" without one."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""
