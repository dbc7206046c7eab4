"""Experimental: no GPU has run this code yet; replaced by a plain path if none has by release 0.3.

The forward pass for GPUs, and all that only GPUs need. `encode_batch` writes a batch into one int64
tensor, which a single copy brings to the device; `decode_batch` makes a packed batch of it there.
`VarlenAttention` attends within rows of different lengths without padding. `Graphs` records the
pass of each batch shape as a CUDA graph, because launching hundreds of short kernels one by one
from Python takes longer than running them. `CudaForward` puts these together.

A recorded pass reads and writes the same memory at every replay, so a batch is filled up to the
next recorded shape. The plain path would be `deltas.encoder.packing.pack` with windows,
`WindowAttention` and `BankOverlay`: the same answers without recorded passes.

Expires: 0.3.0
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from app.engine.bank import PARAMETER_KINDS, Bank
from app.engine.bank_overlay import BankOverlay
from deltas import EncoderConfig, PackedBatch, TokenizedRow, encode
from deltas.encoder.encoder import Attention
from deltas.encoder.packing import KeySpan
from deltas.encoder.row_attention import require_inference
from deltas.kernels.row_attention import RowSegments, attend

logger = logging.getLogger(__name__)

# 64, 96, 128, 192 and so on; more than 16,384 tokens keep a GPU busy without a recorded pass.
_TOKEN_COUNTS = sorted([2**n for n in range(6, 15)] + [3 * 2**n for n in range(5, 13)])
_TOKENS_PER_ROW = 16  # a batch with more rows than that takes the next larger shape
_LONGEST_ROWS = (128, 512)  # attention kernels are launched for rows of this length
_RUNS_BEFORE_RECORDING = 2  # the first runs set libraries up, which cannot be recorded
_DEPTH_STEP = 8  # the attention kernels read a head in pieces of 8 numbers

_EMPTY = torch.empty(0, dtype=torch.int64)
_Spans = Mapping[int, KeySpan]
_NONE: _Spans = {}


class BatchShape(NamedTuple):
    """The numbers of tokens and rows that a batch is filled up to, and its longest row's tokens."""

    tokens: int
    rows: int
    longest: int

    @property
    def num_numbers(self) -> int:
        """Number of int64 values that describe a batch of this shape."""
        return 2 * self.tokens + 4 * self.rows + 1

    def fits(self, needed: BatchShape) -> bool:
        """Tell whether a batch with the needed shape can be filled up to this one."""
        return all(mine >= other for mine, other in zip(self, needed, strict=True))

    @classmethod
    def of(cls, rows: Sequence[TokenizedRow]) -> BatchShape:
        """Return the smallest shape that holds the rows."""
        lengths = [row.num_tokens for row in rows]
        return cls(sum(lengths), len(rows), max(lengths, default=0))


