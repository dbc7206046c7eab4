"""A forward pass on a GPU: one copy there, one back, and nobody waits in between.

Rows lie end to end (`deltas.encoder.flat_batch`). Where none of them has matrices of its own, the pass is a
recorded one (`app.engine.cuda`); others are started kernel by kernel.

Legend: R rows, P packed rows, H hidden width, M logits of all rows, L labels of all their tasks.

CUDA graphs: passes over batches of a few sizes, each recorded once and then replayed.

A pass of a small batch is hundreds of kernels of some microseconds each; to start them one by one
from Python takes longer than to run them. A recorded pass starts them all at once. It reads and
writes the same memory each time, so batches are filled up to a size that has a record
(`deltas.encoder.flat_batch`), and their numbers are copied to where the record looks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from app.engine.bank import KINDS, Bank
from app.engine.bank_overlay import BankOverlay
from deltas import EncoderConfig, Size, encode, flatten, unflatten
from deltas.encoder.flat_batch import Rows
from deltas.encoder.packing import KeySpan
from deltas.encoder.segments import SegmentAttention

logger = logging.getLogger(__name__)

_FEWEST_TOKENS, _MOST_TOKENS = 64, 16384  # more tokens keep a GPU busy by themselves
_TOKENS_A_ROW = 16  # a batch of more rows than its tokens have room for takes a larger size
# Attention's kernels are started for rows of that length, whatever the rows are.
_LONGEST = (128, 512)
_RUNS_BEFORE = 2  # libraries set themselves up in the first ones, which can't be recorded

# What records a pass: gives a function that runs it again, and where its result lies.
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


class NotRecordedError(RuntimeError):
    """A pass that runs, but can't be recorded."""


