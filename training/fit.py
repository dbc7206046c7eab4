"""One training run: `python -m training.fit --task qnli --freeze bitfit`.

Reads rows, trains the selected values over the frozen backbone, writes them as a delta, prints a
summary. Reading order: `main` (command line), `fit` (the run), then `training.run.loop`.

What a run records about itself beyond its options: software, commit, command line.

The progress bar of a run: loss, best metric so far, time left; on standard error.

Command line of `training.fit`: flags made from `FitConfig`, errors, the closing summary.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tqdm import tqdm

from deltas.backbone.backbone import Backbone, load_backbone
from deltas.backbone.tokenizer import tokenize_texts
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.errors import DeltaError
from deltas.format import check_delta, write_delta
from deltas.hardware import keep_freed_memory, pick_device, pick_precision
from deltas.manifest import Manifest, SplitMetrics, StrategySpec, TaskSpec, TrainingFacts
from deltas.store import delta_path
from training.data.custom import CustomTask, load_files
from training.data.glue import load_task
from training.data.hub_dataset import load_data_set
from training.data.rows import Rows, TaskData, hold_out
from training.data.tasks import TASKS, Task
from training.errors import ConfigError, TaskError, TrainingError, listing
from training.options import FitConfig
from training.run import distributed
from training.run.checkpoint import state_notes, state_path
from training.run.evaluation import score_split
from training.run.loop import CLIP_NORM, FitResult, Progress, Report, train
from training.run.prepare import (
    label_weights,
    loop_config,
    make_task_model,
    path_digest,
    read_starting_point,
    refuse_seen_rows,
)
from training.run.schedule import LoopConfig
from training.run.task_model import Split, TaskModel
from training.strategies import grammar
from training.strategies.reinit import entries_over, reinitialise

_PACKAGES = ("deltabert", "torch", "transformers", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, or None when it doesn't run from a checkout."""
    folder = Path(__file__).parent
    try:
        command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def progress_bar(
    steps: int, title: str, metric: str, instead: Report | None = None
) -> Iterator[Report]:
    """Show a bar while the block runs; the block reports each step to what it gets.

    With `instead` no bar is shown, and it gets the reports.
    """
    if instead is not None:
        yield instead
        return
    smooth, best = math.nan, math.nan
    with tqdm(total=steps, desc=title, unit="step", file=sys.stderr, mininterval=0.5) as bar:

        def report(progress: Progress) -> None:
            nonlocal smooth, best
            smooth = progress.loss if math.isnan(smooth) else 0.95 * smooth + 0.05 * progress.loss
            if progress.metric is not None:
                best = progress.metric if math.isnan(best) else max(best, progress.metric)
            if progress.step > bar.n + 1:  # resumed: time left counts from where the run goes on
                bar.initial = bar.n = progress.step - 1
            shown = {"loss": f"{smooth:.3f}"}
            if not math.isnan(best):
                shown[metric] = f"{best:.3f}"
            bar.set_postfix(shown, refresh=False)
            bar.update()

        yield report


_MOST_LABELS = 20  # of a summary; the manifest has all


def parse_arguments(words: Sequence[str]) -> FitConfig | int:
    """Turn words into options, or into an exit code: 0 after help, 2 after misuse."""
    parser = _parser()
    try:
        given = vars(parser.parse_args(list(words)))
    except SystemExit as stop:
        return int(stop.code or 0)
    if given.get("freeze") == "help":
        sys.stdout.write(
            f"--freeze takes one of these, or several joined by +:\n{grammar.describe_rules()}\n"
        )
        return 0
    try:
        return FitConfig.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            flag = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"][:1])
            value = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
            sys.stderr.write(
                f"error: {flag}{problem['msg'].removeprefix('Value error, ')}{value}\n"
            )
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit",
        description="Fine-tune a task over the frozen backbone and write its delta. The optimiser "
        f"is AdamW; each step's gradient, of overlay and head together, is cut to a norm of "
        f"{CLIP_NORM}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in FitConfig.model_fields.items():
        flag = f"--{(field.alias or name).replace('_', '-')}"
        default = field.default
        if isinstance(default, bool):
            parser.add_argument(
                flag, dest=field.alias or name, action="store_true", help=field.description
            )
            continue
        told = "" if default in (None, "") else f" (default: {default})"
        help_text = f"{field.description}{told}".replace("%", "%%")
        parser.add_argument(flag, dest=field.alias or name, metavar=name.upper(), help=help_text)
    return parser


def summary(path: Path, delta: Delta) -> dict[str, Any]:
    """What a user wants to know of a finished run."""
    manifest = delta.manifest
    return {
        "file": str(path),
        "bytes": delta.num_bytes,
        "version": delta.version,
        "task": manifest.task.name,
        "kind": manifest.task.kind,
        "labels": list(manifest.task.labels),
        "strategy": manifest.strategy.served_as,
        "trained_parameters": manifest.trainable_parameters,
        "total_parameters": manifest.total_parameters,
        "duration_s": manifest.training.duration_s,
        "learning_rate": manifest.training.learning_rate,
        "data_note": manifest.training.data_note,
        "metrics": {split: part.model_dump() for split, part in manifest.metrics.items()},
    }


