"""Prepares a training run: its model, the options of its loop, and the weights of its labels.

The model starts from the selected values of the backbone, or of another delta (`--init-from`), and
a head. The scores by which `fisher` and `gem` select are computed here, too. Read
`training.run.task_model` next, then `training.run.loop.loop`.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.delta import Delta, Entry, SparseEntry
from deltas.format import read_delta
from deltas.hardware import DTYPES, pick_device, pick_precision
from deltas.manifest import InitialDelta, TaskAbout, TaskExample, TaskSpec
from training.data.rows import TaskData
from training.data.tasks import Task
from training.errors import ConfigError, listing
from training.options import FitConfig, default_epochs, num_evaluations, shared_fields
from training.run.evaluation import features, pooled_scale, primary_score
from training.run.head.calibration import head_as_trained
from training.run.head.solver import HeadProblem, solve_head
from training.run.loop.schedule import LoopConfig
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

_SCORED_ROWS = 256
_SMALLEST_WEIGHT = 1e-8
_MAX_START_ROWS = 5000  # enough to start from; a head that stays as it is reads all rows
_HEAD_RATE = 1e-3
_SCALE_ROWS = 64
_MAX_FEATURES = 2**29  # values of all rows: 2 GiB, and solving the head holds a copy of them
_MAX_WIDTH = 10_000  # a regression solves for a matrix of this width and height


def task_spec(
    config: FitConfig, task: Task, num_rows: int, backbone: Backbone, start: Delta | None
) -> TaskSpec:
    """Return how the encoder reads a task's rows, for the manifest.

    "auto" takes what a starting point has, and else what the backbone is made for (decision 0111).
    A sentence encoder is made for the mean of a text's tokens and for two texts that it read
    separately. Any other BERT is made for the first token, and for joint pairs. A head that trains
    alone reads more from a sentence encoder in the means of every layer (decision 0144), as long
    as these of all `num_rows` train rows fit into 2 GiB.

    Raises:
        ConfigError: an option fits neither the task nor the starting point.
    """
    longest = backbone.config.max_positions
    if config.max_length > longest:
        raise ConfigError(
            f"--max-length {config.max_length}: the backbone has positions for {longest} tokens"
        )
    is_pair = len(task.text_fields) == 2
    if config.pairs == "separate" and not is_pair:
        raise ConfigError(f"--pairs separate: {task.name} has one text; leave the option out")
    pairs = config.pairs
    if pairs == "auto":
        is_sentence_encoder = backbone.pooling == "mean"
        pairs = "separate" if is_pair and is_sentence_encoder else "joint"
    pooling = config.pooling
    if pooling == "auto":
        pooling = "cls" if is_pair and pairs == "joint" else backbone.pooling
        width = (backbone.config.num_layers + 1) * backbone.config.hidden_size
        fits = num_rows * width <= _MAX_FEATURES and width <= _MAX_WIDTH
        if pooling == "mean" and not is_pair and config.freeze == "head" and fits:
            pooling = "layers"
    if start is not None:
        theirs = start.manifest.task
        given = {"pooling": (config.pooling, theirs.pooling), "pairs": (config.pairs, theirs.pairs)}
        for option, (ours, needed) in given.items():
            if ours not in ("auto", needed):
                raise ConfigError(
                    f"--{option} {ours}: the delta of --init-from has {needed!r}; leave the option "
                    "out to take that"
                )
        pooling, pairs = theirs.pooling, theirs.pairs
    if pooling == "layers" and pairs == "separate":
        raise ConfigError(
            "--pooling layers: texts that are read separately can't have it; give --pairs joint, "
            "or leave --pooling out"
        )
    fields = shared_fields(task, TaskSpec)
    return TaskSpec(**fields, max_length=config.max_length, pooling=pooling, pairs=pairs)


def task_about(config: FitConfig, task: Task) -> TaskAbout | None:
    """Return the words about a task that the options give, for the manifest; None without any.

    Raises:
        ConfigError: an example does not fit the task.
    """
    examples = []
    for given in config.example or ():
        left, arrow, right = given.rpartition("=>")
        texts = tuple(part.strip() for part in (left if arrow else given).split("||"))
        answer = right.strip() if arrow else ""
        if len(texts) != len(task.text_fields) or not all(texts):
            wanted = " || ".join(["TEXT"] * len(task.text_fields))
            raise ConfigError(f"--example {given!r}: write it as '{wanted} => LABEL'")
        if answer and task.kind == "single_label" and answer not in task.labels:
            known = listing(task.labels)
            raise ConfigError(f"--example {given!r}: {answer!r} is not a label. Labels: {known}")
        examples.append(TaskExample(texts=texts, answer=answer))
    if not (examples or config.description or config.question):
        return None
    return TaskAbout(
        description=config.description or "",
        question=config.question or "",
        examples=tuple(examples),
    )


def read_starting_point(
    config: FitConfig, backbone: Backbone
) -> tuple[Delta, InitialDelta] | tuple[None, None]:
    """Read the delta of `--init-from`, if that option is given, and describe it for the manifest.

    Raises:
        DeltaError: the file is not a delta, or its delta belongs to another backbone.
    """
    path = config.init_from
    if path is None:
        return None, None
    if not path.is_file():
        raise ConfigError(f"--init-from {path}: no such file")
    delta = read_delta(path, backbone)
    return delta, InitialDelta(
        task=delta.manifest.task.name,
        strategy=delta.manifest.strategy.served_as,
        version=delta.version,
        digest=f"sha256:{file_digest(path)}",
        with_head=config.init_head,
    )


def file_digest(path: Path | None) -> str:
    """Return the SHA-256 of a file's content, "" without a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def refuse_seen_rows(
    start: Delta | None, config: FitConfig, data: TaskData, splits: tuple[Split, Split]
) -> None:
    """Refuse a starting point that was trained on this run's selection rows.

    With another seed or share, nine tenths of the selection rows are rows that the starting point
    was trained on, and would score too well. Tasks are compared by name and by the digest of all
    rows; with equal tasks, equal seeds and equal numbers of rows mean equal splits.

    Raises:
        ConfigError: the same task or rows, but not certainly the same split.
    """
    if start is None:
        return
    task, facts = start.manifest.task, start.manifest.training
    if task.name != data.task.name and facts.data_digest != data.digest:
        return
    train, selection = (len(split.rows) for split in splits)
    this_run = data.digest, config.seed, train, selection
    if this_run == (facts.data_digest, facts.seed, facts.train_rows, facts.selection_rows):
        return
    raise ConfigError(
        f"--init-from {config.init_from}: this delta was trained on rows of {task.name}, perhaps "
        "on some of this run's selection rows, which would then score too well (its run: seed "
        f"{facts.seed}, {facts.train_rows:,} + {facts.selection_rows:,} rows; this one: seed "
        f"{config.seed}, {train:,} + {selection:,}). Start from the delta of another task, or use "
        "the same --seed and --selection-share on the same rows. If your rows are really others, "
        "give them another --name"
    )


