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

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.layout import ACTIVATIONS, EncoderConfig
from deltas.packing import Block, PackedBatch


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
    hidden = overlay.embed("embeddings.word", batch.input_ids)  # [N, H]
    hidden = hidden + overlay.embed("embeddings.position", batch.position_ids)
    hidden = hidden + overlay.embed("embeddings.token_type", batch.token_type_ids)
    hidden = F.dropout(overlay.norm("embeddings.norm", hidden), dropout)
    masks = [_mask(block, hidden.dtype) for block in batch.blocks]
    last = config.num_layers - 1
    for number in range(last):
        mixed = overlay.linear(f"layer.{number}.query_key_value", hidden)  # [N, 3H]
        attended = _self_attention(config, mixed, batch, masks, dropout)  # [N, H]
        hidden = _finish_layer(config, overlay, number, attended, hidden, dropout, per_row=False)
    first = hidden[batch.first]  # [P, H]
    query = overlay.linear(f"layer.{last}.query", first, per_row=True)  # [P, H]
    key_value = overlay.linear(f"layer.{last}.key_value", hidden)  # [N, 2H]
    attended = _first_token_attention(config, query, key_value, batch, masks, dropout)  # [P, H]
    hidden = _finish_layer(config, overlay, last, attended, first, dropout, per_row=True)
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


def _mask(block: Block, dtype: torch.dtype) -> Tensor | None:
    """What is added to attention scores, [C, 1, W, W]: 0, or -inf where a token sees nothing."""
    if block.allowed is None:
        return None
    return torch.zeros_like(block.allowed, dtype=dtype).masked_fill_(~block.allowed, -math.inf)


def _self_attention(
    config: EncoderConfig,
    mixed: Tensor,
    batch: PackedBatch,
    masks: Sequence[Tensor | None],
    dropout: float,
) -> Tensor:
    """Attend within each row; mixed [N, 3H] holds query, key and value side by side."""
    heads, width = config.num_heads, config.hidden_size // config.num_heads
    pieces = []
    for block, mask in zip(batch.blocks, masks, strict=True):
        windows = mixed[block.tokens].view(block.count, block.width, 3, heads, width)
        query, key, value = windows.permute(2, 0, 3, 1, 4)  # each [C, A, W, D]
        out = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        pieces.append(out.transpose(1, 2).reshape(block.count * block.width, -1))
    return torch.cat(pieces)


def _first_token_attention(
    config: EncoderConfig,
    query: Tensor,
    key_value: Tensor,
    batch: PackedBatch,
    masks: Sequence[Tensor | None],
    dropout: float,
) -> Tensor:
    """Attend from each row's first token only; query [P, H], key_value [N, 2H]."""
    heads, width = config.num_heads, config.hidden_size // config.num_heads
    attended = torch.zeros_like(query)  # packed rows that belong to no block stay 0
    for block, mask in zip(batch.blocks, masks, strict=True):
        windows = key_value[block.tokens].view(block.count, block.width, 2, heads, width)
        key, value = windows.permute(2, 0, 3, 1, 4)  # each [C, A, W, D]
        asking = query[block.rows].view(block.count, -1, heads, width).transpose(1, 2)
        if mask is not None:
            lines = batch.first[block.rows] - block.tokens.start
            mask = mask.view(-1, block.width)[lines].view(block.count, 1, -1, block.width)
        out = F.scaled_dot_product_attention(asking, key, value, mask, dropout)  # [C, A, Q, D]
        attended[block.rows] = out.transpose(1, 2).reshape(-1, heads * width)
    return attended
