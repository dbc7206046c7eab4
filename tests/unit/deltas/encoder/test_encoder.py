"""The encoder alone: variants of BERT against stock transformers, and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from deltas import (
    Backbone,
    DenseEntry,
    EncoderConfig,
    Entry,
    TrainableOverlay,
    encode,
    make_backbone,
    pack,
)
from deltas.encoder.encoder import pool
from deltas.encoder.row_attention import RowAttention
from deltas.encoder.window_attention import WindowAttention

ROWS = [
    ([2, 7, 9, 3], [0, 0, 0, 0]),
    ([2, 3], [0, 0]),
    ([2, 40, 41, 42, 3, 50, 3], [0, 0, 0, 0, 0, 1, 1]),
    ([2, 9, 7, 3], [0, 0, 0, 0]),
    ([2, *range(5, 65), 0, 0, 3], [0] * 64),
]


def network(**changes: Any) -> BertModel:
    """A small BERT whose every parameter matters."""
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 52,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    torch.manual_seed(3)
    made = BertModel(BertConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for value in made.parameters():
            if value.ndim == 1:
                value.add_(torch.randn_like(value) * 0.2)
    return made


def backbone_of(made: BertModel, tokenizer: Any) -> Backbone:
    """The same weights as a backbone."""
    parameters = {f"bert.{name}": value for name, value in made.named_parameters()}
    return make_backbone(EncoderConfig.from_transformers(made.config), parameters, tokenizer, "x")


def pooled(backbone: Backbone, *, mean: Sequence[bool] | bool = False, **options: Any) -> Tensor:
    """Pooled outputs of all rows in one packed batch."""
    batch = pack(ROWS, mean=mean)
    with torch.no_grad():
        overlay = TrainableOverlay(backbone, {})
        return encode(backbone.config, overlay, batch, WindowAttention(batch), **options)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 5},
        {"num_attention_heads": 1},
        {"num_attention_heads": 36},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"layer_norm_eps": 0.1},
        {"type_vocab_size": 3},
    ],
    ids=str,
)
def test_variants_equal_stock_transformers(tiny_tokenizer: Any, changes: dict[str, Any]) -> None:
    made = network(**changes)
    with torch.no_grad():
        expected = [
            made(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).pooler_output
            for ids, types in ROWS
        ]
    found = pooled(backbone_of(made, tiny_tokenizer))
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-5, rtol=0)


def stock_pooled(made: BertModel, *, mean: bool) -> Tensor:
    """What a stock library computes for each row: the pooler's output, or the mean."""
    rows = [torch.tensor([row]) for row in ROWS]
    outs = [made(input_ids=both[:1], token_type_ids=both[1:]) for both in (row[0] for row in rows)]
    return torch.cat([out[0].mean(1) if mean else out[1] for out in outs])


MEANS = [True, [True, False, True, False, True], [False, False, False, True, False]]


@pytest.mark.parametrize("mean", MEANS, ids=["all", "most", "one"])
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "end to end"])
def test_means_equal_stock_transformers(
    tiny_tokenizer: Any, mean: Sequence[bool] | bool, windows: bool
) -> None:
    """Rows with cls pooling in the same batch keep theirs; both layouts, every gradient."""
    made = network(num_hidden_layers=3)
    backbone = backbone_of(made, tiny_tokenizer)
    batch = pack(ROWS, mean=mean, windows=windows)
    with torch.no_grad():
        attention = WindowAttention(batch) if windows else RowAttention(batch)
        found = encode(backbone.config, TrainableOverlay(backbone, {}), batch, attention)
        theirs = [stock_pooled(made, mean=False), stock_pooled(made, mean=True)]
    flags = torch.tensor(mean).expand(len(ROWS)).long()
    expected = torch.stack(theirs)[flags, torch.arange(len(ROWS))]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def stock_layers(made: BertModel, ids: Sequence[int], types: Sequence[int]) -> torch.Tensor:
    """Return the means of the embeddings and of each layer that a stock library computes."""
    tokens = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
    hidden = made(**tokens, output_hidden_states=True).hidden_states
    return torch.cat([layer.mean(1)[0] for layer in hidden])


