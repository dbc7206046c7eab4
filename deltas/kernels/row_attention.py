"""Attention within rows that lie end to end, on CPUs, forwards only.

No row waits for another's length, none is masked, and none can see another's numbers. PyTorch's
fused attention wants rows of one length, or windows under a mask (`deltas.encoder.window_attention`); for rows of
20 to 60 tokens it spends as long on calling its products as on them (measured:
docs/performance.md).

Legend: N tokens, P packed rows, Z segments of tokens that see each other, L tokens of one, H
hidden width, A heads, D = H / A.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numba import carray
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from deltas.kernels.runtime import (
    BF16,
    FLOATS,
    Kernel,
    address,
    compiled,
    data_pointer,
    fetch_add,
    float_of_bits,
    read_line,
    sortable_bits,
    write_line,
)
from deltas.kernels.simd import TILE_LINES, WIDTH, multiply_tile, read_floats, write_floats


@dataclass(frozen=True)
class RowSegments:
    """Tokens that see each other, and who asks: all of them, or only a row's first token.

    Attributes:
        starts: int64 [Z], first token of each.
        lengths: int64 [Z], at least 1.
        asking: int64 [Z], first line of the queries.
        num_asking: int64 [Z], lines of the queries.
    """

    starts: Tensor
    lengths: Tensor
    asking: Tensor
    num_asking: Tensor

    @cached_property
    def longest(self) -> int:
        """The most tokens of a segment."""
        return int(self.lengths.max())

    @cached_property
    def num_scores(self) -> int:
        """Pairs of tokens that one head compares."""
        return int((self.lengths * self.num_asking).sum())


def attend(query: Tensor, key_value: Tensor, segments: RowSegments, num_heads: int) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in each segment; computed in float32.

    Args:
        query: float32 or bfloat16 [N or P, H], each of its lines in some segment.
        key_value: the same dtype [N, 2H], key and value of each token side by side.
        segments: where to look.
        num_heads: A.

    Returns:
        The queries' shape and dtype.

    Raises:
        ValueError: a tensor has another dtype, or lines whose values don't lie side by side.
    """
    count, width = len(segments.starts), query.shape[1]
    out = torch.empty(query.shape, dtype=query.dtype)
    depth = width // num_heads
    key, key_stride = _lines_of(key_value, query.dtype)
    of_segments = (
        segments.starts,
        segments.lengths,
        segments.asking,
        segments.num_asking,
    )
    _kernel().launch(
        count * num_heads,
        segments.num_scores * depth // count,
        num_heads,
        depth,
        segments.longest,
        *(data_pointer(part, (count,), torch.int64) for part in of_segments),
        FLOATS[query.dtype],
        *_lines_of(query, query.dtype),
        key,
        key + width * query.element_size(),
        key_stride,
        out.data_ptr(),
    )
    return out


def _lines_of(x: Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """Where the lines of x lie, and how many numbers lie from one to the next."""
    if x.dtype != dtype or dtype not in FLOATS or x.device.type != "cpu":
        raise ValueError(f"needs float32 or bfloat16 of one kind on a CPU, got {x.dtype}")
    if x.ndim != 2 or x.stride(1) != 1:
        raise ValueError(f"needs lines of neighbouring values, got strides {x.stride()}")
    return x.data_ptr(), x.stride(0)


@cache
def _kernel() -> Kernel:
    return Kernel(_attend)


# Where the kernel's arguments lie.
(
    _HEADS,
    _DEPTH,
    _LONGEST,
    _STARTS,
    _LENGTHS,
    _ASKING,
    _NUM_ASKING,
    _KIND,
    _QUERY,
    _QUERY_STRIDE,
    _KEY,
    _VALUE,
    _KEY_STRIDE,
    _OUT,
    _NUM_ARGUMENTS,
) = range(3, 18)

_LOG2_E = 1.4426950408889634  # scores are scaled by it, so that 2^x serves for e^x
_LEAST = np.float32(-120)  # 2^x of less is as good as 0
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1), np.float32(0)
_EXPONENT = np.int32(23)
# 2^x for x within +-1/2, to 2e-8 of it.
_POWER = Chebyshev.interpolate(lambda x: 2 ** (x / 2), 6).convert(kind=Polynomial).coef
_P0, _P1, _P2, _P3, _P4, _P5, _P6 = (np.float32(c * 2**n) for n, c in enumerate(_POWER))


@compiled
def _number(table: int, at: int) -> Any:
    return carray(address(table + 8 * at), 1, np.int64)[0]


@compiled
def _rounded_up(count: int) -> int:
    return (count + WIDTH - 1) // WIDTH * WIDTH


@compiled
def _place(values: Any) -> Any:
    return np.int64(values.ctypes.data)


