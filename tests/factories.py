"""Made-up tasks, deltas and rows that many tests need, each with any field changed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import (
    Backbone,
    Delta,
    DenseEntry,
    Entry,
    Manifest,
    SparseEntry,
    SplitMetrics,
    StrategySpec,
    TaskSpec,
    TokenizedRow,
    TrainingFacts,
)
from deltas.store.predictions import predictions_path
from frontend.models import BenchmarkRow, RunHistory, read_answer
from training.data.rows import Rows
from training.run.output import PredictedSplit, write_predictions
from training.strategies import grammar


def _task(name: str, kind: str, labels: tuple[str, ...], *fields: str, length: int) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": name, "kind": kind, "labels": labels, "text_fields": fields, "max_length": length}
    )


# One task of each kind and head size, by name.
TOY_TASKS = {
    task.name: task
    for task in (
        _task("toy2", "single_label", ("bad", "good"), "sentence", length=32),
        _task("toy3", "single_label", ("yes", "maybe", "no"), "premise", "hypothesis", length=40),
        _task("toyreg", "regression", (), "first", "second", length=40),
        _task("toymulti", "multi_label", ("a", "b", "c", "d"), "text", length=24),
        _task(
            "toy68",
            "single_label",
            tuple(f"label {n}" for n in range(68)),
            "utterance",
            length=16,
        ),
    )
}
# Tasks whose rows are read in all other ways.
POOLED_TASKS = {
    task.name: task
    for task in (
        TOY_TASKS[of].model_copy(update={"name": name, "pooling": pooling, "pairs": pairs})
        for of, name, pooling, pairs in (
            ("toy2", "toymean", "mean", "joint"),
            ("toy3", "toypairmean", "mean", "joint"),
            ("toy3", "toysplit", "cls", "separate"),
            ("toyreg", "toysplitmean", "mean", "separate"),
            ("toymulti", "toylayers", "layers", "joint"),
            ("toy3", "toypairlayers", "layers", "joint"),
        )
    )
}
TOY_STRATEGIES = ("bitfit", "layernorm", "random:0.05", "head", "top:1")


def training_facts(**changes: Any) -> TrainingFacts:
    """Return the facts of a short training run, with these fields changed."""
    facts: dict[str, Any] = {
        "data": "files",
        "data_digest": "0" * 64,
        "train_rows": 100,
        "selection_rows": 10,
        "epochs": 1.0,
        "steps": 4,
        "batch_size": 32,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "seed": 0,
        "duration_s": 1.0,
        "device": "cpu",
        "versions": {"torch": torch.__version__},
        "command": "python -m training.fit",
    }
    return TrainingFacts.model_validate(facts | changes)


def make_delta(
    backbone: Backbone, task: TaskSpec, strategy: str, seed: int = 0, **changes: object
) -> Delta:
    """Return a delta with random values where the strategy trains.

    Args:
        backbone: the backbone that the delta lies over.
        task: the task of the delta's head.
        strategy: the strategy that selects the trained values.
        seed: the seed of the values.
        **changes: fields of the manifest that differ from the usual ones.
    """
    generator = torch.Generator().manual_seed(seed * 7919 + sum(map(ord, task.name + strategy)))
    shapes = {name: tuple(value.shape) for name, value in backbone.parameters.items()}
    entries: dict[str, Entry] = {}
    for name, indices in grammar.select(strategy, shapes, seed).items():
        value = backbone.parameters[name]
        if indices is None:
            entries[name] = DenseEntry(value + 0.1 * torch.randn(value.shape, generator=generator))
        else:
            noise = 0.3 * torch.randn(len(indices), generator=generator)
            entries[name] = SparseEntry(
                indices, value.reshape(-1)[indices] + noise, tuple(value.shape)
            )
    width = task.head_width(backbone.config)
    weight = 0.3 * torch.randn(task.num_outputs, width, generator=generator)
    bias = torch.randn(task.num_outputs, generator=generator)
    described = tuple(entry.info(name) for name, entry in entries.items())
    in_head = weight.numel() + bias.numel()
    metric = "pearson" if task.kind == "regression" else "accuracy"
    facts: dict[str, object] = {
        "backbone": backbone.ref,
        "task": task,
        "strategy": StrategySpec(name=grammar.canonical(strategy), seed=seed),
        "entries": described,
        "trainable_parameters": sum(info.count for info in described) + in_head,
        "total_parameters": sum(map(prod, shapes.values())) + in_head,
        "training": training_facts(seed=seed),
        "primary_metric": metric,
        "metrics": {
            "selection": SplitMetrics(rows=10, values={metric: 0.5}),
            "validation": SplitMetrics(rows=20, values={metric: 0.25}),
        },
    }
    manifest = Manifest.model_validate(facts | changes)
    return Delta(manifest, entries, weight, bias)


def stock_network(backbone: Backbone, delta: Delta, **options: Any) -> Any:
    """Return transformers' BertForSequenceClassification with the delta's values copied in.

    Args:
        backbone: the backbone that the delta lies over.
        delta: the delta, whose head becomes the classifier, unless it reads two vectors.
        **options: more fields of `BertConfig`.
    """
    from transformers import BertConfig, BertForSequenceClassification

    sizes = backbone.config
    config = BertConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        intermediate_size=sizes.intermediate_size,
        max_position_embeddings=sizes.max_positions,
        num_labels=delta.manifest.task.num_outputs,  # type: ignore[call-arg]
        **options,
    )
    network = BertForSequenceClassification(config).eval()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in backbone.parameters.items():
            entry = delta.entries.get(name)
            parameters[name].copy_(value if entry is None else entry.resolve(value))
        if delta.head_weight.shape[1] == sizes.hidden_size:
            network.classifier.weight.copy_(delta.head_weight)
            network.classifier.bias.copy_(delta.head_bias)
    return network


def stock_logits(backbone: Backbone, delta: Delta, rows: Sequence[TokenizedRow]) -> Tensor:
    """Return the logits of transformers' BertModel with the delta's values copied in.

    Each row runs alone. Its sequences are padded to one length, and pooled as sentence-transformers
    does, under the attention mask.
    """
    network, task, logits = stock_network(backbone, delta), delta.manifest.task, []
    for row in rows:
        longest = max(len(ids) for ids, _ in row.sequences)
        padded = [
            [[*values, *[0] * (longest - len(values))] for values in (ids, types, [1] * len(ids))]
            for ids, types in row.sequences
        ]
        ids, types, mask = torch.tensor(padded).unbind(1)
        with torch.no_grad():
            out = network.bert(
                input_ids=ids,
                token_type_ids=types,
                attention_mask=mask,
                output_hidden_states=True,
            )
            vectors = out.pooler_output
            if task.pooling != "cls":
                weights = mask.unsqueeze(-1).float()
                layers = out.hidden_states if task.pooling == "layers" else [out.last_hidden_state]
                vectors = torch.cat([(x * weights).sum(1) / weights.sum(1) for x in layers], 1)
            if task.pairs == "separate":
                u, v = F.normalize(vectors, dim=-1)
                vectors = torch.cat([u, v, (u - v).abs(), u * v]).unsqueeze(0)
            logits.append(F.linear(vectors[0], delta.head_weight, delta.head_bias))
    return torch.stack(logits)


def benchmark_row(**changes: Any) -> BenchmarkRow:
    """Return a row of the page's benchmark, with these fields changed."""
    row: dict[str, Any] = {
        "task": "cola",
        "strategy": "bitfit",
        "version": "0123456789abcdef",
        "metric": "matthews",
        "value": 0.5,
        "split": "validation",
        "split_rows": 10,
        "split_note": "",
        "metrics": {},
        "size_bytes": 102_400,
        "trainable_parameters": 10,
        "trained_share": 0.0022,
        "train_rows": 100,
        "train_note": "",
        "learning_rate": 0.001,
        "epochs": 3.0,
        "seed": 0,
        "data": "folder",
    }
    return BenchmarkRow(**(row | changes))


