"""One training run: reads rows, trains a delta over the frozen backbone, and writes its file.

`training.fit` is the command in front of it, `training.study.trial` makes runs of a sweep with it.
Read `training.run.prepare` next, then `training.run.task_model` and `training.run.loop.loop`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deltas.backbone.backbone import Backbone, load_backbone
from deltas.backbone.tokenizer import tokenize_texts
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.format import check_delta
from deltas.hardware import pick_device, pick_precision
from deltas.manifest import (
    BackboneRef,
    InitialDelta,
    Manifest,
    RunHistory,
    SplitMetrics,
    StrategySpec,
    TaskAbout,
    TaskSpec,
    TrainingFacts,
)
from deltas.store.predictions import predictions_path
from deltas.store.store import delta_path
from training.data.custom import CustomTask, load_files, split_names
from training.data.files.delimited import DelimitedOptions
from training.data.glue import load_task
from training.data.hub_dataset import load_data_set
from training.data.rows import Rows, TaskData, hold_out
from training.data.tasks import TASKS
from training.errors import ConfigError
from training.options import FitConfig, shared_fields
from training.run import distributed
from training.run.evaluation import Decided, calibrate, calibrate_head, predict, score_split
from training.run.head.thresholds import check_target
from training.run.loop.checkpoint import state_notes, state_path
from training.run.loop.loop import Progress, Report, train
from training.run.loop.schedule import LoopConfig
from training.run.output import (
    PredictedSplit,
    already_exists,
    reserve,
    write_predictions,
    write_result,
)
from training.run.prepare import (
    file_digest,
    label_weights,
    loop_config,
    make_task_model,
    read_starting_point,
    refuse_seen_rows,
    solve_starting_head,
    task_about,
    task_spec,
)
from training.run.task_model import Model, Split, TaskModel, finished_model
from training.strategies import grammar
from training.strategies.reinit import entries_over, reinitialise

_NOT_PART_OF_A_RUN = {"resume", "overwrite", "json_", "out", "dry_run"}
_PACKAGES = ("deltabert", "torch", "transformers", "tokenizers", "safetensors")


@dataclass(frozen=True)
class PreparedRun:
    """A run before its training: its rows are read and its model is made; nothing is written."""

    config: FitConfig
    data: TaskData
    backbone: Backbone
    initial: Backbone  # the backbone, re-initialised if `--reinit` says so
    spec: TaskSpec
    about: TaskAbout | None
    path: Path  # of the delta
    state: Path  # of the checkpoint
    start: InitialDelta | None
    rows: tuple[Rows, Rows]  # to train on, and to select the best state by
    splits: tuple[Split, Split]  # the same, tokenized
    model: TaskModel
    loop: LoopConfig
    weights: Tensor | None  # of the labels

    @property
    def strategy(self) -> StrategySpec:
        """The strategy for the manifest."""
        return _strategy(self.config)


def train_delta(
    config: FitConfig, *, command: str, report: Report | None = None
) -> tuple[Path, Delta]:
    """Train one delta and write it; returns the file and its content.

    `command` is the command line that repeats the run, for the manifest; `report` is called after
    each step, without it a progress bar is shown.

    Raises:
        TrainingError: unusable options or data.
        DeltaError: an unusable backbone.
    """
    return finish_run(prepare_run(config), command=command, report=report)


def prepare_run(config: FitConfig) -> PreparedRun:
    """Read the rows and make the model of a run, without writing anything.

    Raises:
        TrainingError: unusable options or data.
        DeltaError: an unusable backbone.
    """
    _make_repeatable()
    config = config.model_copy(update={"freeze": grammar.canonical(config.freeze)})
    data = _load_rows(config)
    check_target(data.task.kind, config.target, config.coverage)
    backbone = load_backbone(config.backbone)
    start, start_facts = read_starting_point(config, backbone)
    spec = task_spec(config, data.task, len(data.train), backbone, start)
    about = task_about(config, data.task)
    path = delta_path(config.out, backbone.ref.id, spec.name, _strategy(config).served_as)
    if path.exists() and not (config.overwrite or config.dry_run):
        raise already_exists(path)
    initial = reinitialise(backbone, config.reinit, config.seed)
    rows = _cut(config, data)
    splits = _tokenized(spec, backbone, rows[0]), _tokenized(spec, backbone, rows[1])
    refuse_seen_rows(start, config, data, splits)
    model = make_task_model(config, initial, splits[0], data.task, spec, start)
    return PreparedRun(
        config=config,
        data=data,
        backbone=backbone,
        initial=initial,
        spec=spec,
        about=about,
        path=path,
        state=_state_file(path, config, data, backbone.ref, spec),
        start=start_facts,
        rows=rows,
        splits=splits,
        model=model,
        loop=loop_config(config, model, splits),
        weights=label_weights(config, data.task, splits[0]),
    )


def finish_run(
    run: PreparedRun, *, command: str, report: Report | None = None
) -> tuple[Path, Delta]:
    """Train a prepared run's model, evaluate it and write its delta, as `train_delta` does."""
    with reserve(run.path, overwrite=run.config.overwrite):
        return _finish_run(run, command, report)


