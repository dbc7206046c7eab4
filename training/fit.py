"""One training run: `python -m training.fit --task qnli --freeze bitfit`.

Reads rows, trains the selected values over the frozen backbone, writes them as a delta, prints a
summary. Reading order: `main` (command line), `fit` (the run), then `training.loop`.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from deltas.backbone import Backbone, load_backbone
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.errors import DeltaError
from deltas.format import check_delta, write_delta
from deltas.hardware import keep_freed_memory, pick_device, pick_precision
from deltas.manifest import Manifest, SplitMetrics, StrategySpec, TaskSpec, TrainingFacts
from deltas.rows import tokenize_texts
from deltas.store import delta_path
from training import processes, strategies
from training.command import parse_arguments, print_summary
from training.config import FitConfig
from training.data import load_task
from training.dataset import load_data_set
from training.errors import ConfigError, TaskError, TrainingError
from training.evaluation import judge
from training.facts import git_commit, versions
from training.files import load_files
from training.loop import Outcome, Progress, Report, train
from training.own import OwnTask
from training.progress import progress_bar
from training.reinit import entries_over, reinitialise
from training.resume import state_path, told_of
from training.rows import Rows, TaskData, hold_out
from training.schedule import LoopConfig
from training.start import (
    label_weights,
    loop_config,
    make_trainee,
    path_digest,
    read_start,
    refuse_seen_rows,
)
from training.tasks import TASKS, Task
from training.trainee import Split, Trainee

_MOST_SELECTION_ROWS = 2000
_NOT_PART_OF_A_RUN = {"resume", "overwrite", "json_", "out"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    config = parse_arguments(words)
    if isinstance(config, int):
        return config
    keep_freed_memory()
    try:
        with processes.joined(config.device):
            command = shlex.join(["python", "-m", "training.fit", *words])
            path, delta = fit(config, command=command)
            talks = processes.is_first()
    except (TrainingError, DeltaError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ConfigError | TaskError) else 1
    except OSError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            "stopped; the same command with --resume goes on from the last evaluation, if it had "
            "come to one\n"
        )
        return 130
    if talks:
        print_summary(path, delta, as_json=config.json_)
    return 0


def fit(config: FitConfig, *, command: str, report: Report | None = None) -> tuple[Path, Delta]:
    """Train and write one delta.

    Args:
        config: the options.
        command: what to record as the command that repeats the run.
        report: called after each step; without it a progress bar is shown.

    Returns:
        The file and what was written into it.

    Raises:
        TrainingError: options or data that can't be used.
        DeltaError: a backbone that can't be used.
    """
    _make_repeatable()
    freeze = strategies.canonical(config.freeze)
    config = config.model_copy(update={"freeze": freeze})
    strategy = StrategySpec(name=freeze, reinit=config.reinit, seed=config.seed)
    data = _load_rows(config)
    backbone = load_backbone(config.backbone)
    spec = _task_spec(config, data, backbone)
    path = delta_path(config.out, backbone.ref.id, spec.name, strategy.served_as)
    if path.exists() and not config.overwrite:
        raise ConfigError(f"{path} exists; give --overwrite to replace it, or another --out")
    state = _state_of(path, config, data, backbone)
    start = read_start(config, backbone)
    started_from = reinitialise(backbone, config.reinit, config.seed)
    parts = _cut(config, spec, backbone, data)
    refuse_seen_rows(start, config, data, parts)
    trainee = make_trainee(config, started_from, parts[0], data.task, start)
    _check_writable(path.parent)
    loop = loop_config(config, trainee, parts)
    started = time.monotonic()
    outcome = _train(config, data.task, trainee, parts, loop, state, report)
    trainee.fold()
    entries = entries_over(backbone, started_from, config.reinit, trainee.entries)
    held = {name: _detached(entry) for name, entry in entries.items()}
    weight, bias = (part.detach().cpu() for part in trainee.head)
    selection = SplitMetrics(rows=len(parts[1].rows), values=outcome.metrics)
    validation = _validate(trainee, spec, backbone, data)
    known_last = {
        "duration_s": round(time.monotonic() - started, 1),
        "command": command,
        "init_from": start and start.facts,
    }
    manifest = Manifest(
        backbone=backbone.ref,
        task=spec,
        strategy=strategy,
        entries=tuple(entry.info(name) for name, entry in held.items()),
        trainable_parameters=sum(value.numel() for value in trainee.parameters.values()),
        total_parameters=backbone.num_parameters + weight.numel() + bias.numel(),
        training=_facts(config, data, parts, loop, outcome.steps).model_copy(update=known_last),
        primary_metric=data.task.primary_metric,
        metrics={"selection": selection, **validation},
    )
    delta = Delta(manifest, held, weight, bias)
    check_delta(delta, backbone)
    return path, _write(delta, path, state)


def _train(
    config: FitConfig,
    task: Task,
    trainee: Trainee,
    parts: tuple[Split, Split],
    loop: LoopConfig,
    state: Path,
    report: Report | None,
) -> Outcome:
    """Run the loop; the first process shows how far it is."""
    if report is None and processes.is_first():
        sys.stderr.write(
            "".join(f"note: {line}\n" for line in told_of(state, resume=config.resume))
        )
    weights = label_weights(config, task, parts[0])
    silent = None if processes.is_first() else _say_nothing
    title = f"{task.name} {config.freeze}"
    with progress_bar(loop.steps, title, task.primary_metric, report or silent) as told:
        return train(trainee, task, parts, loop, state_path=state, report=told, weights=weights)


def _write(delta: Delta, path: Path, state: Path) -> Delta:
    """Write the delta, in the first process, and remove what could resume the run."""
    if not processes.is_first():
        return delta
    written = write_delta(delta, path)
    state.unlink(missing_ok=True)
    return written


def _say_nothing(progress: Progress) -> None:
    """The report of a process that is not the first."""


def _make_repeatable() -> None:
    torch.use_deterministic_algorithms(mode=True)
    # Filling fresh memory helps to find bugs, not to repeat runs, and is slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _check_writable(folder: Path) -> None:
    """Find out before the training whether its result can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"--out: can't write into {folder} ({reason})") from error


