"""Attention within rows of different lengths on a GPU, without padding, for inference only."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.cuda.batch import CudaBatch
from deltas.encoder.encoder import Attention
from deltas.encoder.row_attention import require_inference
from deltas.kernels.row_attention import RowSegments, attend

_DEPTH_STEP = 8  # the attention kernels read a head in pieces of 8 numbers


class CuSeqlens(NamedTuple):
    """Cumulative lengths of segments of queries and of the keys they attend to; may be empty."""

    cu_queries: Tensor  # int32: the first query of each segment, and the end of the last one
    cu_keys: Tensor  # int32: the same for keys and values
    max_queries: int  # upper bound for the queries of a segment
    max_keys: int


class VarlenAttention(Attention):
    """Attention within each row of a batch without padding, for inference only.

    FlashAttention (Dao et al. 2022, arXiv:2205.14135) computes bfloat16, memory-efficient attention
    (Rabe and Staats 2021, arXiv:2112.05682) float32, which FlashAttention does not support. Both
    read `cu_seqlens` on the device, so that a recorded pass serves other rows as well.
    """

    def __init__(self, batch: CudaBatch) -> None:
        cu_seqlens, longest = batch.cu_seqlens.int(), batch.longest
        # Each row has one query, also a row that only fills the batch up.
        rows = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        self.of_tokens = CuSeqlens(cu_seqlens, cu_seqlens, longest, longest)
        self.of_first_tokens = CuSeqlens(rows, cu_seqlens, 1, longest)
        self._num_rows = batch.num_cls

    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from every token: [N, H]; tokens behind the rows get any values."""
        return _attend(query, key_value, self.of_tokens, num_heads, dropout)

    def positions(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        first, rest = query[: self._num_rows], query[self._num_rows :]
        attended = _attend(first, key_value, self.of_first_tokens, num_heads, dropout)
        if not len(rest):
            return attended
        return torch.cat([attended, _attend(rest, key_value, self.of_tokens, num_heads, dropout)])


def _attend(
    query: Tensor, key_value: Tensor, segments: CuSeqlens, num_heads: int, dropout: float
) -> Tensor:
    require_inference(query, key_value, dropout)
    if query.device.type == "cpu":  # in tests; this kernel takes no empty segments
        queries, keys = segments.cu_queries.long(), segments.cu_keys.long()
        some = keys.diff() > 0
        starts = keys[:-1][some], keys.diff()[some], queries[:-1][some], queries.diff()[some]
        return attend(query, key_value, RowSegments(*starts), num_heads)
    depth = query.shape[1] // num_heads
    q = query.view(-1, num_heads, depth)  # [N or P, A, D]
    k, v = key_value.view(-1, 2, num_heads, depth).unbind(1)  # [N, A, D]
    if missing := -depth % _DEPTH_STEP:  # TinyBERT's heads are 26 wide
        q, k, v = (F.pad(part, (0, missing)) for part in (q, k, v))
    out: Tensor
    if q.dtype == torch.float32:
        one_batch = (part.unsqueeze(0) for part in (q, k, v))
        out = torch.ops.aten._efficient_attention_forward(
            *one_batch, None, *segments, dropout_p=0.0, custom_mask_type=0, scale=depth**-0.5
        )[0].squeeze(0)
    else:
        # Loaded here, because it takes 2.4 s and 80 MB, which servers without a GPU spare.
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(q, k, v, *segments, scale=depth**-0.5)  # type: ignore[assignment]
    return out[..., :depth].flatten(1)
