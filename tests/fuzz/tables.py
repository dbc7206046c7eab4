"""Makes tables with columns of any type that Arrow knows, as parquet, Arrow or Feather files."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from io import BytesIO
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from tests.fuzz.mutation import Mutation, mutate_bytes, mutate_value

_TEXTS = ("a film", "good", "", " ", "a\nb", "\u202eb", "\0", "x" * 3000, "1", "NaN", "a|b", "[]")
_DAY = datetime.date(2026, 11, 30)
_FEATURES = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}


def _columns(rng: Random, size: int) -> list[Any]:
    """Return a column of some type with values that are unlikely in rows of texts and labels."""
    texts = [rng.choice(_TEXTS) for _ in range(size)]
    numbers = [rng.choice((0, 1, -1, 2, 2**31, 2**62)) for _ in range(size)]
    floats = [rng.choice((0.0, 1.0, float("nan"), float("inf"), -0.0)) for _ in range(size)]
    made = (
        lambda: pa.array(texts),
        lambda: pa.array(texts, pa.large_string()),
        lambda: pa.array(texts, pa.string_view()),
        lambda: pa.array([text.encode() + b"\xff" for text in texts]),
        lambda: pa.array(texts).dictionary_encode(),
        lambda: pa.array(numbers),
        lambda: pa.array([number % 2 for number in numbers], pa.int8()),
        lambda: pa.array(floats),
        lambda: pa.array([Decimal(number) / 4 for number in numbers], pa.decimal128(38, 4)),
        lambda: pa.array([number > 0 for number in numbers]),
        lambda: pa.array([[text, "b"] for text in texts]),
        lambda: pa.array([[number % 2, 1] for number in numbers]),
        lambda: pa.array(([[1.0], None, [], [float("nan")]] * size)[:size]),
        lambda: pa.array([{"a": text} for text in texts]),
        lambda: pa.array([[(text, 1)] for text in texts], pa.map_(pa.string(), pa.int64())),
        lambda: pa.array([_DAY] * size),
        lambda: pa.array(numbers, pa.timestamp("ns", "Europe/Paris")),
        lambda: pa.array([2**62] * size, pa.timestamp("s")),
        lambda: pa.array(numbers, pa.duration("us")),
        lambda: pa.array([number % 1000 for number in numbers], pa.time64("ns")),
        lambda: pa.nulls(size),
        lambda: pa.array(
            [None if number else text for text, number in zip(texts, numbers, strict=True)]
        ),
    )
    return [rng.choice(made)()]


def plain_table() -> pa.Table:
    """Return a table that every reader of rows takes."""
    labels = ["bad", "good"] * 5
    return pa.table({"text": [f"text {number}" for number in range(10)], "label": labels})


def make_table(rng: Random) -> pa.Table:
    """Return a table with the columns `text` and `label`, and perhaps others."""
    size = rng.choice((0, 1, 2, 5, 12))
    names = ["text", "label"]
    if rng.random() < 0.3:
        names += [
            rng.choice(("text", "TEXT", "te\u200bxt", "", "\n", "other", "__index_level_0__"))
        ]
    arrays = []
    for _ in names:
        plain = pa.array([f"text {n} {rng.choice(_TEXTS)}" for n in range(size)])
        arrays += [plain] if rng.random() < 0.4 else _columns(rng, size)
    table = pa.table(arrays, names=names)
    if rng.random() < 0.4:
        described = mutate_value(_FEATURES, rng)
        table = table.replace_schema_metadata({"huggingface": _ascii(described)})
    return table


def _ascii(value: Any) -> bytes:
    return json.dumps(value).encode()


def write_table(table: pa.Table, suffix: str) -> bytes:
    """Return the bytes of a parquet, Arrow or Feather file."""
    out = BytesIO()
    if suffix == ".parquet":
        pq.write_table(table, out, compression="zstd")
    elif suffix == ".feather":
        pyarrow.feather.write_feather(table, out, compression="zstd")
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def mutate_table(suffix: str) -> Mutation:
    """Return a mutation that changes bytes of a table, or makes another table."""

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.5:
            return mutate_bytes(data, rng)
        try:
            return write_table(make_table(rng), suffix)
        except (pa.ArrowException, TypeError):  # the format lacks a type or repeats a name
            return mutate_bytes(data, rng)

    return mutate
