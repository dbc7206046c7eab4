"""A submission to GLUE's leaderboard: `python -m training.submit --deltas DIR --out FILE.zip`.

Predicts the test sets with the deltas and writes the zip with the leaderboard's file names, headers
and label strings; then reads the zip back and checks it. The test sets are `test*.parquet` files
below `<task>/` in $GLUE_DIR or --data, as in `nyu-mll/glue`. The delta of MNLI also answers the
diagnostic set (AX). The predictions are made by `training.run.evaluation`.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import deltas
from deltas.errors import home_or_name, home_path
from training.data.files.reader import read_columns
from training.data.tasks import find_task
from training.errors import ConfigError, DataError, listing, run_command

if TYPE_CHECKING:
    from deltas import Backbone, Record, Store

_CODES = {"cola", "sst2", "mrpc", "qqp", "wnli"}  # the leaderboard wants 0 and 1 for these


@dataclass(frozen=True)
class LeaderboardFile:
    """One file of a submission, the task whose delta answers, and the published test set."""

    file: str
    task: str
    folder: str
    split: str
    rows: int


TEST_SETS = (
    LeaderboardFile("CoLA.tsv", "cola", "cola", "test", 1063),
    LeaderboardFile("SST-2.tsv", "sst2", "sst2", "test", 1821),
    LeaderboardFile("MRPC.tsv", "mrpc", "mrpc", "test", 1725),
    LeaderboardFile("STS-B.tsv", "stsb", "stsb", "test", 1379),
    LeaderboardFile("QQP.tsv", "qqp", "qqp", "test", 390_965),
    LeaderboardFile("MNLI-m.tsv", "mnli", "mnli", "test_matched", 9796),
    LeaderboardFile("MNLI-mm.tsv", "mnli", "mnli", "test_mismatched", 9847),
    LeaderboardFile("QNLI.tsv", "qnli", "qnli", "test", 5463),
    LeaderboardFile("RTE.tsv", "rte", "rte", "test", 3000),
    LeaderboardFile("WNLI.tsv", "wnli", "wnli", "test", 146),
    LeaderboardFile("AX.tsv", "mnli", "ax", "test", 1104),
)
_HEADER = "index\tprediction"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.submit") -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    return run_command(lambda: _submit(arguments, prog))


def _submit(arguments: Sequence[str] | None, prog: str) -> int:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a submission to GLUE's leaderboard.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--deltas",
        type=home_path,
        required=True,
        help="folder of <backbone>/<task>/<strategy> files",
    )
    add("--out", type=home_path, required=True, help="zip to write")
    add("--data", type=home_path, help="folder of <task>/test*.parquet (default: $GLUE_DIR)")
    add("--strategy", help="use this strategy's deltas (default: the best on the selection rows)")
    add(
        "--backbone",
        type=home_or_name,
        help="hub id or folder of a BERT (default: packaged MiniLM)",
    )
    add("--partial", action="store_true", help="write the zip even if files are missing in it")
    options = parser.parse_args(arguments)
    missing = submit(options)
    sys.stdout.write(f"{options.out}\n")
    sys.stderr.write("".join(f"missing: {problem}\n" for problem in missing))
    return 0


def submit(options: argparse.Namespace) -> list[str]:
    """Write and check the zip; returns a line with instructions for each missing file.

    Raises:
        ConfigError: a file is missing and --partial was not given.
        DataError: an unusable test set.
    """
    if not (source := options.data or os.environ.get("GLUE_DIR")):
        raise ConfigError("no test sets: set GLUE_DIR, or give --data, a folder of <task>/test*")
    folder = Path(source)
    backbone = deltas.load_backbone(options.backbone)
    store = deltas.Store([options.deltas], backbone=backbone.ref)
    found, missing = [], []
    for test_set in TEST_SETS:
        record = _best_record(store, test_set.task, options.strategy)
        path = folder / test_set.folder / f"{test_set.split}.parquet"
        numbered = path.with_stem(f"{path.stem}-00000-of-00001")  # as the hub stores a test set
        path = numbered if numbered.is_file() else path
        if record is None:
            missing.append(
                f"{test_set.file}: no delta of {test_set.task} below {options.deltas}; train one: "
                f"python -m training.fit --task {test_set.task} --out {options.deltas}"
            )
        elif not path.is_file():
            missing.append(
                f"{test_set.file}: no {path}; get {test_set.split} of {test_set.folder} from "
                "nyu-mll/glue on the Hugging Face hub"
            )
        else:
            _check_labels(record)
            found.append((test_set, record, _read_texts(test_set, path)))
    if not found or (missing and not options.partial):
        raise ConfigError(
            "files of the submission are missing (--partial writes it without them):\n  "
            + "\n  ".join(missing)
        )

    files = {test_set.file: _answers(backbone, record, texts) for test_set, record, texts in found}
    write_zip(options.out, files)
    check_zip(options.out, {test_set.file: len(texts) for test_set, _, texts in found})
    return missing


def _answers(backbone: Backbone, record: Record, texts: list[tuple[str, ...]]) -> list[str]:
    """Return a delta's predictions in the leaderboard's format."""
    from training.run.evaluation import decisions, predict
    from training.run.task_model import TaskModel, finished_model

    delta, spec, device = record.load(), record.manifest.task, deltas.pick_device()
    dtype = deltas.DTYPES[deltas.pick_precision("auto", device)]
    head = delta.head_weight, delta.head_bias
    model = TaskModel(
        backbone, dict(delta.entries), head, device, dtype, pooling=spec.pooling, pairs=spec.pairs
    )
    rows = deltas.tokenize_texts(backbone.tokenizer, spec.max_length, texts, pairs=spec.pairs)
    logits = predict(finished_model(model, backbone, delta.entries, spec), rows).numpy()
    return answer_strings(spec.name, decisions(spec.kind, logits).tolist())


def _best_record(store: Store, task: str, strategy: str | None) -> Record | None:
    """Return the delta of the strategy, or the best delta on its selection rows."""
    found = [
        record
        for record in store.records
        if record.manifest.task.name == task
        and strategy in (None, record.manifest.strategy.served_as)
    ]
    # The task's own metric: a delta trained with class weights has another primary metric.
    metric = find_task(task).primary_metric

    def selection_score(record: Record) -> float:
        part = record.manifest.metrics.get("selection")
        return part.values.get(metric, -math.inf) if part else -math.inf

    return max(found, key=selection_score, default=None)


def _check_labels(record: Record) -> None:
    """Refuse a delta that shares only the name of a GLUE task: its codes mean other labels."""
    found, task = record.manifest.task, find_task(record.manifest.task.name)
    for what, theirs, ours in (
        ("kind", (found.kind,), (task.kind,)),
        ("text fields", found.text_fields, task.text_fields),
        ("labels", found.labels, task.labels),
    ):
        if theirs != ours:
            raise DataError(
                f"{what} {listing(theirs)} instead of GLUE's {listing(ours)}; train one with "
                f"--task {task.name}, or take this file out of --deltas",
                path=record.path,
            )


def _read_texts(test_set: LeaderboardFile, path: Path) -> list[tuple[str, ...]]:
    """Read the test rows in the order of their index."""
    fields = find_task(test_set.task).text_fields
    columns = read_columns(path, (*fields, "idx"))
    if columns.num_rows != test_set.rows:
        raise DataError(
            f"{columns.num_rows:,} rows; the leaderboard wants the {test_set.rows:,} of the "
            "published test set",
            path=path,
        )
    index = columns.values["idx"]
    if set(index) != set(range(len(index))):
        raise DataError("not 0, 1, 2, ... each once", path=path, column="idx")
    rows = zip(*(columns.values[field] for field in fields), strict=True)
    texts = [row for _, row in sorted(zip(index, rows, strict=True), key=itemgetter(0))]
    for number, row in enumerate(texts, start=1):
        if not all(isinstance(text, str) for text in row):
            raise DataError("null instead of a text", path=path, row=number)
    return texts


def answer_strings(task: str, predictions: Sequence[float]) -> list[str]:
    """Write predictions as the leaderboard does: 0 and 1, label names, or a value from 0 to 5."""
    labels = find_task(task).labels
    if not labels:
        return [f"{min(5.0, max(0.0, value)):.3f}" for value in predictions]
    if task in _CODES:
        return [str(int(code)) for code in predictions]
    return [labels[int(code)] for code in predictions]


def write_zip(path: Path, files: dict[str, list[str]]) -> None:
    """Write a zip of tab-separated files; equal answers give an equal zip."""
    from deltas.format import write_atomically

    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, answers in files.items():
            lines = [_HEADER, *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
            archive.writestr(zipfile.ZipInfo(name), "\n".join(lines) + "\n")
    write_atomically(path, content.getvalue())


def check_zip(path: Path, rows: dict[str, int]) -> None:
    """Check a submission's file names, headers, numbers of rows, indices and answers.

    Raises:
        DataError: the first thing that the leaderboard would refuse.
    """
    by_file = {test_set.file: test_set for test_set in TEST_SETS}
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if sorted(names) != sorted(rows):
            raise DataError(f"has the files {listing(names)} instead of {listing(rows)}", path=path)
        for name in names:
            header, *lines = archive.read(name).decode().splitlines()
            if header != _HEADER:
                raise DataError(f"{name}: header {header!r} instead of {_HEADER!r}", path=path)
            if len(lines) != rows[name]:
                raise DataError(f"{name}: {len(lines):,} rows, not {rows[name]:,}", path=path)
            answers = _answer_pattern(by_file[name].task)
            for number, line in enumerate(lines):
                index, _, answer = line.partition("\t")
                if index != str(number) or not re.fullmatch(answers, answer):
                    raise DataError(f"{name}: {line!r}", path=path, row=number + 1)


def _answer_pattern(task: str) -> str:
    if task in _CODES:
        return "[01]"
    return "|".join(find_task(task).labels) or r"[0-4](\.\d+)?|5(\.0+)?"


if __name__ == "__main__":
    sys.exit(main())
