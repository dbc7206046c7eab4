"""CUDA graphs: passes over batches of a few sizes, each recorded once and then replayed.

A pass of a small batch is hundreds of kernels of some microseconds each; to start them one by one
from Python takes longer than to run them. A recorded pass starts them all at once. It reads and
writes the same memory each time, so batches are filled up to a size that has a record
(`deltas.flat_batch`), and their numbers are copied to where the record looks for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from deltas import Size

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
