"""CUDA graphs: passes over batches of a few sizes, each recorded once and then replayed.

A pass of a small batch is a hundred kernels of some microseconds each; to start them one by one
from Python takes longer than to run them. A recorded pass starts them all at once. It reads and
writes the same memory each time, so batches are filled up to a size that has a record
(`deltas.flat_batch`), and their numbers are copied to where the record looks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from deltas import Size

logger = logging.getLogger(__name__)

_LARGEST = 16384  # tokens: larger batches keep a GPU busy by themselves
_SMALLEST = 64
_TOKENS_A_ROW = 8  # a batch with more rows than that for its tokens takes a larger size
_RUNS_BEFORE = 2  # libraries set themselves up in the first ones, which can't be recorded

Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def sizes(most: int = _LARGEST) -> list[Size]:
    """The sizes that batches are filled up to: a half more tokens in turn, or a third."""
    powers = [1 << bits for bits in range(_SMALLEST.bit_length() - 1, most.bit_length())]
    tokens = sorted({*powers, *(power * 3 // 2 for power in powers)})
    return [Size(count, count // _TOKENS_A_ROW) for count in tokens if count <= most]


def fitting_size(tokens: int, rows: int) -> Size | None:
    """The smallest of the sizes that so many tokens and rows fit in; None if they fit in none."""
    return next((size for size in sizes() if tokens <= size.tokens and rows <= size.rows), None)


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
        record: what records one.
    """

    def __init__(self, run: Callable[[Tensor, Size], Tensor], record: Recorder) -> None:
        self._run = run
        self._record = record
        self._records: dict[Size, _Record] = {}
        self._can_record = True

    def run(self, numbers: Tensor, size: Size) -> Tensor:
        """Run a pass; the result is overwritten by the next one of that size.

        A size that comes for the first time is recorded, which takes as long as some passes. Where
        that fails every pass is run as it is from then on.
        """
        if size not in self._records and self._can_record:
            try:
                self._records[size] = self._recorded(numbers, size)
            except RuntimeError as error:
                self._can_record = False
                logger.warning("passes are not recorded as CUDA graphs, and slower: %s", error)
        record = self._records.get(size)
        if record is None:
            return self._run(numbers, size)
        record.numbers.copy_(numbers)
        record.replay()
        return record.result

    def forget(self) -> None:
        """Record anew what comes next, since something that passes read has moved."""
        self._records.clear()

    def _recorded(self, numbers: Tensor, size: Size) -> _Record:
        own = numbers.clone()
        return _Record(own, *self._record(partial(self._run, own, size)))


def cuda_recorder() -> Recorder:
    """Records CUDA graphs, all in one pool of memory, since only one is replayed at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile: only this one is watched.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = run()
        return graph.replay, result

    return record
