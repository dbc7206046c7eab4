"""The encoder's weights against the names of a real network, and variants that are refused."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
import torch
from transformers import BertConfig, BertModel

from deltas import BackboneError, EncoderConfig, encoder_layout
from deltas.backbone.layout import ACTIVATIONS


def config(**changes: Any) -> BertConfig:
    """A small BERT's configuration."""
    sizes: dict[str, Any] = {
        "vocab_size": 101,
        "hidden_size": 36,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 52,
        "max_position_embeddings": 64,
    }
    return BertConfig(**sizes | changes)


@pytest.mark.parametrize("layers", [1, 2, 3, 12])
def test_layout_holds_each_parameter_of_the_network_once(layers: int) -> None:
    given = config(num_hidden_layers=layers)
    with torch.device("meta"):
        network = BertModel(given)
    names = [f"bert.{name}" for name, _ in network.named_parameters()]
    layout = encoder_layout(EncoderConfig.from_transformers(given))
    held = [part for parts in layout.values() for part in parts]
    assert sorted(held) == sorted(names)
    assert len(set(held)) == len(held)


def test_query_stands_alone_in_the_last_layer() -> None:
    layout = encoder_layout(EncoderConfig.from_transformers(config()))
    stacked = {name: len(parts) for name, parts in layout.items() if len(parts) > 1}
    assert stacked == {
        "layer.0.query_key_value.weight": 3,
        "layer.0.query_key_value.bias": 3,
        "layer.1.query_key_value.weight": 3,
        "layer.1.query_key_value.bias": 3,
        "layer.2.key_value.weight": 2,
        "layer.2.key_value.bias": 2,
    }
    first = layout["layer.0.query_key_value.weight"]
    assert [name.split(".")[-2] for name in first] == ["query", "key", "value"]


def test_sizes_are_read_from_the_right_fields() -> None:
    given = config(
        layer_norm_eps=1e-5, type_vocab_size=4, hidden_act="gelu_new", intermediate_size=77
    )
    assert EncoderConfig.from_transformers(given) == EncoderConfig(
        num_layers=3,
        hidden_size=36,
        num_heads=3,
        intermediate_size=77,
        vocab_size=101,
        max_positions=64,
        num_token_types=4,
        layer_norm_eps=1e-5,
        activation="gelu_new",
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_act": "relu"}, "hidden_act is 'relu', must be 'gelu', 'gelu_new' or 'gelu_py"),
        ({"position_embedding_type": "relative_key"}, "'relative_key' positions"),
        ({"is_decoder": True}, "is a decoder"),
        ({"add_cross_attention": True}, "is a decoder"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, must be a finite number"),
        ({"layer_norm_eps": float("inf")}, "layer_norm_eps is inf, must be a finite number"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0, must be greater than 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, must be less than or eq"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, must be greater than or equal to 1"),
        ({"num_attention_heads": -3}, "num_attention_heads is -3, must be greater than or eq"),
        ({"num_attention_heads": 5}, "5 heads don't divide a width of 36"),
    ],
)
def test_variants_are_refused(changes: dict[str, Any], sentence: str) -> None:
    given = config()
    for name, value in changes.items():
        object.__setattr__(given, name, value)  # past the checks of `transformers`
    with pytest.raises(BackboneError, match=sentence):
        EncoderConfig.from_transformers(given)


def test_every_allowed_activation_is_computed() -> None:
    """The manifest says what is allowed, the layout how it is computed."""
    assert set(get_args(get_type_hints(EncoderConfig)["activation"])) == set(ACTIVATIONS)