def _finish_run(run: PreparedRun, command: str, report: Report | None) -> tuple[Path, Delta]:
    config, backbone, model = run.config, run.backbone, run.model
    if not config.resume and distributed.is_first():
        run.state.unlink(missing_ok=True)
    started = time.monotonic()
    penalty = _solve_head(run)
    values, steps, history = _train(run, report)
    model.fold()
    trained = entries_over(backbone, run.initial, config.reinit, model.entries)
    entries = {name: _detached(entry) for name, entry in trained.items()}
    judged = finished_model(model, backbone, entries, run.spec)  # shares the head of the model
    task, selected = run.data.task, run.splits[1]
    decided, logits, notes = calibrate(
        judged, task, selected, target=config.target, coverage=config.coverage
    )
    if not steps:  # after the selection rows have calibrated the head
        _solve_on_all_rows(run, decided, penalty)
    if distributed.is_first():
        sys.stderr.write("".join(f"note: {note}\n" for note in notes))
    weight, bias = (part.detach().cpu() for part in model.head)
    selection = score_split(logits, task, selected.labels, "", decided, by_label=False)
    selection = selection.model_copy(update={"values": values | selection.values})
    scores, predicted = _validate(run, judged, decided)
    metrics = {"selection": selection} | scores
    seconds = round(time.monotonic() - started, 1)
    facts = TrainingFacts(
        **_training_facts(run, steps),
        duration_s=seconds,
        command=command,
        init_from=run.start,
        history=history,
    )
    manifest = Manifest(
        backbone=backbone.ref,
        task=run.spec,
        about=run.about,
        strategy=run.strategy,
        entries=tuple(entry.info(name) for name, entry in entries.items()),
        trainable_parameters=sum(value.numel() for value in model.parameters.values()),
        total_parameters=backbone.num_parameters + weight.numel() + bias.numel(),
        calibration=decided.calibration,
        decision=decided.rule,
        training=facts,
        primary_metric=run.data.task.primary_metric,
        metrics=metrics,
    )
    delta = Delta(manifest, entries, weight, bias)
    check_delta(delta, backbone)
    if distributed.is_first():
        chosen_by = PredictedSplit("selection", run.rows[1], logits)
        delta = write_result(delta, run.path, overwrite=config.overwrite)
        splits = [chosen_by, *predicted]
        write_predictions(predictions_path(run.path), splits, delta.version)
        run.state.unlink(missing_ok=True)
    return run.path, delta


def _strategy(config: FitConfig) -> StrategySpec:
    return StrategySpec(name=config.freeze, reinit=config.reinit, seed=config.seed)


def _make_repeatable() -> None:
    # Its twin, use_deterministic_algorithms, would also load torch's compiler, which takes two
    # seconds of every run and compiles nothing here.
    torch.set_deterministic_debug_mode("error")
    # Filling fresh memory helps to find bugs, not to repeat runs, and is slow.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _load_rows(config: FitConfig) -> TaskData:
    if config.task:
        data = load_task(config.task, config.data)
    else:
        columns = split_names(config.text_columns or "")
        custom = CustomTask(columns, config.label_column or "", config.name or "", config.kind)
        if config.train_file is not None:
            quoting = None if config.quoting is None else config.quoting == "on"
            options = DelimitedOptions(config.delimiter, quoting)
            data = load_files(config.train_file, config.validation_file, custom, options)
        else:
            splits = config.train_split_name, config.validation_split
            data = load_data_set(config.dataset or "", splits, custom)
    if config.class_weights == "balanced" and data.task.labels:
        # Labels count alike in training, so they count alike in the choice of the best state, too.
        others = [name for name in data.task.metrics if name != "macro_f1"]
        data = replace(data, task=replace(data.task, metrics=("macro_f1", *others)))
    return data if config.train_rows is None else data.subset(config.train_rows, config.seed)


def _state_file(
    path: Path, config: FitConfig, data: TaskData, backbone: BackboneRef, spec: TaskSpec
) -> Path:
    """Return the run's checkpoint file; only a run that gives the same values shares it."""
    device = pick_device(config.device)
    resolved = {"device": device.type, "precision": pick_precision(config.precision, device)}
    options = config.model_copy(update=resolved).model_dump_json(exclude=_NOT_PART_OF_A_RUN)
    computes = backbone.model_dump_json(exclude={"id", "revision"})  # the same under another name
    reads = spec.model_dump_json()  # a backbone's own pooling is part of it
    sources = f"{data.digest} {computes} {reads} {file_digest(config.init_from)}"
    software = f"torch {_versions()['torch']} in {distributed.count()}"
    key = hashlib.sha256(f"{options} {sources} {software}".encode()).hexdigest()[:12]
    return state_path(path, key)


def _cut(config: FitConfig, data: TaskData) -> tuple[Rows, Rows]:
    """Hold selection rows out of the train rows; they select the best state."""
    total = len(data.train)
    share = min(config.selection_share, config.max_selection_rows / total)
    train_rows, selection_rows = hold_out(data.train, data.task.kind, share, config.seed)
    if not (len(train_rows) and len(selection_rows)):
        raise ConfigError(
            f"{total} train rows are too few to train on some and select on others, each label "
            "on both sides; add rows, or change --selection-share"
        )
    return train_rows, selection_rows


