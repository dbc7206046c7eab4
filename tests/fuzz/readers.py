"""Names the readers under test, with the seeds, the mutation and the promises of each."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from deltas import (
    Backbone,
    DeltaFormatError,
    Store,
    load_backbone,
    read_delta,
    read_manifest,
    write_delta,
)
from deltas.errors import BackboneError, DeltaError
from deltas.publish.card import describe, in_columns, render_card
from tests import factories
from tests.fuzz.limits import Reader
from tests.fuzz.mutation import (
    Mutation,
    mutate_bytes,
    mutate_delta,
    mutate_json,
    mutate_rows,
    mutate_safetensors,
)
from tests.fuzz.tables import make_table, mutate_table, plain_table, write_table
from tests.fuzz.tiny import tiny_folder
from training.data.custom import CustomTask, load_files
from training.data.rows import Rows
from training.errors import ConfigError, DataError, TrainingError
from training.run.output import PredictedSplit, read_predictions, write_predictions
from training.study.plan import plan, read_study

BACKBONE_FILES = (
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "model.safetensors",
)
_LABELS = ("bad", "good")


def read_a_delta(path: Path) -> str:
    """Read a delta, write it again, and show it in every way in which commands do."""
    store = Store([path.parent])
    assert len(store.records) + len(store.rejected) == 1
    try:
        manifest, version = read_manifest(path)
    except DeltaFormatError:
        with pytest.raises(DeltaFormatError):
            read_delta(path)
        raise
    delta = read_delta(path)
    assert (delta.manifest, delta.version) == (manifest, version)
    assert len(store.records) == 1
    for tensor in (delta.head_weight, delta.head_bias, *(e.values for e in delta.entries.values())):
        assert bool(torch.isfinite(tensor).all())
    written = write_delta(delta, path.parent / "again" / path.name)
    again = read_delta(path.parent / "again" / path.name)
    shutil.rmtree(path.parent / "again")
    assert again.manifest == manifest
    assert again.version == written.version
    shown = in_columns(describe(manifest)) + render_card(path) + manifest.model_dump_json(indent=2)
    json.loads(manifest.model_dump_json(), parse_constant=_no_constant)
    shown.encode()
    return f"{version} {shown}"


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def read_a_backbone(path: Path) -> str:
    """Load the folder that the file lies in."""
    folder = path.parent if path.parent.name != "1_Pooling" else path.parent.parent
    backbone = load_backbone(str(folder))
    assert all(bool(torch.isfinite(value).all()) for value in backbone.parameters.values())
    assert backbone.config.vocab_size >= len(backbone.tokenizer)
    return repr((backbone.ref, backbone.config, backbone.pooling))


def read_rows(kind: str | None) -> Callable[[Path], str]:
    """Return a function that makes a custom task of a file."""

    def read(path: Path) -> str:
        found = []
        for asked in (kind, "multi_label"):
            try:
                data = load_files(path, None, CustomTask(("text",), "label", "fuzz", asked))
            except (DataError, ConfigError) as error:
                if asked == kind:
                    raise
                found.append(str(error))
                continue
            for rows in (data.train, *data.validation.values()):
                assert len(rows.texts) == len(rows.labels)
                assert all(isinstance(text, str) and text.strip() for (text,) in rows.texts)
                _check_labels(data.task.kind, len(data.task.labels), rows.labels)
            found.append(f"{data.digest} {data.task} {data.reading_notes} {data.warnings}")
        return repr(found)

    return read


def _check_labels(kind: str, count: int, labels: list[Any]) -> None:
    for label in labels:
        if kind == "regression":
            assert math.isfinite(label)
        elif kind == "single_label":
            assert 0 <= label < count
        else:
            assert len(label) == count
            assert set(label) <= {0, 1}


def read_some_predictions(path: Path) -> str:
    rows, gold, logits = read_predictions(path, "dev")
    assert len(rows) == len(gold) == len(logits)
    assert logits.dtype == torch.float32
    return repr((rows, gold, logits.tolist()))


def read_a_study(path: Path) -> str:
    """Read a study's file and plan its runs; errors of the plan name its part, not the file."""
    study = read_study(path)
    try:
        return repr(plan(study))
    except TrainingError as error:
        return f"no plan: {error}"


@cache
def _folder() -> Path:
    """Return a folder with a tiny backbone, which no reader changes."""
    return tiny_folder(Path(tempfile.mkdtemp(prefix="deltabert-fuzz-")))


@cache
def _backbone() -> Backbone:
    return load_backbone(str(_folder()))


def _delta_seeds() -> list[bytes]:
    seeds = []
    for task, strategy in (("toy2", "head"), ("toymulti", "layernorm"), ("toyreg", "random:0.01")):
        delta = factories.make_delta(_backbone(), factories.TOY_TASKS[task], strategy)
        path = _folder().parent / "seed.safetensors"
        write_delta(delta, path)
        seeds.append(path.read_bytes())
    return seeds


def _backbone_seeds(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(_folder() / name).read_bytes()]


