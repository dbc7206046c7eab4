"""The training loop: optimises an overlay's values and the head, and nothing else.

A run is a pure function of its data, its selection and its options. The order of rows and dropout
are drawn from (seed, epoch) and (seed, step), never from a running generator, so a run that was
killed continues bit for bit from its last saved state. Legend: R rows of a batch, C head outputs, H
hidden width.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deltas.backbone import Backbone
from deltas.delta import Entry
from deltas.encoder import encode
from deltas.overlay import SingleOverlay
from deltas.packing import pack
from deltas.rows import TokenizedRow
from training.errors import TrainingError
from training.metrics import compute_metrics
from training.resume import load_state, save_state
from training.tasks import Task

_POOL_BATCHES = 32  # batches whose rows are sorted by length together
_EVAL_TOKENS = 4096
_CLIP_NORM = 1.0


@dataclass(frozen=True)
class Split:
    """Tokenized rows; labels int64 [R], float32 [R] (regression), float32 [R, C] (multi label)."""

    rows: list[TokenizedRow]
    labels: Tensor


@dataclass(frozen=True)
class LoopConfig:
    """Options of the loop, resolved to numbers."""

    steps: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    warmup: float
    weight_decay: float
    dropout: float
    evals: int
    seed: int


@dataclass
class Progress:
    """What a progress bar wants to know after a step; `metrics` has the selection loss as well."""

    step: int
    loss: float
    metric: float | None
    metrics: dict[str, float] | None = None


Report = Callable[[Progress], None]


class Trainee:
    """Frozen backbone + overlay + head for one task.

    A regression's head is trained towards standardised labels, whatever their range, and answers in
    the labels' own units: (head(pooled)) * scale + shift.

    Attributes:
        entries: the overlay's entries; their values require gradients.
        head_weight: float32 [C, H], requires gradients.
        head_bias: float32 [C], requires gradients.
    """

    def __init__(
        self,
        backbone: Backbone,
        entries: dict[str, Entry],
        head: tuple[Tensor, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        output: tuple[float, float] = (1.0, 0.0),
    ) -> None:
        self.entries = entries
        self.head_weight, self.head_bias = (part.to(device).requires_grad_() for part in head)
        for entry in entries.values():
            entry.values.requires_grad_()
        self.scale, self._shift = output
        self._backbone = backbone
        self._device = device
        self._overlay = SingleOverlay(backbone, entries, device, dtype)
        self._features: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    @property
    def head(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the head."""
        return self.head_weight, self.head_bias

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Everything that trains, by name: the entries' values and the head."""
        named = {name: entry.values for name, entry in self.entries.items()}
        return named | {"classifier.weight": self.head_weight, "classifier.bias": self.head_bias}

    def logits(self, rows: Sequence[TokenizedRow], dropout: float = 0.0) -> Tensor:
        """Float32 logits [R, C] in the order of the rows."""
        pooled = F.dropout(self.pooled(rows, dropout), dropout)
        return F.linear(pooled, self.head_weight, self.head_bias) * self.scale + self._shift

    @torch.no_grad()
    def fold(self) -> None:
        """Put scale and shift into the head, which answers alone from now on."""
        self.head_weight *= self.scale
        self.head_bias *= self.scale
        self.head_bias += self._shift
        self.scale, self._shift = 1.0, 0.0

    def pooled(self, rows: Sequence[TokenizedRow], dropout: float = 0.0) -> Tensor:
        """Float32 pooled outputs [R, H] in the order of the rows."""
        if not self.entries:
            return self._frozen_features(rows)
        self._overlay.refresh()
        return self._encode(rows, dropout)

    def _encode(self, rows: Sequence[TokenizedRow], dropout: float) -> Tensor:
        batch = pack([(row.input_ids, row.token_type_ids) for row in rows], self._device)
        return encode(self._backbone.config, self._overlay, batch, dropout).float()

    def _frozen_features(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Pooled outputs [R, H] where nothing below the head trains: computed once and kept."""
        keys = [(tuple(row.input_ids), tuple(row.token_type_ids)) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._features}
        missing = sorted(new.items(), key=lambda item: item[1].num_tokens)
        with torch.no_grad():
            for start in range(0, len(missing), 64):
                part = missing[start : start + 64]
                pooled = self._encode([row for _, row in part], 0.0)
                for (key, _), feature in zip(part, pooled, strict=True):
                    self._features[key] = feature.clone()
        return torch.stack([self._features[key] for key in keys])


def train(
    trainee: Trainee,
    task: Task,
    splits: tuple[Split, Split],
    config: LoopConfig,
    *,
    state_path: Path,
    report: Report,
) -> dict[str, float]:
    """Train in place and leave the best state, by the primary metric on the selection rows.

    Args:
        trainee: what to train.
        task: kind, metrics.
        splits: train rows, selection rows.
        config: options.
        state_path: resumable state is kept here and removed by the caller.
        report: called after each step.

    Returns:
        Metrics of the best state on the selection rows.
    """
    train_rows, selection_rows = splits
    if not trainee.entries:
        # At once and in one order: a row's last bits depend on the batch that it is computed in,
        # and a resumed run must find the same ones.
        trainee.pooled([*train_rows.rows, *selection_rows.rows])
    parameters = trainee.parameters
    optimizer = _optimizer(trainee, config)
    best: dict[str, Tensor] = {name: value.detach().clone() for name, value in parameters.items()}
    best_metrics: dict[str, float] = {}
    first = 0
    if state_path.exists():
        first, best, best_metrics = load_state(state_path, parameters, optimizer)
    evaluations = {math.ceil(config.steps * (n + 1) / config.evals) for n in range(config.evals)}
    for step, positions in enumerate(batches(train_rows.rows, config), start=1):
        if step <= first:
            continue
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, config)
        torch.manual_seed(config.seed * 1_000_003 + step)
        loss = _step(trainee, task, train_rows, positions, optimizer, config.dropout)
        metric = metrics = None
        if step in evaluations:
            metrics = evaluate(trainee, task, selection_rows, with_loss=True)
            metric = metrics[task.primary_metric]
            if not best_metrics or _is_better(metrics, best_metrics, task.primary_metric):
                best_metrics = metrics
                best = {name: value.detach().clone() for name, value in parameters.items()}
        report(Progress(step, loss, metric, metrics))
        if metrics:  # after the report, so that whoever keeps reports misses none when killed here
            save_state(state_path, step, parameters, optimizer, (best, best_metrics))
        _check_finite(step, loss)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(best[name])
    return best_metrics


def _optimizer(trainee: Trainee, config: LoopConfig) -> torch.optim.Optimizer:
    """AdamW over the overlay's values and the head; "peak" is each one's highest learning rate."""
    values = [entry.values for entry in trainee.entries.values()]
    groups = [
        {"params": values, "peak": config.learning_rate},
        {"params": list(trainee.head), "peak": config.head_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _step(
    trainee: Trainee,
    task: Task,
    split: Split,
    positions: list[int],
    optimizer: torch.optim.Optimizer,
    dropout: float,
) -> float:
    logits = trainee.logits([split.rows[position] for position in positions], dropout)
    labels = split.labels[positions].to(logits.device)
    loss = task_loss(task.kind, logits, labels, trainee.scale)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(trainee.parameters.values(), _CLIP_NORM)
    optimizer.step()
    return float(loss.detach())


def task_loss(kind: str, logits: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Mean loss of a batch: cross entropy, one binary cross entropy a label, or squared error.

    Squared errors are in units of `scale`, so that a rate suits labels of any range.
    """
    if kind == "single_label":
        return F.cross_entropy(logits, labels)
    if kind == "multi_label":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.mse_loss(logits[:, 0] / scale, labels / scale)


@torch.no_grad()
def pooled_scale(trainee: Trainee, rows: Sequence[TokenizedRow]) -> float:
    """Root mean square of the pooled output of some rows, before training.

    It differs tenfold between backbones (0.07 on all-MiniLM-L6-v2, whose pooler was never trained
    with the rest), and with it how fast a head's answers move at a given learning rate.
    """
    return max(1e-3, float(trainee.pooled(rows).square().mean().sqrt()))


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"training diverged: the loss of step {step} is {loss}; try a lower --lr"
        )


