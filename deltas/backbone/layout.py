"""Names and sizes of the encoder's weights, and how Hugging Face's parameters are stacked.

Query, key and value share one matrix, so one GEMM computes all three. In the last layer only the
first token's query is needed (the head reads nothing else), so there the query stands alone and key
and value are stacked. Parts are stacked along the first dimension, so a part's flat index moves by
the size of the parts before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deltas.errors import BackboneError

ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT encoder."""

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
            BackboneError: a variant of BERT that the encoder does not compute.
        """
        if config.hidden_act not in ACTIVATIONS:
            raise BackboneError(
                f"activation {config.hidden_act!r} is not supported; "
                f"supported are {', '.join(sorted(ACTIVATIONS))}"
            )
        positions = getattr(config, "position_embedding_type", "absolute") or "absolute"
        if positions != "absolute" or config.is_decoder:
            raise BackboneError(
                f"needs an encoder with absolute positions, this has {positions!r} positions"
                f"{' and is a decoder' if config.is_decoder else ''}"
            )
        return cls(
            num_layers=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            vocab_size=config.vocab_size,
            max_positions=config.max_position_embeddings,
            num_token_types=config.type_vocab_size,
            layer_norm_eps=config.layer_norm_eps,
            activation=config.hidden_act,
        )


def encoder_layout(config: EncoderConfig) -> dict[str, tuple[str, ...]]:
    """Map each encoder weight to the Hugging Face parameters stacked in it, in network order."""
    layout: dict[str, tuple[str, ...]] = {
        f"embeddings.{short}.weight": (f"bert.embeddings.{long}.weight",)
        for short, long in (
            ("word", "word_embeddings"),
            ("position", "position_embeddings"),
            ("token_type", "token_type_embeddings"),
        )
    }

    def site(target: str, *sources: str) -> None:
        for end in ("weight", "bias"):
            layout[f"{target}.{end}"] = tuple(f"bert.{source}.{end}" for source in sources)

    site("embeddings.norm", "embeddings.LayerNorm")
    for number in range(config.num_layers):
        ours, theirs = f"layer.{number}", f"encoder.layer.{number}"
        query, key, value = (
            f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")
        )
        if number < config.num_layers - 1:
            site(f"{ours}.query_key_value", query, key, value)
        else:
            site(f"{ours}.query", query)
            site(f"{ours}.key_value", key, value)
        site(f"{ours}.attention_output", f"{theirs}.attention.output.dense")
        site(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
        site(f"{ours}.intermediate", f"{theirs}.intermediate.dense")
        site(f"{ours}.output", f"{theirs}.output.dense")
        site(f"{ours}.output_norm", f"{theirs}.output.LayerNorm")
    site("pooler", "pooler.dense")
    return layout
