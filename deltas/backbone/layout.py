"""Map the encoder's weights to the Hugging Face parameters that are stacked in them.

Query, key and value share one matrix, so one GEMM computes all three. In the last layer, the head
needs only the first token's query, so the query stands alone there, and key and value are stacked.
Parameters are stacked along the first dimension: a flat index into a parameter is offset by the
sizes of the parameters before it.
"""

from __future__ import annotations

from deltas.manifest import EncoderConfig as EncoderConfig

# The approximation of GELU in PyTorch's terms, by the activation's name in `EncoderConfig`.
ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


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


def parameter_names(config: EncoderConfig) -> list[str]:
    """List the Hugging Face names of all parameters in the network's order."""
    names = [part for parts in encoder_layout(config).values() for part in parts]
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    in_order = (f"{module}.{end}" for module in modules for end in ("weight", "bias"))
    known = set(names)
    return [name for name in in_order if name in known]
