"""Training over an overlay: right gradients, and nothing as large as a frozen matrix made."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deltas import (
    Backbone,
    Delta,
    DenseEntry,
    Entry,
    SparseEntry,
    TaskSpec,
    TokenizedRow,
    TrainableOverlay,
    encode,
    encoder_layout,
    pack,
    tokenize_rows,
)
from deltas.backbone.backbone import weights_fingerprint
from deltas.encoder.window_attention import WindowAttention
from tests.factories import stock_network
from training.run.task_model import TaskModel, task_loss

STRATEGIES = [
    "full",
    "head",
    "bitfit",
    "bitfit:query,intermediate",
    "layernorm",
    "random:0.001",
    "random:0.05",
    "random:0.5",
    "top:1",
    "top:2",
    "attention",
    "ffn",
    "params:layer.0.attention.self.key",
    "params:embeddings",
    "random:0.1+params:query.weight",
    "random:0.1+params:layer.1.attention.self.value.weight",
    "random:0.05+layernorm",
    "bitfit+top:1",
]
WITHOUT_DENSE_MATRICES = [
    "head",
    "bitfit",
    "bitfit:query,intermediate",
    "layernorm",
    "random:0.001",
    "random:0.05",
    "random:0.05+layernorm",
    "random:0.01+params:bias",
]
# 43 tokens, rows of 7, 9 and 10: no activation has a matrix's size, so sizes tell them apart.
PAIRS = [
    ("the film good", "good"),
    ("not good and bad", "very bad film"),
    ("a b c d", "e f"),
    ("not good", "bad film"),
    ("good good good", "film 3 the the"),
]


@pytest.fixture(scope="module")
def task(toy_tasks: dict[str, TaskSpec]) -> TaskSpec:
    """Pairs with three labels."""
    return toy_tasks["toy3"]


@pytest.fixture(scope="module")
def rows(tiny_backbone: Backbone, task: TaskSpec) -> list[TokenizedRow]:
    """Rows of some lengths, with tokens that occur many times."""
    given = [dict(zip(task.text_fields, pair, strict=True)) for pair in PAIRS]
    tokenized = tokenize_rows(tiny_backbone.tokenizer, task, given)
    assert sum(row.num_tokens for row in tokenized) == 43
    return tokenized


LABELS = torch.tensor([0, 2, 1, 1, 0])


def model_of(backbone: Backbone, delta: Delta, dtype: torch.dtype = torch.float32) -> TaskModel:
    """Return the overlay that training optimises, with a delta's values."""
    entries: dict[str, Entry] = {}
    for name, entry in delta.entries.items():
        values = entry.values.clone()
        sparse = isinstance(entry, SparseEntry)
        entries[name] = (
            SparseEntry(entry.indices, values, entry.shape) if sparse else DenseEntry(values)  # type: ignore[union-attr]
        )
    head = (delta.head_weight.clone(), delta.head_bias.clone())
    return TaskModel(backbone, entries, head, torch.device("cpu"), dtype)


def stock_gradients(
    backbone: Backbone, delta: Delta, rows: list[TokenizedRow]
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of stock transformers, by autograd on whole matrices."""
    network = stock_network(
        backbone,
        delta,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=None,  # else the stock embedding hides that token's gradient
    ).train()
    parameters = dict(network.named_parameters())
    logits = torch.cat(
        [
            network(
                input_ids=torch.tensor([row.input_ids]),
                token_type_ids=torch.tensor([row.token_type_ids]),
            ).logits
            for row in rows
        ]
    )
    loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_equal_those_of_stock_transformers(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any, strategy: str
) -> None:
    delta = make_delta(tiny_backbone, task, strategy)
    model = model_of(tiny_backbone, delta)
    loss = task_loss(task.kind, model.logits(rows), LABELS)
    loss.backward()
    expected_loss, expected = stock_gradients(tiny_backbone, delta, rows)
    assert float(loss.detach()) == pytest.approx(expected_loss, abs=1e-5)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0.1
    for name, value in model.parameters.items():
        entry = model.entries.get(name)
        wanted = expected[name]
        if isinstance(entry, SparseEntry):
            wanted = wanted.reshape(-1)[entry.indices]
        assert value.grad is not None
        # A key's bias has gradient 0 in theory: what it has is the rounding of all others.
        noise = 1.0 if name.endswith("key.bias") else 1e-2
        scale = max(float(expected[name].abs().max()), noise * largest)
        torch.testing.assert_close(value.grad, wanted, atol=1e-5 * scale, rtol=1e-4, msg=name)


def leaves(root: Any) -> Iterator[Tensor]:
    """Every leaf tensor that a loss can send a gradient to."""
    seen, waiting = set(), [root]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [following for following, _ in node.next_functions]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_else_trains(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any, strategy: str
) -> None:
    """Leaves of the graph, gradients and the optimiser's state are the delta, value by value."""
    delta = make_delta(tiny_backbone, task, strategy)
    model = model_of(tiny_backbone, delta)
    parameters = model.parameters
    count = delta.manifest.trainable_parameters
    assert sum(value.numel() for value in parameters.values()) == count
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)
    loss = task_loss(task.kind, model.logits(rows), LABELS)
    assert {id(leaf) for leaf in leaves(loss.grad_fn)} == {id(v) for v in parameters.values()}
    loss.backward()
    optimizer.step()
    assert all(value.requires_grad and value.is_leaf for value in parameters.values())
    gradients = [value.grad for value in parameters.values()]
    assert sum(gradient.numel() for gradient in gradients if gradient is not None) == count
    moments = [
        tensor
        for state in optimizer.state.values()
        for tensor in state.values()
        if tensor.ndim or tensor.numel() > 1
    ]
    assert sum(tensor.numel() for tensor in moments) == 2 * count
    for frozen in (*tiny_backbone.weights.values(), *tiny_backbone.parameters.values()):
        assert not frozen.requires_grad
        assert frozen.grad is None
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