def batch_shapes(max_positions: int) -> list[BatchShape]:
    """List the shapes that are recorded, for rows of at most `max_positions` tokens."""
    shapes = {
        BatchShape(count, count // _TOKENS_PER_ROW, min(longest, max_positions, count))
        for count in _TOKEN_COUNTS
        for longest in _LONGEST_ROWS
    }
    return sorted(shapes)


def first_fitting(shapes: Sequence[BatchShape], needed: BatchShape) -> BatchShape | None:
    """Return the first shape that fits, or None."""
    return next((shape for shape in shapes if shape.fits(needed)), None)


class EncodedBatch(NamedTuple):
    """A batch on the host: int64 numbers, the shape they fill, and each key's tokens and rows."""

    numbers: Tensor
    shape: BatchShape
    spans: dict[int, KeySpan]


@dataclass(frozen=True)
class CudaBatch(PackedBatch):
    """A packed batch without padding between rows and without windows.

    Attributes:
        cu_seqlens: int64 [P + 1], cumulative sequence lengths: the first token of each position,
            and the end of the last one. Positions that only fill the batch up are empty.
        longest: upper bound for the tokens of a row.
    """

    cu_seqlens: Tensor
    longest: int


def encode_batch(
    rows: Sequence[TokenizedRow],
    shape: BatchShape | None = None,
    keys: Sequence[int] | None = None,
    extra: Iterable[Sequence[int]] = (),
) -> EncodedBatch:
    """Write rows end to end into one tensor.

    Args:
        rows: rows of at least one token each.
        shape: shape to fill the batch up to; None adds nothing.
        keys: key of each row; rows of one key become neighbours, the lowest key first.
        extra: further numbers to append.

    Raises:
        ValueError: the rows do not fit the shape.
    """
    needed = BatchShape.of(rows)
    shape = shape or needed
    if not shape.fits(needed):
        raise ValueError(f"{needed} does not fit {shape}")
    order = sorted(range(len(rows)), key=keys.__getitem__) if keys else range(len(rows))
    ids, types, starts = array("q"), array("q"), array("q")
    position_of_row = array("q", bytes(8 * shape.rows))
    spans: dict[int, KeySpan] = {}
    for position, row in enumerate(order):
        starts.append(len(ids))
        ids.extend(rows[row].input_ids)
        types.extend(rows[row].token_type_ids)
        position_of_row[row] = position
        key = keys[row] if keys else 0
        start = spans.get(key, KeySpan(slice(starts[-1], 0), slice(position, 0)))
        tokens = slice(start.tokens.start, len(ids))
        spans[key] = KeySpan(tokens, slice(start.positions.start, position + 1))
    cu_seqlens = starts + array("q", [len(ids)] * (shape.rows - len(rows) + 1))
    numbers = _zero_filled(ids, shape.tokens) + _zero_filled(types, shape.tokens)
    numbers += _zero_filled(array("q", order), shape.rows) + _zero_filled(starts, shape.rows)
    numbers += position_of_row + cu_seqlens
    numbers.extend(chain.from_iterable(extra))
    return EncodedBatch(torch.frombuffer(numbers, dtype=torch.int64), shape, spans)


def _zero_filled(numbers: array[int], count: int) -> array[int]:
    """Append zeros; the token and the row that they point to always exist."""
    return numbers + array("q", bytes(8 * (count - len(numbers))))


def decode_batch(numbers: Tensor, shape: BatchShape, spans: _Spans = _NONE) -> CudaBatch:
    """Make a packed batch from views of an encoded batch's numbers, on their device."""
    counts = [shape.tokens] * 2 + [shape.rows] * 3 + [shape.rows + 1]
    parts = torch.split(numbers[: shape.num_numbers], counts)
    input_ids, token_type_ids, row_at_position, first_token, position_of_row, cu_seqlens = parts
    # Tokens behind the rows count as further tokens of the last position.
    token = torch.arange(shape.tokens, device=numbers.device)
    position = torch.searchsorted(cu_seqlens, token, right=True).sub_(1).clamp_(max=shape.rows - 1)
    return CudaBatch(
        input_ids=input_ids,
        token_type_ids=token_type_ids,
        position_ids=(token - first_token[position]).clamp_(max=shape.longest - 1),
        row_of_token=row_at_position[position],
        token_at_position=first_token,
        row_at_position=row_at_position,
        first_token_of_row=first_token[position_of_row],
        pooled_of_row=position_of_row,
        mean_offsets=_EMPTY,
        segment_lengths=_EMPTY,
        run_segments=_EMPTY,
        run_lengths=_EMPTY,
        num_cls=shape.rows,
        blocks=(),
        key_spans=dict(spans),
        cu_seqlens=cu_seqlens,
        longest=shape.longest,
    )


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
        # Each position has one query, also a position that only fills the batch up.
        positions = torch.arange(len(cu_seqlens), dtype=torch.int32, device=cu_seqlens.device)
        self.of_tokens = CuSeqlens(cu_seqlens, cu_seqlens, longest, longest)
        self.of_positions = CuSeqlens(positions, cu_seqlens, 1, longest)

    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from every token: [N, H]; tokens behind the rows get any values."""
        return _attend(query, key_value, self.of_tokens, num_heads, dropout)

    def positions(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        return _attend(query, key_value, self.of_positions, num_heads, dropout)


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
        out = varlen_attn(q, k, v, *segments, scale=depth**-0.5)  # type: ignore[assignment]
    return out[..., :depth].flatten(1)


# Records a pass; returns a function that replays it, and the tensor that holds its result.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class NotRecordedError(RuntimeError):
    """A pass that runs, but cannot be recorded."""


class _RecordedPass(NamedTuple):
    numbers: Tensor  # input: a batch's numbers are copied here
    replay: Callable[[], None]
    result: Tensor


class Graphs:
    """Recorded passes by batch shape, for one thread and one stream.

    Args:
        forward: computes a pass from a batch's numbers (int64, on the device) and shape; it never
            waits for the device, and reads nothing else that may move in memory.
        new_recorder: makes a recorder with separate memory.
    """

    def __init__(
        self, forward: Callable[[Tensor, BatchShape], Tensor], new_recorder: Callable[[], Recorder]
    ) -> None:
        self._forward = forward
        self._new_recorder = new_recorder
        self._record = new_recorder()
        self._passes: dict[BatchShape, _RecordedPass | None] = {}  # None: out of memory
        self._gave_up = False

    @property
    def num_recorded(self) -> int:
        """Number of recorded shapes."""
        return sum(recorded is not None for recorded in self._passes.values())

    def replay(self, numbers: Tensor, shape: BatchShape) -> Tensor:
        """Compute a pass; its result is valid until the next pass of any shape.

        The first pass of a shape is recorded, which takes as long as a few passes. A pass that
        cannot be recorded is computed without a record, now and later.
        """
        if shape not in self._passes and not self._gave_up:
            self._try_to_record(numbers, shape)
        recorded = self._passes.get(shape)
        if recorded is None:
            return self._forward(numbers, shape)
        recorded.numbers.copy_(numbers)
        recorded.replay()
        return recorded.result

    def clear(self) -> None:
        """Drop all records and their memory, because a tensor that they read has moved."""
        self._passes.clear()
        self._record = self._new_recorder()

    def _try_to_record(self, numbers: Tensor, shape: BatchShape) -> None:
        numbers = numbers.clone()
        forward = partial(self._forward, numbers, shape)
        try:
            self._passes[shape] = _RecordedPass(numbers, *self._record(forward))
        except torch.OutOfMemoryError as error:
            self._passes[shape] = None
            logger.warning("no memory to record passes of %d tokens: %s", shape.tokens, error)
        except NotRecordedError:
            self.clear()
            self._gave_up = True
            logger.warning("passes cannot be recorded and will be slower", exc_info=True)


def cuda_recorder() -> Recorder:
    """Return a recorder of CUDA graphs that share one stream and one memory pool."""
    pool = torch.cuda.graph_pool_handle()
    # One stream for all graphs: libraries keep tens of MB for each stream that they have seen.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(forward: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        current, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_RUNS_BEFORE_RECORDING):
                    forward()
            try:
                # Thread-local, because other threads may use the device during the capture.
                mode = "thread_local"
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=mode):
                    result = forward()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise NotRecordedError(str(error)) from error
        finally:
            torch.cuda.set_stream(current)  # a failed capture may have left its stream current
            current.wait_stream(stream)
        return graph.replay, result

    return record


class CudaForward:
    """Forward passes on a GPU, for one thread.

    Args:
        config: sizes of the encoder.
        bank: deltas on the GPU.
        new_recorder: makes a recorder of passes; None runs every pass without a record.
    """

    def __init__(
        self, config: EncoderConfig, bank: Bank, new_recorder: Callable[[], Recorder] | None = None
    ) -> None:
        self._config = config
        self._bank = bank
        self._shapes = batch_shapes(config.max_positions) if new_recorder else []
        self._graphs = Graphs(self._encode, new_recorder) if new_recorder else None
        self._generation = bank.generation

    def logits(
        self, rows: Sequence[TokenizedRow], slots: Sequence[int], *, int8: bool = False
    ) -> list[list[float]]:
        """Return the logits of each row; see `app.engine.engine.Forward`."""
        if int8:
            raise ValueError("int8 is for CPUs")
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in slots))
        logits = self.start(rows, slots).tolist()  # waits for the device
        return [logits[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.inference_mode()
    def start(self, rows: Sequence[TokenizedRow], slots: Sequence[int]) -> Tensor:
        """Start a pass; returns the logits of all rows, concatenated, still being computed."""
        with_matrices = self._bank.matrix_slots.intersection(slots)
        shape = None if with_matrices else first_fitting(self._shapes, BatchShape.of(rows))
        head_slots = list(dict.fromkeys(slots))
        vector_rows = self._vector_rows(slots, shape.rows if shape else len(rows))
        keys = [slot if slot in with_matrices else 0 for slot in slots]
        extra = vector_rows, self._logit_indices(slots, head_slots)
        encoded = encode_batch(rows, shape, keys, extra)
        numbers = _on_device(encoded.numbers, self._bank.device)
        of_pass, indices = numbers.tensor_split([encoded.shape.num_numbers + len(vector_rows)])
        if shape:
            pooled = self._replay(of_pass, shape)
        else:
            pooled = self._encode(of_pass, encoded.shape, slots, encoded.spans)
        weight = torch.cat([self._bank.heads[slot][0] for slot in head_slots])  # [C, H]
        bias = torch.cat([self._bank.heads[slot][1] for slot in head_slots])
        # One product scores every row with every head; a row needs few of its scores.
        scores = torch.addmm(bias, pooled[: len(rows)].float(), weight.t())  # [R, C]
        return scores.view(-1)[indices]

    @torch.inference_mode()
    def prepare(self, max_tokens: int, max_rows: int, longest: int) -> int:
        """Record a pass of every shape that such batches need; return the number of records."""
        if self._graphs is None:
            return 0
        needed = BatchShape(max_tokens, max_rows, longest)
        largest = first_fitting(self._shapes, needed) or self._shapes[-1]
        rows = [TokenizedRow([0], [0], truncated=False)]
        for shape in reversed(self._shapes):
            if shape.tokens <= largest.tokens and shape.longest <= largest.longest:
                encoded = encode_batch(rows, shape, extra=[self._vector_rows([0], shape.rows)])
                self._replay(_on_device(encoded.numbers, self._bank.device), shape)
        return self._graphs.num_recorded

    def _replay(self, numbers: Tensor, shape: BatchShape) -> Tensor:
        assert self._graphs is not None
        if self._generation != self._bank.generation:
            self._graphs.clear()
            self._generation = self._bank.generation
        return self._graphs.replay(numbers, shape)

    def _encode(
        self, numbers: Tensor, shape: BatchShape, slots: Sequence[int] = (), spans: _Spans = _NONE
    ) -> Tensor:
        """Compute the pooled output [P, H] from a batch's numbers and the vector rows behind them.

        Slots and their spans may be left out if no slot has matrices.
        """
        batch = decode_batch(numbers, shape, spans)
        vector_rows = numbers[shape.num_numbers :].view(len(PARAMETER_KINDS), -1)
        overlay = BankOverlay(self._bank, batch, slots, vector_rows)
        return encode(self._config, overlay, batch, VarlenAttention(batch))

    def _vector_rows(self, slots: Sequence[int], count: int) -> list[int]:
        """List each slot's row of the vector tables, kind after kind, padded to `count`."""
        filling = [0] * (count - len(slots))
        return list(chain.from_iterable(kind + filling for kind in self._bank.vector_rows(slots)))

    def _logit_indices(self, slots: Sequence[int], head_slots: Sequence[int]) -> list[int]:
        """List the flat indices of each row's logits in the scores [R, C] of all heads."""
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in head_slots))
        columns = dict(zip(head_slots, map(range, [0, *ends], ends), strict=False))
        return [row * ends[-1] + at for row, slot in enumerate(slots) for at in columns[slot]]


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy in one transfer; pinned memory lets a GPU copy without blocking this thread."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