# As JSON in a manifest: two thirds of the rows have a probability of about 0.9.
RELIABILITY: dict[str, Any] = {
    "error": 0.041,
    "error_before": 0.125,
    "counts": (0, 200, 600, 1200),
    "probability": (0.0, 0.4, 0.62, 0.9),
    "share": (0.0, 0.5, 0.6, 0.87),
}
RUN_HISTORY: dict[str, Any] = {
    "train": {
        "step": (100, 200, 300, 400),
        "loss": (0.7, 0.5, 0.4, 0.3),
        "learning_rate": (0.001, 0.0007, 0.0004, 0.00001),
    },
    "selection": {"step": (0, 200, 400), "loss": (0.7, 0.5, 0.6), "metric": (0.1, 0.5, 0.4)},
}


def benchmark_history(**selection: Any) -> RunHistory:
    """Return the page's history of a run, with these columns of the selection rows changed."""
    changed = RUN_HISTORY["selection"] | selection
    return read_answer(RunHistory, RUN_HISTORY | {"selection": changed})


def write_some_predictions(delta: Delta, path: Path, rows: int = 6) -> None:
    """Write predictions of made-up validation rows beside a delta, as its run would."""
    spec = delta.manifest.task
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, spec.num_outputs, generator=generator)
    truth = logits + torch.randn(logits.shape, generator=generator)  # not always the decision
    gold: list[Any] = truth.argmax(1).tolist()
    if spec.kind == "multi_label":
        gold = (truth > 0).int().tolist()
    elif spec.kind == "regression":
        gold = truth[:, 0].tolist()
    split = PredictedSplit("validation", Rows([("",)] * rows, gold), logits)
    write_predictions(predictions_path(path), [split], delta.version)