def make_task_model(
    config: FitConfig,
    backbone: Backbone,
    split: Split,
    task: Task,
    spec: TaskSpec,
    start: Delta | None,
) -> TaskModel:
    """Make the model to train on the train rows.

    The backbone is already re-initialised if `--reinit` says so; the values of `start` replace the
    backbone's.

    Raises:
        ConfigError: the strategy selects nothing, or differs from that of the starting point.
    """
    device = pick_device(config.device)
    dtype = DTYPES[pick_precision(config.precision, device)]
    width = spec.head_width(backbone.config)
    head = initial_head(spec.num_outputs, width, config.seed)
    output = (1.0, 0.0)
    if task.kind == "regression":
        labels = split.labels.double()
        output = float(labels.std(correction=0)) or 1.0, float(labels.mean())

    def scores(rule: str) -> Mapping[str, Tensor]:
        if config.dry_run:  # as many values, without the work
            return {name: value.abs() for name, value in values.items()}
        every = initial_entries(backbone, dict.fromkeys(values), device)
        model = TaskModel(
            backbone, every, head, device, dtype, output, pooling=spec.pooling, pairs=spec.pairs
        )
        score = {"fisher": fisher_scores, "gem": gem_scores}[rule]
        return score(model, task.kind, split, config.seed)

    # A mean reads no pooler, so training it would change nothing.
    values = {
        name: value
        for name, value in backbone.parameters.items()
        if spec.pooling == "cls" or ".pooler." not in name
    }
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    selection = grammar.select(config.freeze, shapes, config.seed, values, scores)
    entries = initial_entries(backbone, selection, device)
    if start is not None:
        _copy_values(entries, selection, start, config)
        if config.init_head:
            head = _initial_head_from(start, task, output)
    return TaskModel(
        backbone, entries, head, device, dtype, output, pooling=spec.pooling, pairs=spec.pairs
    )


