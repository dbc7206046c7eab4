"""The packed BERT forward pass, written once: training and serving both run this.

It computes what `transformers.BertModel` computes for each row's pooled output (Devlin et al. 2018,
arXiv:1810.04805), for rows laid end to end. Which weights a row sees is the overlay's business: the
encoder says only *where* it is (a site name of `deltas.layout`), the overlay knows the values
there. Two savings cost no accuracy: attention runs without masks over rows of equal length, and in
the last layer only the first token of each row is computed, since the head reads nothing else.

Legend: R rows, N tokens of all rows, H hidden width, A heads, D = H / A.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.layout import ACTIVATIONS, EncoderConfig
from deltas.packing import PackedBatch


class Overlay(Protocol):
    """Weights as the rows of one batch see them.

    `per_row` says that x has one line a row [R, ...] rather than one a token [N, ...].
    """

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up int64 ids [N] in the table at `site`: [N, H]."""

    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [N or R, in] by the matrix at `site` and add its bias: [N or R, out]."""

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [N or R, H] with the LayerNorm at `site`."""


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
        [R, H] pooled output of each packed row (`batch.restore` gives input order), in the
        overlay's dtype.
    """
    hidden = overlay.embed("embeddings.word", batch.input_ids)  # [N, H]
    hidden = hidden + overlay.embed("embeddings.position", batch.position_ids)
    hidden = hidden + overlay.embed("embeddings.token_type", batch.token_type_ids)
    hidden = F.dropout(overlay.norm("embeddings.norm", hidden), dropout)
    last = config.num_layers - 1
    for number in range(last):
        mixed = overlay.linear(f"layer.{number}.query_key_value", hidden)  # [N, 3H]
        attended = _self_attention(config, mixed, batch, dropout)  # [N, H]
        hidden = _finish_layer(config, overlay, number, attended, hidden, dropout, per_row=False)
    first = hidden[batch.first]  # [R, H]
    query = overlay.linear(f"layer.{last}.query", first, per_row=True)  # [R, H]
    key_value = overlay.linear(f"layer.{last}.key_value", hidden)  # [N, 2H]
    attended = _first_token_attention(config, query, key_value, batch, dropout)  # [R, H]
    hidden = _finish_layer(config, overlay, last, attended, first, dropout, per_row=True)
    return torch.tanh(overlay.linear("pooler", hidden, per_row=True))


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


def _self_attention(
    config: EncoderConfig, mixed: Tensor, batch: PackedBatch, dropout: float
) -> Tensor:
    """Attend within each row; mixed [N, 3H] holds query, key and value side by side."""
    heads, width = config.num_heads, config.hidden_size // config.num_heads
    pieces = []
    for start, length, count, _ in batch.groups:
        block = mixed[start : start + length * count].view(count, length, 3, heads, width)
        query, key, value = block.permute(2, 0, 3, 1, 4)  # each [count, A, length, D]
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        pieces.append(out.transpose(1, 2).reshape(count * length, -1))
    return torch.cat(pieces)


def _first_token_attention(
    config: EncoderConfig, query: Tensor, key_value: Tensor, batch: PackedBatch, dropout: float
) -> Tensor:
    """Attend from each row's first token only; query [R, H], key_value [N, 2H]."""
    heads, width = config.num_heads, config.hidden_size // config.num_heads
    pieces = []
    for start, length, count, row in batch.groups:
        block = key_value[start : start + length * count].view(count, length, 2, heads, width)
        key, value = block.permute(2, 0, 3, 1, 4)  # each [count, A, length, D]
        asking = query[row : row + count].view(count, heads, 1, width)
        out = F.scaled_dot_product_attention(asking, key, value, dropout_p=dropout)
        pieces.append(out.reshape(count, -1))
    return torch.cat(pieces)
