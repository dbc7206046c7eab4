"""Attention within the rows of a flat batch, by kernels that take rows of different lengths.

FlashAttention (Dao et al. 2022, arXiv:2205.14135) in bfloat16, the memory-efficient one (Rabe and
Staats 2021, arXiv:2112.05682) in float32, which the first doesn't do. Both read where rows begin on
the device, so that a recorded pass works for other rows as well.

Legend: Z segments, N tokens, P packed rows, H hidden width, A heads, D = H / A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from deltas.encoder.encoder import Attention
from deltas.encoder.flat_batch import FlatPackedBatch
from deltas.encoder.row_attention import require_inference
from deltas.kernels.row_attention import RowSegments, attend

_DEPTHS = 8  # the kernels read a head in pieces of so many numbers


@dataclass(frozen=True)
class Segments:
    """Tokens that see each other, and who asks. Segments lie end to end and may be empty.

    Attributes:
        asking: int32 [Z + 1], on the device: where the queries of each begin, and the last end.
        tokens: int32 [Z + 1], the same of keys and values.
        most_asking: queries of a segment, at most.
        most_tokens: tokens of one, at most.
    """

    asking: Tensor
    tokens: Tensor
    most_asking: int
    most_tokens: int


class SegmentAttention(Attention):
    """Attention within the rows of a flat batch, for inference only.

    Args:
        batch: the flat batch, on the device that computes.
    """

    def __init__(self, batch: FlatPackedBatch) -> None:
        bounds, longest = batch.bounds.int(), batch.longest
        # A packed row has one query, also one that only fills up and sees nothing.
        one_each = torch.arange(len(bounds), dtype=torch.int32, device=bounds.device)
        self.of_tokens = Segments(bounds, bounds, longest, longest)
        self.of_first_tokens = Segments(one_each, bounds, 1, longest)

    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from every token: [N, H]."""
        require_inference(query, key_value, dropout)
        return attend_in_segments(query, key_value, self.of_tokens, num_heads)

    def first_tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from the first token of each packed row: [P, H]."""
        require_inference(query, key_value, dropout)
        return attend_in_segments(query, key_value, self.of_first_tokens, num_heads)


def attend_in_segments(
    query: Tensor, key_value: Tensor, segments: Segments, num_heads: int
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in each segment.

    Args:
        query: float32 or bfloat16 [N or P, H].
        key_value: the same dtype [N, 2H], key and value of each token side by side.
        segments: where to look.
        num_heads: A.

    Returns:
        The queries' shape and dtype; anything in lines that belong to no segment.
    """
    if query.device.type == "cpu":
        return attend(query, key_value, _row_segments(segments), num_heads)
    depth = query.shape[1] // num_heads
    q = query.view(-1, num_heads, depth)  # [N or P, A, D]
    k, v = key_value.view(-1, 2, num_heads, depth).unbind(1)  # [N, A, D]
    if missing := -depth % _DEPTHS:  # as in TinyBERT, whose heads are 26 wide
        q, k, v = (F.pad(part, (0, missing)) for part in (q, k, v))
    out = _attend_on_device(q, k, v, segments, scale=depth**-0.5)
    return out[..., :depth].flatten(1)


def _attend_on_device(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    bounds = segments.asking, segments.tokens, segments.most_asking, segments.most_tokens
    if q.dtype == torch.float32:
        of_one = (part.unsqueeze(0) for part in (q, k, v))
        found: Tensor = torch.ops.aten._efficient_attention_forward(
            *of_one, None, *bounds, dropout_p=0.0, custom_mask_type=0, scale=scale
        )[0]
        return found.squeeze(0)
    out = varlen_attn(q, k, v, *bounds, scale=scale)
    assert isinstance(out, Tensor)  # and not a pair, which it is when asked for more
    return out


def _row_segments(segments: Segments) -> RowSegments:
    """The same for the kernel of CPUs, without what is empty."""
    asking, tokens = segments.asking.long(), segments.tokens.long()
    lengths, num_asking = tokens.diff(), asking.diff()
    some = lengths > 0
    return RowSegments(tokens[:-1][some], lengths[some], asking[:-1][some], num_asking[some])