def _validate(
    trainee: Trainee, spec: TaskSpec, backbone: Backbone, data: TaskData
) -> dict[str, SplitMetrics]:
    """Judge the selected state on the validation splits, which nothing has looked at before."""
    metrics = {}
    for name, rows in data.validation.items():
        split = _tokenized(spec, backbone, rows, data)
        note = data.validation_notes.get(name, "")
        own = data.task.name not in TASKS
        metrics[name] = judge(trainee, data.task, split, note, labels=own)
    return metrics


def _facts(
    config: FitConfig, data: TaskData, parts: tuple[Split, Split], loop: LoopConfig, steps: int
) -> TrainingFacts:
    """All but what only the end of the run knows: how long it took."""
    device = pick_device(config.device)
    return TrainingFacts(
        data=data.source,
        data_digest=data.digest,
        data_note=data.note,
        data_set=data.data_set,
        train_rows=len(parts[0].rows),
        selection_rows=len(parts[1].rows),
        epochs=round(steps * loop.step_rows / len(parts[0].rows), 3),
        steps=steps,
        batch_size=loop.batch_size,
        learning_rate=loop.learning_rate,
        head_learning_rate=loop.head_learning_rate,
        dropout=loop.dropout,
        warmup=loop.warmup,
        decay=loop.decay,
        weight_decay=loop.weight_decay,
        accumulate=loop.accumulate,
        label_smoothing=loop.label_smoothing,
        class_weights=config.class_weights,
        patience=loop.patience,
        stopped_early=steps < loop.steps,
        processes=processes.count(),
        precision=pick_precision(config.precision, device),
        seed=config.seed,
        duration_s=0.0,
        device=device.type,
        versions=versions(),
        git_commit=git_commit(),
        command="",
    )


def _load_rows(config: FitConfig) -> TaskData:
    if config.task:
        data = load_task(config.task, config.data)
    else:
        columns = (column.strip() for column in (config.text_columns or "").split(","))
        own = OwnTask(tuple(columns), config.label_column or "", config.name or "", config.kind)
        if config.train_file is not None:
            data = load_files(config.train_file, config.validation_file, own)
        else:
            splits = config.train_split_name, config.validation_split
            data = load_data_set(config.dataset or "", splits, own)
    if config.class_weights == "balanced" and data.task.labels:
        data = replace(data, task=_judged_by_label(data.task))
    return data if config.train_rows is None else data.subset(config.train_rows, config.seed)


def _judged_by_label(task: Task) -> Task:
    """Labels that count alike in training do so in choosing the best state, too."""
    others = [name for name in task.metrics if name != "macro_f1"]
    return replace(task, metrics=("macro_f1", *others))


def _task_spec(config: FitConfig, data: TaskData, backbone: Backbone) -> TaskSpec:
    longest = backbone.config.max_positions
    if config.max_length > longest:
        raise ConfigError(
            f"--max-length {config.max_length}: the backbone has positions for {longest} tokens"
        )
    task = data.task
    return TaskSpec(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        text_fields=task.text_fields,
        max_length=config.max_length,
    )


def _cut(
    config: FitConfig, spec: TaskSpec, backbone: Backbone, data: TaskData
) -> tuple[Split, Split]:
    """Train and selection rows: a random slice is kept back to select the best state."""
    total = len(data.train)
    share = min(config.selection_share, _MOST_SELECTION_ROWS / total)
    parts = hold_out(data.train, data.task.kind, share, config.seed)
    if not all(map(len, parts)):
        raise ConfigError(
            f"{total} train rows are too few to train on some and select on others, each label "
            "on both sides; add rows, or change --selection-share"
        )
    train_split, selection_split = (_tokenized(spec, backbone, rows, data) for rows in parts)
    return train_split, selection_split


def _tokenized(spec: TaskSpec, backbone: Backbone, rows: Rows, data: TaskData) -> Split:
    labels = torch.tensor(rows.labels)
    if data.task.kind != "single_label":
        labels = labels.float()
    return Split(tokenize_texts(backbone.tokenizer, spec.max_length, rows.texts), labels)


def _detached(entry: Entry) -> Entry:
    values = entry.values.detach().cpu()
    if isinstance(entry, SparseEntry):
        return SparseEntry(entry.indices.cpu(), values, entry.shape)
    return DenseEntry(values)


def _state_of(path: Path, config: FitConfig, data: TaskData, backbone: Backbone) -> Path:
    """Where a run keeps its state: only what makes the very same values continues it."""
    device = pick_device(config.device)
    resolved = {"device": device.type, "precision": pick_precision(config.precision, device)}
    options = config.model_copy(update=resolved).model_dump_json(exclude=_NOT_PART_OF_A_RUN)
    ref, start = backbone.ref, path_digest(config.init_from)
    sources = f"{data.digest} {ref.fingerprint} {ref.tokenizer_fingerprint} {start}"
    software = f"torch {versions()['torch']} in {processes.count()}"
    key = hashlib.sha256(f"{options} {sources} {software}".encode()).hexdigest()[:12]
    state = state_path(path, key)
    if not config.resume and processes.is_first():
        state.unlink(missing_ok=True)
    return state


if __name__ == "__main__":
    sys.exit(main())
