"""Records the pass of each batch shape once and replays it, as CUDA graphs do."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from app.engine.cuda.batch import BatchShape

logger = logging.getLogger(__name__)

_RUNS_BEFORE_RECORDING = 2  # the first runs set libraries up, which cannot be recorded

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
