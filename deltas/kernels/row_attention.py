"""Computes attention within rows of different lengths that lie end to end, on a CPU, forward only.

There is no padding, no mask, and no row reads another row's values (variable-length attention).
PyTorch's fused attention needs rows of one length, or windows under a mask
(`deltas.encoder.window_attention`); for rows of 20 to 60 tokens calling its matrix products takes
as long as the products (measured: docs/performance/log.md). `deltas.encoder.row_attention` hands
this kernel, whose code is `deltas.kernels.compiled.row_attention`, to the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from deltas.kernels.compiled import MAX_TILE_ROWS, ROW_ATTENTION, WIDTH
from deltas.kernels.runtime import FLOAT_CODES, data_pointer, kernel


@dataclass(frozen=True)
class RowSegments:
    """Segments of tokens that attend to each other, and the queries of each segment.

    A segment is a row of the batch, or padding. Its queries are all of its tokens, or only its
    first one. All tensors are int64, with one number for each segment.
    """

    starts: Tensor  # the first token
    lengths: Tensor  # number of tokens, at least 1
    query_starts: Tensor  # first row of the queries in the query tensor
    query_counts: Tensor  # number of queries

    @cached_property
    def max_length(self) -> int:
        """Number of tokens of the longest segment."""
        return int(self.lengths.max())

    @cached_property
    def num_scores(self) -> int:
        """Number of (query, key) pairs that one head compares."""
        return int((self.lengths * self.query_counts).sum())


def attend(query: Tensor, key_value: Tensor, segments: RowSegments, num_heads: int) -> Tensor:
    """Compute softmax(q k^T / sqrt(D)) v in each segment, in float32.

    Args:
        query: float32 or bfloat16 [N or P, H], each row in some segment.
        key_value: the same dtype [N, 2H], key and value of each token side by side.
        segments: the tokens and queries of each segment.
        num_heads: A.

    Returns:
        The shape and dtype of `query`.

    Raises:
        ValueError: a tensor has another dtype, or rows whose values are not contiguous.
    """
    count, width = len(segments.starts), query.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype)
    depth = width // num_heads
    query_pointer, query_stride = _pointer_and_stride(query, query.dtype)
    key_pointer, key_stride = _pointer_and_stride(key_value, query.dtype)
    kernel(ROW_ATTENTION).launch(
        count * num_heads,
        segments.num_scores * depth // count,
        num_heads,
        depth,
        segments.max_length,
        data_pointer(segments.starts, (count,), torch.int64),
        data_pointer(segments.lengths, (count,), torch.int64),
        data_pointer(segments.query_starts, (count,), torch.int64),
        data_pointer(segments.query_counts, (count,), torch.int64),
        FLOAT_CODES[query.dtype],
        query_pointer,
        query_stride,
        key_pointer,
        key_pointer + width * query.element_size(),
        key_stride,
        out.data_ptr(),
        scratch_floats=_scratch_floats(depth, segments.max_length),
    )
    return out


def _scratch_floats(depth: int, max_length: int) -> int:
    """Return the floats that a thread needs for the longest segment."""
    length, width = (-(-count // WIDTH) * WIDTH for count in (max_length, depth))
    return length * (depth + width + MAX_TILE_ROWS) + MAX_TILE_ROWS * (2 * width + 1)


def _pointer_and_stride(x: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Return the address of a matrix and the number of values from one row to the next."""
    if x.dtype != dtype or dtype not in FLOAT_CODES or x.device.type != "cpu":
        raise ValueError(f"needs float32 or bfloat16 of one kind on a CPU, got {x.dtype}")
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"needs rows of neighbouring values, got strides {x.stride()}")
    return x.data_ptr(), x.stride(0)