@compiled
def _read(kind: int, place: int, depth: int, into: Any, factor: Any) -> None:
    """Copy D numbers, times a factor, to floats."""
    if depth % WIDTH:
        read_line(kind, place, 0, depth, into)
        for d in range(depth):
            into[d] *= factor
    else:
        bytes_each = 2 if kind == BF16 else 4
        for d in range(0, depth, WIDTH):
            read_floats(kind, place + bytes_each * d, _place(into) + 4 * d, factor)


@compiled
def _write(kind: int, line: Any, depth: int, place: int, factor: Any) -> None:
    """Copy D floats, times a factor, to numbers of that kind."""
    if depth % WIDTH:
        for d in range(depth):
            line[d] *= factor
        write_line(kind, place, 0, depth, line)
    else:
        bytes_each = 2 if kind == BF16 else 4
        for d in range(0, depth, WIDTH):
            write_floats(kind, _place(line) + 4 * d, place + bytes_each * d, factor)


@compiled
def _powers(scores: Any, count: int) -> Any:
    """Make scores 2^(score - largest); returns 1 over their sum."""
    bits = scores.view(np.int32)
    most = sortable_bits(bits[0])
    for j in range(count):  # of whole numbers, since extremes of floats are not vectorised
        most = max(most, sortable_bits(bits[j]))
    largest = float_of_bits(sortable_bits(most))
    for j in range(count):
        x = scores[j] - largest
        x = _LEAST if x < _LEAST else x  # NaN stays NaN
        whole = np.int32(x - _HALF)  # to nearest, since x is not positive
        x -= np.float32(whole)
        p = _P6 * x + _P5
        p = p * x + _P4
        p = p * x + _P3
        p = p * x + _P2
        p = p * x + _P1
        scores[j] = p * x + _P0
        bits[j] += whole << _EXPONENT
    total = _ZERO
    for j in range(count):
        total += scores[j]
    return _ONE / total


@compiled
def _load(a: Any, segment: int, head: int, keys: Any, values: Any, line: Any) -> Any:
    """Fill keys [D, L], transposed, and values [L, D] of a segment; returns L."""
    kind, depth = a[_KIND], a[_DEPTH]
    bytes_each = 2 if kind == BF16 else 4
    start, length = _number(a[_STARTS], segment), _number(a[_LENGTHS], segment)
    for j in range(length):
        place = bytes_each * (head * depth + (start + j) * a[_KEY_STRIDE])
        _read(kind, a[_KEY] + place, depth, line, _ONE)
        for d in range(depth):
            keys[d, j] = line[d]
        _read(kind, a[_VALUE] + place, depth, values[j], _ONE)
    return length


@compiled
def _multiply(out: Any, lines: Any, matrix: Any, size: int, depth: int) -> None:
    """Write lines [TILE_LINES, depth] times matrix [depth, size] to out [TILE_LINES, size]."""
    strides = out.shape[1], lines.shape[1], matrix.shape[1]
    for o in range(0, size, WIDTH):
        into, from_matrix = _place(out) + 4 * o, _place(matrix) + 4 * o
        multiply_tile(into, strides[0], _place(lines), strides[1], from_matrix, strides[2], depth)


def _attend(arguments: Any) -> None:
    """The kernel; a line of `Kernel.launch` is one head of one segment here."""
    a = carray(arguments, _NUM_ARGUMENTS, np.int64)
    heads, depth, kind = a[_HEADS], a[_DEPTH], a[_KIND]
    bytes_each = 2 if kind == BF16 else 4
    most, padded = _rounded_up(a[_LONGEST]), _rounded_up(depth)
    # What lies beyond a segment or a head is left from another one, and not used.
    keys, values = np.zeros((depth, most), np.float32), np.zeros((most, padded), np.float32)
    queries, out = np.zeros((2, TILE_LINES, padded), np.float32)
    scores, shares = np.zeros((TILE_LINES, most), np.float32), np.empty(TILE_LINES, np.float32)
    scale = np.float32(_LOG2_E / np.sqrt(depth))
    while True:
        first = fetch_add(arguments, a[2])
        if first >= a[1]:
            break
        for item in range(first, min(first + a[2], a[1])):
            segment, head = item // heads, item % heads
            length = _load(a, segment, head, keys, values, out[0])
            asking, num_asking = _number(a[_ASKING], segment), _number(a[_NUM_ASKING], segment)
            for i in range(asking, asking + num_asking, TILE_LINES):
                count = min(TILE_LINES, asking + num_asking - i)
                for n in range(count):
                    at = a[_QUERY] + bytes_each * (head * depth + (i + n) * a[_QUERY_STRIDE])
                    _read(kind, at, depth, queries[n], scale)
                _multiply(scores, queries, keys, length, depth)
                for n in range(count):
                    shares[n] = _powers(scores[n], length)
                _multiply(out, scores, values, depth, length)
                for n in range(count):
                    at = a[_OUT] + bytes_each * depth * (head + (i + n) * heads)
                    _write(kind, out[n], depth, at, shares[n])