@pytest.mark.parametrize("mean", MEANS, ids=["all", "most", "one"])
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "end to end"])
def test_means_of_every_layer_equal_stock_transformers(
    tiny_tokenizer: Any, mean: Sequence[bool] | bool, windows: bool
) -> None:
    """The last values are those of the last layer, which rows with another pooling read."""
    made = network(num_hidden_layers=3)
    backbone = backbone_of(made, tiny_tokenizer)
    batch = pack(ROWS, mean=mean, every_layer=True, windows=windows)
    with torch.no_grad():
        attention = WindowAttention(batch) if windows else RowAttention(batch)
        found = encode(backbone.config, TrainableOverlay(backbone, {}), batch, attention)
        assert found.shape == (len(ROWS), 4 * 36)
        last = stock_pooled(made, mean=False)
        for row, (ids, types) in enumerate(ROWS):
            if mean is True or (not isinstance(mean, bool) and mean[row]):
                expected = stock_layers(made, ids, types)
                torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)
            else:
                torch.testing.assert_close(found[row, -36:], last[row], atol=1e-5, rtol=0)


def test_gradients_through_every_layer_are_those_of_stock_transformers(tiny_tokenizer: Any) -> None:
    made = network(num_hidden_layers=3)
    backbone = backbone_of(made, tiny_tokenizer)
    wanted = torch.randn(len(ROWS), 4 * 36, generator=torch.Generator().manual_seed(4))
    theirs = torch.stack([stock_layers(made, *row) for row in ROWS])
    (theirs * wanted).sum().backward()
    entries: dict[str, Entry] = {
        f"bert.{name}": DenseEntry(value.detach().clone().requires_grad_())
        for name, value in made.named_parameters()
        if value.ndim == 1 and "pooler" not in name
    }
    batch = pack(ROWS, mean=True, every_layer=True)
    overlay = TrainableOverlay(backbone, entries)
    (encode(backbone.config, overlay, batch, WindowAttention(batch)) * wanted).sum().backward()
    for name, entry in entries.items():
        grad = made.get_parameter(name.removeprefix("bert.")).grad
        assert grad is not None
        torch.testing.assert_close(entry.values.grad, grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mean", MEANS, ids=["all", "most", "one"])
def test_gradients_through_a_mean_are_those_of_stock_transformers(
    tiny_tokenizer: Any, mean: Sequence[bool] | bool
) -> None:
    made = network()
    backbone = backbone_of(made, tiny_tokenizer)
    flags = torch.tensor(mean).expand(len(ROWS)).long()
    wanted = torch.randn(len(ROWS), 36, generator=torch.Generator().manual_seed(4))
    theirs = torch.stack([stock_pooled(made, mean=False), stock_pooled(made, mean=True)])
    (theirs[flags, torch.arange(len(ROWS))] * wanted).sum().backward()
    entries: dict[str, Entry] = {
        f"bert.{name}": DenseEntry(value.detach().clone().requires_grad_())
        for name, value in made.named_parameters()
        if value.ndim == 1
    }
    batch = pack(ROWS, mean=mean)
    overlay = TrainableOverlay(backbone, entries)
    (encode(backbone.config, overlay, batch, WindowAttention(batch)) * wanted).sum().backward()
    for name, value in made.named_parameters():
        if value.ndim == 1 and value.grad is not None:
            found = entries[f"bert.{name}"].values.grad
            found = torch.zeros_like(value) if found is None else found  # no row reads the pooler
            torch.testing.assert_close(found, value.grad, atol=1e-4, rtol=1e-4)


def test_not_a_number_stays_in_its_row(tiny_backbone: Backbone) -> None:
    """A mean over several rows' tokens would spread it."""
    batch = pack(ROWS, mean=True)
    hidden = torch.ones(len(batch.input_ids), tiny_backbone.config.hidden_size)
    hidden[int(batch.first_token_of_row[1])] = torch.nan
    found = pool(TrainableOverlay(tiny_backbone, {}), batch, hidden).isnan().any(1)
    assert found.tolist() == [False, True, False, False, False]


def test_two_calls_are_bit_equal(tiny_backbone: Backbone) -> None:
    """Nothing is dropped unless asked for, and no state is kept between calls."""
    assert torch.equal(pooled(tiny_backbone), pooled(tiny_backbone))


def test_dropout_is_drawn_anew_from_the_seed(tiny_backbone: Backbone) -> None:
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(pooled(tiny_backbone, dropout=0.1))
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2], atol=1e-3)
    assert not torch.allclose(draws[0], pooled(tiny_backbone), atol=1e-3)


def test_padding_is_no_different_from_none(tiny_backbone: Backbone) -> None:
    """A row next to a longer one is the row alone: there is no padding to leak."""
    overlay = TrainableOverlay(tiny_backbone, {})
    together = pooled(tiny_backbone)
    for row, expected in zip(ROWS, together, strict=True):
        with torch.no_grad():
            batch = pack([row])
            alone = encode(tiny_backbone.config, overlay, batch, WindowAttention(batch))[0]
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=0)
