"""Attention in rows that lie end to end, on CPUs and for inference only.

Serving uses it; `deltas.kernels.row_attention` is the kernel. Training and every other device
attend in padded windows (`deltas.encoder.window_attention`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from deltas.encoder.encoder import Attention
from deltas.encoder.packing import PackedBatch
from deltas.kernels.row_attention import RowSegments, attend


class RowAttention(Attention):
    """Attention within each row of a batch that was packed without windows."""

    def __init__(self, batch: PackedBatch) -> None:
        lengths = batch.segment_lengths
        starts = lengths.cumsum(0) - lengths
        self._tokens = RowSegments(starts, lengths, starts, lengths)
        run, counts = batch.run_segments, batch.run_lengths
        self._positions = RowSegments(starts[run], lengths[run], counts.cumsum(0) - counts, counts)

    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        require_inference(query, key_value, dropout)
        return attend(query, key_value, self._tokens, num_heads)

    def positions(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        require_inference(query, key_value, dropout)
        return attend(query, key_value, self._positions, num_heads)


def require_inference(query: Tensor, key_value: Tensor, dropout: float) -> None:
    """Refuse gradients and dropout, which the kernels for rows end to end do not implement.

    Raises:
        ValueError: a gradient or dropout is asked for.
    """
    wants_gradient = torch.is_grad_enabled() and (query.requires_grad or key_value.requires_grad)
    if wants_gradient or dropout:
        raise ValueError("rows that lie end to end are for inference; pack them into windows")