class Recorder(TorchDispatchMode):
    """Remembers the size of every tensor made while it is active, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.made: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        before = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor)
        }
        result = func(*args, **kwargs)
        self.made += [
            (str(func), leaf.numel())
            for leaf in tree_leaves(result)
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in before
        ]
        return result


def matrix_sizes(backbone: Backbone) -> set[int]:
    """Sizes of all matrices, alone and as they are stacked; two rows of token types are too few."""
    tensors = (*backbone.parameters.values(), *backbone.weights.values())
    return {value.numel() for value in tensors if value.ndim == 2 and len(value) > 2}


@pytest.mark.parametrize("strategy", WITHOUT_DENSE_MATRICES)
def test_no_dense_gradient_exists(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any, strategy: str
) -> None:
    """In forward, backward and the optimiser's step nothing is made that could hold one."""
    model = model_of(tiny_backbone, make_delta(tiny_backbone, task, strategy))
    optimizer = torch.optim.AdamW(model.parameters.values(), lr=1e-3)
    forbidden = matrix_sizes(tiny_backbone)
    # So many that no mask and no hidden values are as large as some matrix: one window of 64 tokens
    # has as many values as the table of positions.
    with Recorder() as recorder:
        loss = task_loss(task.kind, model.logits(rows * 3), LABELS.repeat(3))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters.values(), 1.0)
        optimizer.step()
    assert len(recorder.made) > 20
    assert [made for made in recorder.made if made[1] in forbidden] == []


def test_the_recorder_sees_dense_gradients(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any
) -> None:
    """Check that the spy is not blind: a matrix selected whole appears with exactly its size."""
    strategy = "random:0.01+params:layer.0.output.dense.weight"
    model = model_of(tiny_backbone, make_delta(tiny_backbone, task, strategy))
    loss = task_loss(task.kind, model.logits(rows), LABELS)
    with Recorder() as recorder:
        loss.backward()
    sizes = {size for _, size in recorder.made} & matrix_sizes(tiny_backbone)
    assert sizes == {36 * 52}


@pytest.mark.parametrize("strategy", ["random:0.05", "bitfit", "top:1"])
def test_bfloat16_computes_and_float32_learns(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any, strategy: str
) -> None:
    delta = make_delta(tiny_backbone, task, strategy)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model_of(tiny_backbone, delta, dtype)
        task_loss(task.kind, model.logits(rows), LABELS).backward()
        assert {value.dtype for value in model.parameters.values()} == {torch.float32}
        found = [value.grad for value in model.parameters.values()]
        flat = [gradient.reshape(-1) for gradient in found if gradient is not None]
        assert {part.dtype for part in flat} == {torch.float32}
        gradients.append(torch.cat(flat))
    assert F.cosine_similarity(*gradients, dim=0) > 0.98  # type: ignore[arg-type, misc]


def test_new_values_are_taken_up(
    tiny_backbone: Backbone, task: TaskSpec, rows: Any, make_delta: Any
) -> None:
    """After a step the next forward pass equals a fresh overlay of the new values."""
    model = model_of(tiny_backbone, make_delta(tiny_backbone, task, "random:0.05+layernorm"))
    first = model.logits(rows).detach()
    with torch.no_grad():
        for value in model.parameters.values():
            value.mul_(1.1)
    second = model.logits(rows).detach()
    assert not torch.allclose(first, second, atol=1e-3)
    entries = {name: _copy(entry) for name, entry in model.entries.items()}
    weight, bias = (part.detach().clone() for part in model.head)
    head = (weight, bias)
    fresh = TaskModel(tiny_backbone, entries, head, torch.device("cpu"), torch.float32)
    assert torch.equal(fresh.logits(rows), second)


def _copy(entry: Entry) -> Entry:
    values = entry.values.detach().clone()
    if isinstance(entry, SparseEntry):
        return SparseEntry(entry.indices, values, entry.shape)
    return DenseEntry(values)


def test_overlay_never_writes_to_the_backbone(
    tiny_backbone: Backbone, rows: Any, task: TaskSpec, make_delta: Any
) -> None:
    for strategy in STRATEGIES:
        delta = make_delta(tiny_backbone, task, strategy)
        batch = pack([(row.input_ids, row.token_type_ids) for row in rows])
        overlay = TrainableOverlay(tiny_backbone, delta.entries)
        encode(tiny_backbone.config, overlay, batch, WindowAttention(batch))
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


def test_sizes_of_the_tiny_backbone_are_distinct(tiny_backbone: Backbone) -> None:
    """The tests above tell matrices by their size alone."""
    layout = encoder_layout(tiny_backbone.config)
    assert len(matrix_sizes(tiny_backbone)) >= 6
    widths = {36, 52, 72, 108}
    assert not {43 * width for width in widths} & matrix_sizes(tiny_backbone)
    assert sum(prod(tiny_backbone.weights[name].shape) for name in layout) == (
        tiny_backbone.num_parameters
    )