def _tokenized(spec: TaskSpec, backbone: Backbone, rows: Rows) -> Split:
    labels = torch.tensor(rows.labels)
    if spec.kind != "single_label":
        labels = labels.float()
    tokenizer, length = backbone.tokenizer, spec.max_length
    return Split(tokenize_texts(tokenizer, length, rows.texts, pairs=spec.pairs), labels)


def _solve_head(run: PreparedRun) -> float | None:
    """Set the head that the run starts from; return its penalty, None if it is not solved."""
    if run.loop.head_start != "solved":
        return None
    return solve_starting_head(run.config, run.model, run.data.task, run.splits[0], run.weights)


def _train(
    run: PreparedRun, report: Report | None
) -> tuple[dict[str, float], int, RunHistory | None]:
    """Run the loop; rank 0 shows a progress bar if there is no `report`."""
    reports: AbstractContextManager[Report]
    config, task, loop = run.config, run.data.task, run.loop
    if report is None and distributed.is_first():
        notes = state_notes(run.state, resume=config.resume)
        sys.stderr.write("".join(f"note: {note}\n" for note in notes))
        reports = progress_bar(loop.steps, f"{task.name} {config.freeze}", task.primary_metric)
    else:
        reports = nullcontext(report or (lambda progress: None))
    with reports as each:
        return train(
            run.model,
            task,
            run.splits,
            loop,
            state_path=run.state,
            report=each,
            weights=run.weights,
        )


def _solve_on_all_rows(run: PreparedRun, decided: Decided, penalty: float | None) -> None:
    """Solve the head of a run without steps again, now that the selection rows judged it.

    No step is left to choose by the selection rows, so they make the head better. It keeps the
    penalty of the first head, and the calibration that they gave to it.
    """
    train_rows, selection_rows = run.splits
    labels = torch.cat([train_rows.labels, selection_rows.labels])
    every = Split([*train_rows.rows, *selection_rows.rows], labels)
    solve_starting_head(run.config, run.model, run.data.task, every, run.weights, penalty)
    calibrate_head(run.model, decided.calibration)


@contextmanager
def progress_bar(steps: int, title: str, metric: str) -> Iterator[Report]:
    """Show loss, best metric and time left on standard error while the block runs."""
    loss, best = math.nan, -math.inf
    with tqdm(total=steps, desc=title, unit="step", file=sys.stderr, mininterval=0.5) as bar:

        def report(progress: Progress) -> None:
            nonlocal loss, best
            loss = progress.loss if math.isnan(loss) else 0.95 * loss + 0.05 * progress.loss
            if progress.metric is not None:
                best = max(best, progress.metric)
            if progress.step > bar.n + 1:  # resumed: time left counts from the first new step
                bar.initial = bar.n = progress.step - 1
            shown = {"loss": loss} if math.isinf(best) else {"loss": loss, metric: best}
            bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()}, refresh=False)
            bar.update()

        yield report


def _detached(entry: Entry) -> Entry:
    values = entry.values.detach().cpu()
    if isinstance(entry, SparseEntry):
        return SparseEntry(entry.indices.cpu(), values, entry.shape)
    return DenseEntry(values)


def _validate(
    run: PreparedRun, model: Model, decided: Decided
) -> tuple[dict[str, SplitMetrics], list[PredictedSplit]]:
    """Evaluate the selected state on the validation splits, which nothing has used before.

    `model` is the state as a server computes it.
    """
    data, custom = run.data, run.data.task.name not in TASKS
    scores: dict[str, SplitMetrics] = {}
    predicted: list[PredictedSplit] = []
    for name, rows in data.validation.items():
        split = _tokenized(run.spec, run.backbone, rows)
        logits, note = predict(model, split.rows), data.validation_notes.get(name, "")
        scores[name] = score_split(logits, data.task, split.labels, note, decided, by_label=custom)
        predicted.append(PredictedSplit(name, rows, logits))
    return scores, predicted


def _training_facts(run: PreparedRun, steps: int) -> dict[str, Any]:
    """Return the fields of `TrainingFacts` that follow from the options, the rows and the steps."""
    config, data, loop = run.config, run.data, run.loop
    device = pick_device(config.device)
    train_rows, selection_rows = (len(split.rows) for split in run.splits)
    return shared_fields(loop, TrainingFacts) | {
        "data": data.source,
        "data_digest": data.digest,
        "data_note": data.note,
        "data_set": data.data_set,
        "train_rows": train_rows,
        "selection_rows": selection_rows,
        "epochs": round(steps * loop.step_rows / train_rows, 3),
        "steps": steps,
        "class_weights": config.class_weights,
        "target": config.target,
        "coverage": config.coverage,
        "stopped_early": steps < loop.steps,
        "processes": distributed.count(),
        "precision": pick_precision(config.precision, device),
        "device": device.type,
        "versions": _versions(),
        "git_commit": _git_commit(),
    }


def _versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _git_commit() -> str | None:
    """Return the commit of this code, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