def sizes(max_positions: int) -> list[Size]:
    """The sizes that batches are filled up to, smallest first: of tokens each a half or third more.

    Args:
        max_positions: tokens that the encoder takes in a row, at most.
    """
    powers = [1 << bits for bits in range(_FEWEST_TOKENS.bit_length() - 1, 15)]
    counts = sorted({*powers, *(power * 3 // 2 for power in powers)})
    found = {
        Size(count, count // _TOKENS_A_ROW, min(longest, max_positions, count))
        for count in counts
        if count <= _MOST_TOKENS
        for longest in _LONGEST
    }
    return sorted(found)


def fitting(among: Sequence[Size], needed: Size) -> Size | None:
    """The first of the sizes that fits; None if there is none."""
    return next((size for size in among if size.fits(needed)), None)


@dataclass(frozen=True)
class _Record:
    """A recorded pass: copy numbers to `numbers`, call `replay`, and read `result`."""

    numbers: Tensor
    replay: Callable[[], None]
    result: Tensor


class Graphs:
    """Recorded passes, by size. From one thread at a time, on one stream.

    Args:
        run: a pass, from a batch's numbers (int64, on the device) and size to its result; waits for
            nothing and reads nothing else that changes its place.
        new_recorder: makes what records them.
    """

    def __init__(
        self, run: Callable[[Tensor, Size], Tensor], new_recorder: Callable[[], Recorder]
    ) -> None:
        self._run = run
        self._new_recorder = new_recorder
        self._record = new_recorder()
        self._records: dict[Size, _Record | None] = {}  # None: there is no memory for it
        self._gave_up = False

    @property
    def num_recorded(self) -> int:
        """How many sizes have a record."""
        return sum(record is not None for record in self._records.values())

    def run(self, numbers: Tensor, size: Size) -> Tensor:
        """Run a pass; its result is good until the next pass of any size.

        A size that comes for the first time is recorded, which takes as long as some passes. A pass
        that can't be recorded is run as it is, now and later.
        """
        if size not in self._records and not self._gave_up:
            self._try_to_record(numbers, size)
        record = self._records.get(size)
        if record is None:
            return self._run(numbers, size)
        record.numbers.copy_(numbers)
        record.replay()
        return record.result

    def forget(self) -> None:
        """Record anew what comes next, since something that passes read has moved."""
        self._records.clear()
        self._record = self._new_recorder()  # the memory of what was recorded goes with it

    def _try_to_record(self, numbers: Tensor, size: Size) -> None:
        own = numbers.clone()
        try:
            self._records[size] = _Record(own, *self._record(partial(self._run, own, size)))
        except torch.OutOfMemoryError as error:
            self._records[size] = None
            logger.warning("no memory to record passes of %d tokens: %s", size.tokens, error)
        except NotRecordedError:
            self.forget()
            self._gave_up = True
            logger.warning("passes are not recorded, and take longer", exc_info=True)


def cuda_recorder() -> Recorder:
    """Records CUDA graphs on one stream, in one pool of memory: one is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()
    # One for all: the libraries keep tens of MB for each stream that they have seen.
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                for _ in range(_RUNS_BEFORE):
                    run()
            graph = torch.cuda.CUDAGraph()
            result = _captured(run, graph, pool, stream)
        finally:
            torch.cuda.set_stream(current)  # a capture that fails may not have left its own
            current.wait_stream(stream)
        return graph.replay, result

    return record


def _captured(
    run: Callable[[], Tensor],
    graph: torch.cuda.CUDAGraph,
    pool: Any,
    stream: torch.cuda.Stream,
) -> Tensor:
    try:
        # Other threads may use the device meanwhile: only this one is watched.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            return run()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise NotRecordedError(str(error)) from error


class CudaForward:
    """Passes on a GPU; from one thread at a time.

    Args:
        config: sizes of the encoder.
        bank: on that device.
        new_recorder: makes what records passes; None runs each as it is.
    """

    def __init__(
        self,
        config: EncoderConfig,
        bank: Bank,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self._config = config
        self._bank = bank
        self._sizes = sizes(config.max_positions) if new_recorder else []
        self._graphs = Graphs(self._encode, new_recorder) if new_recorder else None
        self._moves = bank.moves

    def run(self, tokens: Rows, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits; see `app.engine.engine.Forward`."""
        if int8:
            raise ValueError("int8 is for CPUs")
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in slots))
        logits = self.begin(tokens, slots).tolist()  # the only place that waits
        return [logits[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.inference_mode()
    def begin(self, tokens: Rows, slots: Sequence[int]) -> Tensor:
        """Start a pass, and wait for nothing.

        Returns:
            float32 [M] on the device: the logits of all rows, one row's after the other's.
        """
        own = self._bank.matrix_slots.intersection(slots)
        size = None if own else fitting(self._sizes, Size.of(tokens))
        with_heads = list(dict.fromkeys(slots))
        lines = self._lines(slots, size.rows if size else len(tokens))
        keys = [slot if slot in own else 0 for slot in slots]
        flat = flatten(tokens, size, keys, (lines, self._places(slots, with_heads)))
        numbers = _on_device(flat.numbers, self._bank.device)
        of_pass, places = numbers.tensor_split([flat.size.num_numbers + len(lines)])
        if size is None:
            pooled = self._encode(of_pass, flat.size, slots, flat.spans)
        else:
            pooled = self._encode_recorded(of_pass, size)
        weight = torch.cat([self._bank.heads[slot][0] for slot in with_heads])  # [L, H]
        bias = torch.cat([self._bank.heads[slot][1] for slot in with_heads])
        # Every row with every label is one product; most rows need a few of their numbers.
        scores = torch.addmm(bias, pooled[: len(tokens)].float(), weight.t())  # [R, L]
        return scores.view(-1)[places]

    @torch.inference_mode()
    def prepare(self, needed: Size) -> int:
        """Record passes for all batches that need no more than that; returns how many there are."""
        if self._graphs is None:
            return 0
        most = fitting(self._sizes, needed) or self._sizes[-1]
        for size in reversed(self._sizes):
            if size.tokens <= most.tokens and size.longest <= most.longest:
                flat = flatten([([0], [0])], size, along=[self._lines([0], size.rows)])
                self._encode_recorded(_on_device(flat.numbers, self._bank.device), size)
        return self._graphs.num_recorded

    def _encode_recorded(self, numbers: Tensor, size: Size) -> Tensor:
        assert self._graphs is not None
        if self._moves != self._bank.moves:
            self._graphs.forget()
            self._moves = self._bank.moves
        return self._graphs.run(numbers, size)

    def _encode(
        self,
        numbers: Tensor,
        size: Size,
        slots: Sequence[int] = (),
        spans: dict[int, KeySpan] | None = None,
    ) -> Tensor:
        """A pass: [P, H], the input's rows first. What it is made of are the size and the slots.

        Args:
            numbers: of the batch, and of each packed row its lines in the bank's vectors.
            size: of the batch.
            slots: of each row; may be left out if all have nothing but vectors.
            spans: where rows of slots lie that have more.
        """
        batch = unflatten(numbers, size, spans)
        lines = numbers[size.num_numbers :].view(len(KINDS), -1)
        overlay = BankOverlay(self._bank, batch, slots, lines)
        return encode(self._config, overlay, batch, SegmentAttention(batch))

    def _lines(self, slots: Sequence[int], count: int) -> list[int]:
        """Each row's lines in the bank's vectors, kind after kind, filled up to so many rows."""
        filling = [0] * (count - len(slots))
        return list(chain.from_iterable(kind + filling for kind in self._bank.lines_of(slots)))

    def _places(self, slots: Sequence[int], with_heads: Sequence[int]) -> list[int]:
        """Where each logit of each row is in the scores of all rows with all heads' labels."""
        counts = [len(self._bank.heads[slot][1]) for slot in with_heads]
        first = dict(zip(with_heads, accumulate(counts, initial=0), strict=False))
        count = dict(zip(with_heads, counts, strict=True))
        labels = sum(counts)
        places: list[int] = []
        for row, slot in enumerate(slots):
            start = row * labels + first[slot]
            places += range(start, start + count[slot])
        return places


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """In one copy, which on a GPU nobody waits for."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