@torch.no_grad()
def predict(trainee: Trainee, rows: Sequence[TokenizedRow]) -> Tensor:
    """Float32 logits [R, C] for any number of rows, computed in packed batches of bounded size."""
    order = sorted(range(len(rows)), key=lambda position: rows[position].num_tokens)
    results: list[Tensor] = []
    part: list[int] = []
    tokens = 0
    for position in order:
        if part and tokens + rows[position].num_tokens > _EVAL_TOKENS:
            results.append(trainee.logits([rows[index] for index in part]))
            part, tokens = [], 0
        part.append(position)
        tokens += rows[position].num_tokens
    results.append(trainee.logits([rows[index] for index in part]))
    packed = torch.cat(results).cpu()
    restored = torch.empty_like(packed)
    restored[torch.tensor(order)] = packed
    return restored


def evaluate(
    trainee: Trainee, task: Task, split: Split, *, with_loss: bool = False
) -> dict[str, float]:
    """The task's metrics on a split, and "loss" if asked for."""
    logits = predict(trainee, split.rows)
    decided = decisions(task.kind, logits.numpy())
    metrics = compute_metrics(task.metrics, decided, split.labels.numpy())
    if with_loss:
        metrics["loss"] = float(task_loss(task.kind, logits, split.labels, trainee.scale))
    return metrics


def _is_better(new: dict[str, float], best: dict[str, float], metric: str) -> bool:
    """Higher metric; lower loss where it ties (Matthews is 0 until the rarer label occurs)."""
    return (new[metric], -new["loss"]) > (best[metric], -best["loss"])


def decisions(kind: str, logits: NDArray[Any]) -> NDArray[Any]:
    """What metrics compare: label codes [R], values [R], or 0/1 [R, C]."""
    if kind == "single_label":
        codes: NDArray[Any] = logits.argmax(axis=1)
        return codes
    if kind == "multi_label":
        return (logits >= 0).astype(np.int64)
    return logits[:, 0]


def rate(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate at a step: a linear rise, then a linear fall to 0."""
    rising = max(1, round(config.warmup * config.steps))
    if step <= rising:
        return step / rising
    return max(0.0, (config.steps - step + 1) / (config.steps - rising + 1))


def batches(rows: Sequence[TokenizedRow], config: LoopConfig) -> Iterator[list[int]]:
    """Positions of each step's rows: each once an epoch, in random batches of like length."""
    made, epoch = 0, 0
    while made < config.steps:
        draw = random.Random(f"{config.seed} {epoch}")
        order = list(range(len(rows)))
        draw.shuffle(order)
        pool = _POOL_BATCHES * config.batch_size
        cut: list[list[int]] = []
        for start in range(0, len(order), pool):
            part = sorted(
                order[start : start + pool], key=lambda position: rows[position].num_tokens
            )
            cut += [
                part[at : at + config.batch_size] for at in range(0, len(part), config.batch_size)
            ]
        draw.shuffle(cut)
        yield from cut[: config.steps - made]
        made += len(cut)
        epoch += 1