def solve_starting_head(
    config: FitConfig,
    model: TaskModel,
    task: Task,
    split: Split,
    weights: Tensor | None,
    penalty: float | None = None,
) -> float:
    """Set a model's head to the best one on its features; return the penalty of its solution.

    A head that trains alone is solved on all train rows, any other on a sample. For pairs that are
    read separately the weight of the cosine is free: it is the backbone's own answer.
    """
    rows, labels = split.rows, split.labels
    count = num_start_rows(model, len(rows))
    if count < len(rows):
        draw = random.Random(f"{config.seed} head")
        drawn = sorted(draw.sample(range(len(rows)), count))
        rows, labels = [rows[position] for position in drawn], labels[drawn]
    model.keep_features(rows)
    problem = head_problem(config, model, task, Split(rows, labels), weights)
    # What several labels a row score depends on thresholds, which are chosen later.
    score = partial(primary_score, task) if task.kind == "single_label" else None
    solved = solve_head(problem, config.seed, score, penalty)
    with torch.no_grad():
        for part, value in zip(model.head, (solved.weight, solved.bias), strict=True):
            part.copy_(value)
    return solved.penalty


def num_start_rows(model: TaskModel, num_train_rows: int) -> int:
    """Return the number of train rows on which a model's starting head is solved."""
    return min(num_train_rows, _MAX_START_ROWS) if model.entries else num_train_rows


def head_problem(
    config: FitConfig, model: TaskModel, task: Task, split: Split, weights: Tensor | None
) -> HeadProblem:
    """Compute the features of rows, and return the problem whose solution is a model's head."""
    labels = split.labels
    if task.kind == "regression":
        labels = (labels - model.shift) / model.scale  # the units that the head is trained in
    found = features(model, split.rows)
    extra = weights, config.label_smoothing, model.cosine_direction
    return HeadProblem(task.kind, len(model.head[1]), found, labels, *extra)


def fisher_scores(model: TaskModel, kind: str, split: Split, seed: int) -> dict[str, Tensor]:
    """Compute the empirical Fisher information of every trained value.

    That is the squared gradient of each row's own loss, summed over rows (Sung et al. 2021,
    arXiv:2111.09839). The scores are returned by parameter name, float32, in the parameter's shape.
    """
    scores = {name: torch.zeros_like(entry.values) for name, entry in model.entries.items()}
    for grads in _row_gradients(model, kind, split, seed):
        for name, grad in grads.items():
            scores[name].addcmul_(grad, grad)
    return {name: score.detach().cpu() for name, score in scores.items()}


def gem_scores(model: TaskModel, kind: str, split: Split, seed: int) -> dict[str, Tensor]:
    """Compute the ratio of gradient to weight of every trained value (see the rule `gem`).

    The gradient is that of the loss over all drawn rows. The scores are returned by parameter name,
    float32, in the parameter's shape.
    """
    sums = {name: torch.zeros_like(entry.values) for name, entry in model.entries.items()}
    for grads in _row_gradients(model, kind, split, seed):
        for name, grad in grads.items():
            sums[name] += grad
    values = {name: entry.values.detach() for name, entry in model.entries.items()}
    return {name: gradient_to_weight(grad, values[name]).cpu() for name, grad in sums.items()}


