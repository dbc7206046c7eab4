"""The work of every benchmark: rows of the nine GLUE dev sets, interleaved, and made-up deltas.

How long a forward pass takes does not depend on how well a delta was trained, so the deltas are the
backbone's own values plus noise: any number of tasks, and every strategy for all of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from deltas import (
    Backbone,
    Delta,
    DenseEntry,
    Entry,
    Manifest,
    SparseEntry,
    StrategySpec,
    TaskSpec,
    TokenizedRow,
    TrainingFacts,
    delta_path,
    tokenize_texts,
    write_delta,
)
from deltas.manifest import Pooling
from training.data.glue import load_task
from training.data.rows import Rows
from training.data.tasks import TASKS
from training.strategies import grammar

MAX_LENGTH = 128
_ROWS_A_TASK = 114
_NOISE = 0.01


@dataclass(frozen=True)
class Workload:
    """Rows in the order of their arrival.

    Attributes:
        texts: one or two strings a row.
        rows: the same, tokenized; every system gets them like this.
        tasks: number of each row's task, 0 to 8.
        source: where the rows came from.
    """

    texts: list[tuple[str, ...]]
    rows: list[TokenizedRow]
    tasks: list[int]
    source: str

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows, special ones included, padding not."""
        return sum(row.num_tokens for row in self.rows)


def data_source() -> str:
    """Return the source of the dev rows: $GLUE_DIR, or the generated sample if it is not set."""
    return "GLUE dev sets" if os.environ.get("GLUE_DIR") else "generated sample, not GLUE"


def dev_rows(task: str) -> Rows:
    """The dev set that stands for a task: its first one."""
    data = load_task(task, None if os.environ.get("GLUE_DIR") else "sample")
    return next(iter(data.validation.values()))


def load_workload(backbone: Backbone) -> Workload:
    """Rows of $GLUE_DIR's dev sets; without it of the generated sample, which `source` says."""
    pairs: list[tuple[int, tuple[str, ...]]] = []
    for number, name in enumerate(TASKS):
        texts = list(dev_rows(name).texts)
        random.Random(0).shuffle(texts)
        pairs += [(number, text) for text in texts[:_ROWS_A_TASK]]
    random.Random(0).shuffle(pairs)
    texts = [text for _, text in pairs]
    rows = tokenize_texts(backbone.tokenizer, MAX_LENGTH, texts)
    return Workload(texts, rows, [number for number, _ in pairs], data_source())


def task_spec(name: str, num_labels: int = 2, pooling: Pooling = "cls") -> TaskSpec:
    """A single-label task of that name."""
    return TaskSpec(
        name=name,
        kind="single_label",
        labels=tuple(f"label{number}" for number in range(num_labels)),
        text_fields=("text",),
        max_length=MAX_LENGTH,
        pooling=pooling,
    )


def noisy_delta(backbone: Backbone, task: TaskSpec, strategy: str, seed: int) -> Delta:
    """The backbone's values under a strategy plus noise, with a random head."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    entries: dict[str, Entry] = {}
    for name, indices in grammar.select(strategy, shapes, seed).items():
        values = backbone.parameters[name]
        if indices is not None:
            values = values.reshape(-1)[indices]
        values = values + _NOISE * torch.randn(values.shape, generator=generator)
        entries[name] = (
            DenseEntry(values) if indices is None else SparseEntry(indices, values, shapes[name])
        )
    weight = torch.randn(task.num_outputs, task.head_width(backbone.config), generator=generator)
    bias = torch.zeros(task.num_outputs)
    described = tuple(entry.info(name) for name, entry in entries.items())
    in_head = weight.numel() + bias.numel()
    manifest = Manifest(
        backbone=backbone.ref,
        task=task,
        strategy=StrategySpec(name=grammar.canonical(strategy), seed=seed),
        entries=described,
        trainable_parameters=sum(info.count for info in described) + in_head,
        total_parameters=sum(map(prod, shapes.values())) + in_head,
        training=_untrained(seed),
        primary_metric="accuracy",
        metrics={},
    )
    return Delta(manifest, entries, weight, bias)


def write_deltas(
    backbone: Backbone,
    folder: Path,
    names: Sequence[str],
    strategy_of: dict[str, str],
    num_means: int = 0,
) -> None:
    """Write one made-up delta a task name; the first `num_means` of them have mean pooling."""
    for seed, name in enumerate(names):
        spec = task_spec(name, pooling="mean" if seed < num_means else "cls")
        delta = noisy_delta(backbone, spec, strategy_of[name], seed)
        write_delta(delta, delta_path(folder, backbone.ref.id, name, strategy_of[name]))


def _untrained(seed: int) -> TrainingFacts:
    return TrainingFacts(
        data="files",
        data_digest="0" * 64,
        data_note="noise, for a benchmark",
        train_rows=0,
        selection_rows=0,
        epochs=0.0,
        steps=0,
        batch_size=1,
        learning_rate=0.0,
        precision="fp32",
        seed=seed,
        duration_s=0.0,
        device="cpu",
        versions={},
        command="",
    )