def print_summary(path: Path, delta: Delta, *, as_json: bool) -> None:
    """Print the summary to standard output, for people or as one JSON object."""
    facts = summary(path, delta)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    trained, total = facts["trained_parameters"], facts["total_parameters"]
    lines = [
        f"delta      {facts['file']}  ({facts['bytes'] / 1000:,.1f} kB, "
        f"version {facts['version']})",
        f"task       {facts['task']}  "
        f"({facts['kind']}: {listing(facts['labels'] or ['a number'])})",
        f"trained    {trained:,} of {total:,} parameters ({100 * trained / total:.3f} %), "
        "head included",
        f"time       {facts['duration_s']:,.0f} s",
    ]
    if facts["data_note"]:
        lines.append(f"data       {facts['data_note']}")
    for split, part in facts["metrics"].items():
        values = "  ".join(f"{name} {value:.4f}" for name, value in part["values"].items())
        note = f"  [{part['note']}]" if part["note"] else ""
        lines.append(f"{split:10} {values}  ({part['rows']:,} rows){note}")
        lines += _label_lines(part["by_label"])
    sys.stdout.write("\n".join(lines) + "\n")


def _label_lines(by_label: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each label, the worst answered first; of many only those."""
    worst = sorted(by_label, key=lambda label: (by_label[label]["f1"], label))
    if not worst:
        return []
    shown = worst[:_MOST_LABELS]
    width = max(len(label) for label in shown)
    lines = [
        f"  {label:{width}}  precision {found['precision']:.3f}  recall {found['recall']:.3f}  "
        f"f1 {found['f1']:.3f}  ({found['rows']:,} rows)"
        for label in shown
        for found in [by_label[label]]
    ]
    more = len(worst) - len(shown)
    return [*lines, f"  and {more} more labels in the manifest"] if more else lines


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
        with distributed.joined(config.device):
            command = shlex.join(["python", "-m", "training.fit", *words])
            path, delta = fit(config, command=command)
            talks = distributed.is_first()
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
    freeze = grammar.canonical(config.freeze)
    config = config.model_copy(update={"freeze": freeze})
    strategy = StrategySpec(name=freeze, reinit=config.reinit, seed=config.seed)
    data = _load_rows(config)
    backbone = load_backbone(config.backbone)
    spec = _task_spec(config, data, backbone)
    path = delta_path(config.out, backbone.ref.id, spec.name, strategy.served_as)
    if path.exists() and not config.overwrite:
        raise ConfigError(f"{path} exists; give --overwrite to replace it, or another --out")
    state = _state_of(path, config, data, backbone)
    start = read_starting_point(config, backbone)
    started_from = reinitialise(backbone, config.reinit, config.seed)
    parts = _cut(config, spec, backbone, data)
    refuse_seen_rows(start, config, data, parts)
    model = make_task_model(config, started_from, parts[0], data.task, start)
    _check_writable(path.parent)
    loop = loop_config(config, model, parts)
    started = time.monotonic()
    outcome = _train(config, data.task, model, parts, loop, state, report)
    model.fold()
    entries = entries_over(backbone, started_from, config.reinit, model.entries)
    held = {name: _detached(entry) for name, entry in entries.items()}
    weight, bias = (part.detach().cpu() for part in model.head)
    selection = SplitMetrics(rows=len(parts[1].rows), values=outcome.metrics)
    validation = _validate(model, spec, backbone, data)
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
        trainable_parameters=sum(value.numel() for value in model.parameters.values()),
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
    model: TaskModel,
    parts: tuple[Split, Split],
    loop: LoopConfig,
    state: Path,
    report: Report | None,
) -> FitResult:
    """Run the loop; the first process shows how far it is."""
    if report is None and distributed.is_first():
        sys.stderr.write(
            "".join(f"note: {line}\n" for line in state_notes(state, resume=config.resume))
        )
    weights = label_weights(config, task, parts[0])
    silent = None if distributed.is_first() else _say_nothing
    title = f"{task.name} {config.freeze}"
    with progress_bar(loop.steps, title, task.primary_metric, report or silent) as told:
        return train(model, task, parts, loop, state_path=state, report=told, weights=weights)


def _write(delta: Delta, path: Path, state: Path) -> Delta:
    """Write the delta, in the first process, and remove what could resume the run."""
    if not distributed.is_first():
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
    model: TaskModel, spec: TaskSpec, backbone: Backbone, data: TaskData
) -> dict[str, SplitMetrics]:
    """Judge the selected state on the validation splits, which nothing has looked at before."""
    metrics = {}
    for name, rows in data.validation.items():
        split = _tokenized(spec, backbone, rows, data)
        note = data.validation_notes.get(name, "")
        own = data.task.name not in TASKS
        metrics[name] = score_split(model, data.task, split, note, labels=own)
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
        processes=distributed.count(),
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
        custom = CustomTask(
            tuple(columns), config.label_column or "", config.name or "", config.kind
        )
        if config.train_file is not None:
            data = load_files(config.train_file, config.validation_file, custom)
        else:
            splits = config.train_split_name, config.validation_split
            data = load_data_set(config.dataset or "", splits, custom)
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
    software = f"torch {versions()['torch']} in {distributed.count()}"
    key = hashlib.sha256(f"{options} {sources} {software}".encode()).hexdigest()[:12]
    state = state_path(path, key)
    if not config.resume and distributed.is_first():
        state.unlink(missing_ok=True)
    return state


if __name__ == "__main__":
    sys.exit(main())
