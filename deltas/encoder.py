"""The packed BERT forward pass, written once: training and serving both run this.

It computes what `transformers.BertModel` computes for each row's pooled output (Devlin et al. 2018,
arXiv:1810.04805), for rows laid into windows. Which weights a row sees is the overlay's business:
the encoder says only *where* it is (a site name of `deltas.layout`), the overlay knows the values
there. In the last layer only the first token of each row is computed, since the head reads nothing
else; it costs no accuracy.

Legend: R rows; in the batch's windows, padding included: N tokens, P packed rows; of a block of
windows: C windows, W tokens and Q packed rows in each; H hidden width, A heads, D = H / A.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.attention import attend, sight
from deltas.layout import ACTIVATIONS, EncoderConfig
from deltas.packing import PackedBatch


class Overlay(Protocol):
    """Weights as the rows of one batch see them.

    `per_row` says that x has one line a packed row [P, ...] rather than one a token [N, ...].
    """

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up int64 ids [N] in the table at `site`: [N, H]."""

    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [N or P, in] by the matrix at `site` and add its bias: [N or P, out]."""

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [N or P, H] with the LayerNorm at `site`."""


def encode(
    config: EncoderConfig, overlay: Overlay, batch: PackedBatch, dropout: float = 0.0
) -> Tensor:
    """Run the encoder.

    Args:
        config: sizes.
        overlay: the weights, for each row.
        batch: the rows.
        dropout: probability of dropping hidden values and attention weights; 0 outside training.

    Returns:
        [R, H] pooled output of each row, in the order of the input and in the overlay's dtype.
    """
    hidden = embed(overlay, batch, dropout)
    hidden = run_layers(config, overlay, batch, hidden, range(config.num_layers), dropout)
    return pool(overlay, batch, hidden)


def embed(overlay: Overlay, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """What the first layer reads: [N, H]."""
    hidden = overlay.embed("embeddings.word", batch.input_ids)
    hidden = hidden + overlay.embed("embeddings.position", batch.position_ids)
    hidden = hidden + overlay.embed("embeddings.token_type", batch.token_type_ids)
    return F.dropout(overlay.norm("embeddings.norm", hidden), dropout)


def run_layers(
    config: EncoderConfig,
    overlay: Overlay,
    batch: PackedBatch,
    hidden: Tensor,
    numbers: range,
    dropout: float = 0.0,
) -> Tensor:
    """Run consecutive layers on what the one before left, [N, H]; the last one leaves [P, H]."""
    seen = sight(batch, hidden.dtype)
    last, width, heads = config.num_layers - 1, config.hidden_size, config.num_heads
    for number in numbers:
        residual = hidden
        if number == last:
            residual = hidden[batch.first]  # [P, H]
            query = overlay.linear(f"layer.{last}.query", residual, per_row=True)  # [P, H]
            key_value = overlay.linear(f"layer.{last}.key_value", hidden)  # [N, 2H]
            attended = attend(query, key_value, seen.of_rows, heads, dropout)  # [P, H]
        else:
            mixed = overlay.linear(f"layer.{number}.query_key_value", hidden)  # [N, 3H]
            query, key_value = torch.split(mixed, [width, 2 * width], dim=1)
            attended = attend(query, key_value, seen.of_tokens, heads, dropout)  # [N, H]
        hidden = _finish_layer(
            config, overlay, number, attended, residual, dropout, per_row=number == last
        )
    return hidden


def pool(overlay: Overlay, batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Pooled output [R, H], in the order of the input, of what the last layer left [P, H]."""
    pooled = torch.tanh(overlay.linear("pooler", hidden, per_row=True))
    return pooled[batch.packed_row]


def _finish_layer(
    config: EncoderConfig,
    overlay: Overlay,
    number: int,
    attended: Tensor,
    residual: Tensor,
    dropout: float,
    *,
    per_row: bool,
) -> Tensor:
    """Everything of a layer after its attention: output projection, norm, feed-forward, norm."""
    layer = f"layer.{number}"
    x = F.dropout(overlay.linear(f"{layer}.attention_output", attended, per_row=per_row), dropout)
    x = overlay.norm(f"{layer}.attention_norm", x.add_(residual), per_row=per_row)
    inner = overlay.linear(f"{layer}.intermediate", x, per_row=per_row)
    inner = _activate(inner, ACTIVATIONS[config.activation])
    y = F.dropout(overlay.linear(f"{layer}.output", inner, per_row=per_row), dropout)
    return overlay.norm(f"{layer}.output_norm", y.add_(x), per_row=per_row)


def _activate(x: Tensor, approximate: str) -> Tensor:
    if torch.is_inference_mode_enabled():  # nothing needs x again: several MB less to allocate
        activated: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
        return activated
    return F.gelu(x, approximate=approximate)