def gradient_to_weight(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return |gradient| / |weight|, a weight below 1e-8 counted as 1e-8.

    Some weights are exactly 0: the biases of an untrained pooler, or those that `--reinit biases`
    has set to 0. They have no ratio. With a small divisor in its place they come first, those with
    the larger gradient before the others. A value without a gradient has the ratio 0.
    """
    return gradient.abs() / weight.abs().clamp(min=_SMALLEST_WEIGHT)


def _row_gradients(
    model: TaskModel, kind: str, split: Split, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradients of the losses of some rows, row by row, of the values that have one.

    256 rows are enough to rank the values. They are drawn with the seed, because the first rows of
    a file sorted by label have one label only.
    """
    values = {name: entry.values for name, entry in model.entries.items()}
    total = len(split.rows)
    drawn = random.Random(f"{seed} fisher").sample(range(total), min(total, _SCORED_ROWS))
    for position in sorted(drawn):
        logits = model.logits([split.rows[position]])
        labels = split.labels[[position]].to(logits.device)
        loss = task_loss(kind, logits, labels, model.scale)
        grads = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
        yield {name: grad for name, grad in zip(values, grads, strict=True) if grad is not None}


def label_weights(config: FitConfig, task: Task, split: Split) -> Tensor | None:
    """Return the label weights of `--class-weights`, float32 [C], or None for equal weights.

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


def loop_config(config: FitConfig, model: TaskModel, splits: tuple[Split, Split]) -> LoopConfig:
    """Resolve the options of the loop; defaults depend on the train rows and the head's input."""
    rows, selection = (split.rows for split in splits)
    rows_a_step = config.batch_size * config.accumulate
    head_start = "given" if config.init_head else config.head_start
    epochs = config.epochs
    if epochs is None:
        # The epochs of a head alone cost little if the pooled outputs of all rows can be cached.
        head_only = model.can_keep_pooled([*rows, *selection])
        tokens = sum(row.num_tokens for row in rows)
        epochs = default_epochs(len(rows), tokens, head_only=head_only)
        if not model.entries and head_start == "solved":
            epochs = 0.0  # the solution is the best head already
    steps = math.ceil(epochs * math.ceil(len(rows) / rows_a_step))
    learning_rate = config.lr or grammar.default_learning_rate(config.freeze)
    head_rate = config.head_lr or ("same" if config.freeze == "head" else None)
    if head_rate == "same":
        head_rate = learning_rate
    elif head_rate is None:
        head_rate = float(f"{_HEAD_RATE / pooled_scale(model, rows[:_SCALE_ROWS]):.3g}")
    resolved = {
        "steps": steps,
        "learning_rate": learning_rate,
        "head_learning_rate": head_rate,
        "evals": min(steps, num_evaluations(config, epochs)),
        "decay": config.schedule,
        "head_start": head_start,
    }
    return LoopConfig(**shared_fields(config, LoopConfig) | resolved)


def _copy_values(
    entries: dict[str, Entry], selection: Selection, delta: Delta, config: FitConfig
) -> None:
    """Overwrite the entries' values with those of a delta.

    Raises:
        ConfigError: the delta has another selection.
    """
    found = delta.entries
    other = {name for name in selection if not _same_indices(selection[name], found.get(name))}
    if differing := sorted(other | (set(found) - set(selection))):
        strategy = delta.manifest.strategy
        raise ConfigError(
            f"--init-from {config.init_from}: its selection ({strategy.served_as}, seed "
            f"{strategy.seed}) is not that of --freeze {config.freeze} --seed {config.seed}; "
            f"they differ in {listing(differing)}. Give the same --freeze, and for strategies that "
            "draw at random the same --seed"
        )
    for name, entry in entries.items():
        entry.values.copy_(found[name].values)


def _same_indices(indices: Tensor | None, entry: Entry | None) -> bool:
    if isinstance(entry, SparseEntry):
        return indices is not None and torch.equal(indices, entry.indices)
    return indices is None and entry is not None


def _initial_head_from(
    delta: Delta, task: Task, output: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return the delta's head as it was trained.

    It is not calibrated, since this run calibrates it, and for a regression in standardised units.
    """
    theirs = delta.manifest.task
    if (theirs.kind, len(theirs.labels)) != (task.kind, len(task.labels)):
        raise ConfigError(
            f"--init-head: {theirs.name} is {theirs.kind} with {len(theirs.labels)} labels, "
            f"{task.name} is {task.kind} with {len(task.labels)}; leave --init-head out"
        )
    head = delta.head_weight.clone(), delta.head_bias.clone()
    weight, bias = head_as_trained(head, delta.manifest.calibration)
    scale, shift = output
    return weight / scale, (bias - shift) / scale