def _prediction_seeds() -> list[bytes]:
    seeds, path = [], _folder().parent / "seed.predictions.parquet"
    labels: list[Any]
    for labels, width in (([0, 1], 2), ([0.5, 1.5], 1), ([[0, 1], [1, 1]], 2)):
        rows = Rows([("a",), ("b",)], labels)
        write_predictions(path, [PredictedSplit("dev", rows, torch.zeros(2, width))])
        seeds.append(path.read_bytes())
    return seeds


def _text_seeds(rows: list[tuple[str, str]], form: str) -> bytes:
    if form == "jsonl":
        return "".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows).encode()
    if form == "json":
        return json.dumps([{"text": a, "label": b} for a, b in rows], indent=1).encode()
    return "".join(form.join(row) + "\n" for row in (("text", "label"), *rows)).encode()


def _row_seeds(form: str) -> Callable[[], list[bytes]]:
    names = [(f"text {number}", _LABELS[number % 2]) for number in range(8)]
    values = [(f"text {number}", str(number / 2)) for number in range(12)]
    lists = [(f"text {number}", "a|b" if number % 3 else "") for number in range(6)]
    quoted = [(f'"a ""b"" {number}"', "x") for number in range(5)]
    return lambda: [_text_seeds(rows, form) for rows in (names, values, lists, quoted)]


def _table_seeds(suffix: str) -> Callable[[], list[bytes]]:
    tables = [plain_table(), *(make_table(Random(seed)) for seed in range(2, 6))]
    return lambda: [write_table(table, suffix) for table in tables]


_STUDY = b"""[options]
epochs = 1
[tasks.cola]
train_rows = 100
[rates]
bitfit = [1e-3, 2e-3]
[[part]]
name = "main"
tasks = ["cola", "rte"]
freeze = ["bitfit", "random:0.1"]
seeds = 3
rate_seeds = 2
[[part]]
name = "more"
tasks = ["cola"]
freeze = ["head"]
train_rows = [0, 50]
rates_from = "main"
rates_of = "bitfit"
[part.tasks_options.cola]
lr = 0.1
"""
_TOML_TOKENS = (
    "[",
    "]",
    "[[part]]",
    "=",
    "'",
    '"',
    "inf",
    "nan",
    "1e9",
    "1000000000",
    "{",
    "seeds =",
)
_CSV_TOKENS = (
    ",",
    '"',
    '""',
    "\n",
    "\r",
    "\r\n",
    "\t",
    ";",
    "sep=;\n",
    '"\n',
    "text",
    "label",
    "'",
)
_JSON_TOKENS = (
    "{",
    "}",
    "[",
    "]",
    '"',
    "\n",
    ":",
    ",",
    "null",
    "NaN",
    "1e999",
    "[" * 2000,
    '"text":',
)
_ROWS_ERRORS = (DataError, ConfigError)


def _readers() -> list[Reader]:
    """Return every reader; the heading of each is its name on the command line."""
    found = [
        Reader("delta", "x.safetensors", _delta_seeds, mutate_delta, read_a_delta, (DeltaError,)),
        Reader(
            "predictions",
            "x.predictions.parquet",
            _prediction_seeds,
            mutate_bytes,
            read_some_predictions,
            _ROWS_ERRORS,
        ),
        Reader(
            "study",
            "study.toml",
            lambda: [_STUDY],
            mutate_rows(_TOML_TOKENS),
            read_a_study,
            (TrainingError,),
        ),
    ]
    for name in BACKBONE_FILES:
        mutate: Mutation = mutate_safetensors if name.endswith(".safetensors") else mutate_json
        mutate = mutate_rows(("[CLS]", "\n", "[SEP]\n")) if name.endswith(".txt") else mutate
        title, file = f"backbone-{name.replace('/', '-')}", f"tiny-bert/{name}"
        found.append(
            Reader(title, file, _backbone_seeds(name), mutate, read_a_backbone, (BackboneError,))
        )
    for suffix, form, tokens in (
        ("csv", ",", _CSV_TOKENS),
        ("tsv", "\t", _CSV_TOKENS),
        ("txt", "|", _CSV_TOKENS),
        ("jsonl", "jsonl", _JSON_TOKENS),
        ("json", "json", _JSON_TOKENS),
    ):
        found.append(
            Reader(
                suffix,
                f"rows.{suffix}",
                _row_seeds(form),
                mutate_rows(tokens),
                read_rows(None),
                _ROWS_ERRORS,
            )
        )
    for suffix in ("parquet", "arrow", "feather"):
        table, change = _table_seeds(f".{suffix}"), mutate_table(f".{suffix}")
        found.append(Reader(suffix, f"rows.{suffix}", table, change, read_rows(None), _ROWS_ERRORS))
    return found


READERS = {reader.name: reader for reader in _readers()}


def prepare(reader: Reader, folder: Path) -> None:
    """Put the other files of a backbone beside the one that changes."""
    if reader.name.startswith("backbone-"):
        shutil.copytree(_folder(), folder / "tiny-bert", dirs_exist_ok=True)
