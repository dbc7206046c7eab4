"""The training loop: optimises an overlay's values and the head, and nothing else.

A run is a pure function of its data, its selection and its options. The order of rows is drawn from
(seed, epoch), dropout from (seed, step, process), never from a running generator, so a killed run
continues bit for bit from its last checkpoint. The gradients of the overlay are computed in
`deltas.encoder.single_overlay`: read it next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deltas.manifest import RunHistory
from training.data.tasks import Task
from training.errors import TrainingError
from training.run import distributed
from training.run.evaluation import evaluate
from training.run.loop.checkpoint import BestState, RunState, load_state, save_state
from training.run.loop.history import HistoryRecorder
from training.run.loop.schedule import LoopConfig, batches, evaluation_steps, rate_factor
from training.run.task_model import Split, TaskModel, loss_sum, total_weight


@dataclass
class Progress:
    """Progress of a run after a step, with metrics on the selection rows if it was evaluated."""

    step: int  # counted from 1
    loss: float  # mean loss of the step's rows
    metric: float | None  # the primary metric
    metrics: dict[str, float] | None = None  # all metrics, and "loss"


Report = Callable[[Progress], None]


def train(
    model: TaskModel,
    task: Task,
    splits: tuple[Split, Split],
    config: LoopConfig,
    *,
    state_path: Path,
    report: Report,
    weights: Tensor | None = None,
) -> tuple[dict[str, float], int, RunHistory | None]:
    """Train a model in place and leave it in its best state.

    The best state has the highest primary metric on the selection rows. Returns its metrics, the
    number of steps taken, and the run's history. `splits` are the train rows and the selection
    rows, `weights` the weights of the labels' rows, float32 [C]. The caller removes the checkpoint
    at `state_path`.
    """
    train_rows, selection_rows = splits
    model.keep_features([*train_rows.rows, *selection_rows.rows])
    metric = task.primary_metric
    state = _starting_state(model, task, selection_rows, config)
    if not config.steps:  # a solved head is the result; an optimizer takes seconds to make
        return state.best.metrics, 0, state.history.finish(0)
    parameters = model.parameters
    optimizer = make_optimizer(model, config)
    # Rank 0 removes old checkpoints. A process that looked for itself, earlier, could resume alone.
    if distributed.broadcast_flag(state_path.exists()):
        state = load_state(state_path, parameters, optimizer, HistoryRecorder(config, metric))
    distributed.barrier()  # the checkpoint must not be replaced while another process reads it
    first, evaluations = state.step, evaluation_steps(config)
    for step, positions in enumerate(batches(train_rows.rows, config), start=1):
        if step <= first:
            continue
        if config.patience is not None and state.stale >= config.patience:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, config)
        # Other processes draw other masks. CPUs use only the lowest 32 bits of a seed, so the rank
        # can't stand above them.
        torch.manual_seed(config.seed * 1_000_003 + step + distributed.rank() * 15_485_863)
        loss = train_batch(model, task, train_rows, positions, optimizer, config, weights)
        metrics = evaluate(model, task, selection_rows) if step in evaluations else None
        state.step = step
        state.history.add(step, loss, metrics)
        if metrics:
            _keep_the_best(state, parameters, metrics, metric)
        report(Progress(step, loss, metrics[metric] if metrics else None, metrics))
        # After the report: a caller that stores reports has all of them if the run is killed here.
        if metrics and distributed.is_first():
            save_state(state_path, state, parameters, optimizer)
        _check_finite(step, loss)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(state.best.values[name])
    return state.best.metrics, state.step, state.history.finish(state.step)


def _starting_state(
    model: TaskModel, task: Task, selection_rows: Split, config: LoopConfig
) -> RunState:
    """Return the state before the first step, with its metrics if its head is solved.

    A run from a solved head never ends with a worse state than the one that it started from.
    """
    history = HistoryRecorder(config, task.primary_metric)
    metrics: dict[str, float] = {}
    if config.head_start == "solved":
        metrics = evaluate(model, task, selection_rows)
        history.add_start(metrics)
    return RunState(0, BestState(_copies(model.parameters), metrics), 0, history)


def make_optimizer(model: TaskModel, config: LoopConfig) -> torch.optim.Optimizer:
    """Return AdamW over the overlay's values and the head; "peak" is a group's highest rate."""
    values = [entry.values for entry in model.entries.values()]
    groups = [
        {"params": values, "peak": config.learning_rate},
        {"params": list(model.head), "peak": config.head_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)


def train_batch(
    model: TaskModel,
    task: Task,
    split: Split,
    positions: list[int],
    optimizer: torch.optim.Optimizer,
    config: LoopConfig,
    weights: Tensor | None = None,
) -> float:
    """Take one step on some rows of a split and return their mean loss.

    The rows are computed in `config.accumulate` parts; the processes that train together share the
    rows of each part.
    """
    optimizer.zero_grad()
    total = total_weight(task.kind, split.labels[positions], weights)
    loss_so_far = torch.zeros(())
    for start in range(0, len(positions), config.batch_size):
        part = distributed.shard(positions[start : start + config.batch_size])
        if not part:
            continue
        logits = model.logits([split.rows[position] for position in part], config.dropout)
        loss = loss_sum(
            task.kind,
            logits,
            split.labels[list(part)].to(logits.device),
            model.scale,
            None if weights is None else weights.to(logits.device),
            config.label_smoothing,
        )
        loss = loss / total
        loss.backward()  # type: ignore[no-untyped-call]
        loss_so_far += loss.detach().cpu()
    distributed.all_reduce_gradients(model.parameters.values())
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), config.clip_norm)
    optimizer.step()
    return float(distributed.all_reduce(loss_so_far))


def _keep_the_best(
    state: RunState, parameters: dict[str, Tensor], metrics: dict[str, float], metric: str
) -> None:
    """Copy the parameters if their metrics are the best so far, or count them as no improvement."""
    state.stale += 1
    if not state.best.metrics or _is_better(metrics, state.best.metrics, metric):
        state.best, state.stale = BestState(_copies(parameters), metrics), 0


def _copies(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _check_finite(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"training diverged: the loss of step {step} is {loss}; try a lower --lr"
        )


def _is_better(new: dict[str, float], best: dict[str, float], metric: str) -> bool:
    # The lower loss breaks ties: Matthews stays 0 until the rarer label is predicted.
    return (new[metric], -new["loss"]) > (best[metric], -best["loss"])
