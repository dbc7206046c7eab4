"""The encoder, alone and mixed, against stock transformers with the values copied in.

These are the product's central promises (design: "Equality that tests must hold"): 1e-5 in float32,
equal labels.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.engine import Engine, EngineRow
from deltas import (
    Backbone,
    Record,
    Store,
    TaskSpec,
    TrainableOverlay,
    encode,
    pack,
    tokenize_rows,
)
from deltas.backbone.backbone import weights_fingerprint
from deltas.backbone.tokenizer import row_texts
from deltas.encoder.encoder import pair_features
from deltas.encoder.window_attention import WindowAttention
from tests.factories import POOLED_TASKS, TOY_TASKS, stock_logits

TASKS = TOY_TASKS | POOLED_TASKS
STRATEGIES = [
    "full", "head", "bitfit", "bitfit:intermediate,query", "layernorm", "random:0.001",
    "random:0.05", "top:1", "top:2", "attention", "ffn",
    "params:layer.0.attention.self.key", "random:0.05+layernorm",
    "random:0.1+params:query.weight", "bitfit+top:1",
]  # fmt: skip
TEXTS = [
    "a good film",
    "",
    "not very good, the acting bad. 3 of 10!",
    "b" * 90,
    "the",
    "and the " * 30,
    "good",
]


def rows_for(task: TaskSpec) -> list[dict[str, str]]:
    """Rows of many lengths, some equal, in no order."""
    draw = random.Random(task.name)
    return [{field: draw.choice(TEXTS) for field in task.text_fields} for _ in range(11)]


def tokenized(engine: Engine, record: Record, row: dict[str, str]) -> EngineRow:
    """One row for the engine."""
    (made,) = engine.tokenize(record, [row_texts(record.manifest.task, row, 0)])
    return made


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["toy3", "toypairmean", "toysplit", "toysplitmean", "toylayers"])
def test_single_overlay_equals_stock_transformers(
    tiny_backbone: Backbone, make_delta: Any, strategy: str, name: str
) -> None:
    task = TASKS[name]
    delta = make_delta(tiny_backbone, task, strategy)
    rows = tokenize_rows(tiny_backbone.tokenizer, task, rows_for(task))
    sequences = [sequence for row in rows for sequence in row.sequences]
    every_layer = task.pooling == "layers"
    batch = pack(sequences, mean=task.pooling != "cls", every_layer=every_layer)
    overlay = TrainableOverlay(tiny_backbone, delta.entries)
    with torch.no_grad():
        pooled = encode(tiny_backbone.config, overlay, batch, WindowAttention(batch))
        vectors = pair_features(pooled) if task.pairs == "separate" else pooled
    logits = torch.nn.functional.linear(vectors, delta.head_weight, delta.head_bias)
    torch.testing.assert_close(logits, stock_logits(tiny_backbone, delta, rows), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def mixed_store(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Backbone, make_delta: Any
) -> Store:
    """Every toy task with every strategy above."""
    from deltas import delta_path, write_delta

    root = tmp_path_factory.mktemp("mixed")
    for task in TASKS.values():
        for strategy in STRATEGIES:
            delta = make_delta(tiny_backbone, task, strategy)
            write_delta(delta, delta_path(root, "tiny", task.name, delta.manifest.strategy.name))
    return Store([root], backbone=tiny_backbone.ref)


@pytest.fixture(scope="module")
def engine(tiny_backbone: Backbone, mixed_store: Store) -> Engine:
    """One engine for all batches, as a server has: to load its deltas takes most of the time."""
    return Engine(tiny_backbone, mixed_store, precision="fp32")


@pytest.mark.parametrize("popularity", ["uniform", "one", "skewed"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 32, 96])
def test_mixed_batch_equals_stock_transformers(
    tiny_backbone: Backbone, mixed_store: Store, engine: Engine, popularity: str, size: int
) -> None:
    """Rows of all tasks, strategies and kinds in one forward pass, each as if it ran alone."""
    draw = random.Random(f"{popularity} {size}")
    records = list(mixed_store.records)
    weights = {
        "uniform": [1.0] * len(records),
        "one": [1.0] + [0.0] * (len(records) - 1),
        "skewed": [1.0 / (rank + 1) ** 2 for rank in range(len(records))],
    }[popularity]
    draw.shuffle(records)
    chosen = draw.choices(records, weights, k=size)
    rows = [
        tokenized(engine, record, draw.choice(rows_for(record.manifest.task))) for record in chosen
    ]
    for record, row, logits in zip(chosen, rows, engine.predict(rows), strict=True):
        expected = stock_logits(tiny_backbone, record.load(), [row.tokens])[0]
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-5, rtol=0)
        if record.manifest.task.kind == "single_label":
            assert int(torch.tensor(logits).argmax()) == int(expected.argmax())
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


@pytest.mark.parametrize("name", ["toy3", "toypairmean", "toysplit"])
def test_batch_neighbours_do_not_matter(mixed_store: Store, engine: Engine, name: str) -> None:
    draw = random.Random(5)
    record: Record = mixed_store.resolve(name, "random:0.05")
    mine = tokenized(engine, record, {"premise": "the film", "hypothesis": "not good"})
    alone = torch.tensor(engine.predict([mine])[0])
    for size in (2, 8, 40):
        others = [draw.choice(mixed_store.records) for _ in range(size)]
        rows = [
            tokenized(engine, other, draw.choice(rows_for(other.manifest.task))) for other in others
        ]
        place = draw.randrange(size)
        rows[place] = mine
        torch.testing.assert_close(
            torch.tensor(engine.predict(rows)[place]), alone, atol=1e-5, rtol=0
        )


def test_store_on_disk_is_what_was_trained(mixed_store: Store, tmp_path: Path) -> None:
    """Reading a delta gives bit-equal values to those written."""
    from deltas import read_delta, write_delta

    for record in mixed_store.records[:5]:
        delta = record.load()
        again = (
            read_delta(tmp_path / "again.safetensors")
            if write_delta(delta, tmp_path / "again.safetensors")
            else delta
        )
        assert again.version == delta.version
        for name, entry in delta.entries.items():
            assert torch.equal(again.entries[name].values, entry.values)
