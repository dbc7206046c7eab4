"""Map the encoder's weights to the Hugging Face parameters that are stacked in them.

Query, key and value share one matrix, so one GEMM computes all three. In the last layer, the head
needs only the first token's query, so the query stands alone there, and key and value are stacked.
Parameters are stacked along the first dimension: a flat index into a parameter is offset by the
sizes of the parameters before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltas.errors import BackboneError

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
# The sizes of `EncoderConfig` and their names in `transformers.BertConfig`.
STOCK_NAMES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of a BERT encoder."""

    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    num_token_types: int = 2
    layer_norm_eps: float = 1e-12
    activation: str = "gelu"

    @classmethod
    def from_transformers(cls, config: Any) -> EncoderConfig:
        """Read a `transformers.BertConfig`.

        Raises:
            BackboneError: the encoder does not support this variant of BERT.
        """
        if config.hidden_act not in ACTIVATIONS:
            raise BackboneError(
                f"activation {config.hidden_act!r} is not supported; "
                f"supported are {', '.join(sorted(ACTIVATIONS))}"
            )
        positions = getattr(config, "position_embedding_type", "absolute") or "absolute"
        if positions != "absolute" or config.is_decoder:
            raise BackboneError(
                f"only encoders with absolute positions are supported; this network has "
                f"{positions!r} positions{' and is a decoder' if config.is_decoder else ''}"
            )
        return cls(**{ours: getattr(config, theirs) for ours, theirs in STOCK_NAMES.items()})


def encoder_layout(config: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """Map each encoder weight to the Hugging Face parameters stacked in it, in network order."""
    layout: dict[str, tuple[str, ...]] = {
        f"embeddings.{table}.weight": (f"bert.embeddings.{table}_embeddings.weight",)
        for table in ("word", "position", "token_type")
    }

    def add(target: str, *sources: str) -> None:
        for end in ("weight", "bias"):
            layout[f"{target}.{end}"] = tuple(f"bert.{source}.{end}" for source in sources)

    add("embeddings.norm", "embeddings.LayerNorm")
    for number in range(config.num_layers):
        ours, theirs = f"layer.{number}", f"encoder.layer.{number}"
        query, key, value = (
            f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")
        )
        if number < config.num_layers - 1:
            add(f"{ours}.query_key_value", query, key, value)
        else:
            add(f"{ours}.query", query)
            add(f"{ours}.key_value", key, value)
        add(f"{ours}.attention_output", f"{theirs}.attention.output.dense")
        add(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        add(f"{ours}.intermediate", f"{theirs}.intermediate.dense")
        add(f"{ours}.output", f"{theirs}.output.dense")
        add(f"{ours}.output_norm", f"{theirs}.output.LayerNorm")
    add("pooler", "pooler.dense")
    return layout
