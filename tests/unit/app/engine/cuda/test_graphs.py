"""Recorded passes: made once for each shape, made again after they were cleared.

Tests marked `gpu` need a device. The others replace the recorder.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from app.engine.cuda.batch import BatchShape
from app.engine.cuda.graphs import Graphs, NotRecordedError, cuda_recorder

SMALL, LARGE = BatchShape(2, 1, 2), BatchShape(3, 1, 3)


class Recorder:
    """Replays in Python: like CUDA, a replay reads and writes the recorded memory."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.times += 1
        result = run()

        def replay() -> None:
            result.copy_(run())

        return replay, result


def doubled(numbers: Tensor, shape: BatchShape) -> Tensor:
    assert len(numbers) == shape.tokens
    return 2.0 * numbers


def check(graphs: Graphs, *in_turn: BatchShape, start: int = 0) -> None:
    """Check the results of passes of these shapes."""
    for size in in_turn:
        numbers = torch.arange(start, start + size.tokens)
        assert graphs.replay(numbers, size).tolist() == (2.0 * numbers).tolist()


def test_a_shape_is_recorded_once_and_reads_new_numbers() -> None:
    recorder = Recorder()
    graphs = Graphs(doubled, lambda: recorder)
    for start in range(3):
        check(graphs, SMALL, LARGE, start=start)
    assert recorder.times == graphs.num_recorded == 2


def test_recording_does_not_keep_the_callers_numbers() -> None:
    graphs = Graphs(doubled, Recorder)
    first, second = torch.tensor([1, 2]), torch.tensor([5, 6])
    graphs.replay(first, SMALL)
    graphs.replay(second, SMALL)
    assert first.tolist() == [1, 2]


def test_cleared_records_are_made_again_in_new_memory() -> None:
    """The memory of all dropped records is freed together."""
    recorders: list[Recorder] = []

    def new() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    graphs = Graphs(doubled, new)
    graphs.replay(torch.tensor([1, 2]), SMALL)
    graphs.clear()
    assert graphs.num_recorded == 0
    graphs.replay(torch.tensor([1, 2]), SMALL)
    assert [recorder.times for recorder in recorders] == [1, 1]


class Failing(Recorder):
    """Records small sizes, but no large one."""

    def __init__(self, error: RuntimeError) -> None:
        super().__init__()
        self._error = error

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if len(run()) > SMALL.tokens:
            self.times += 1
            raise self._error
        return super().__call__(run)


def test_a_pass_that_cannot_be_recorded_is_computed_without_a_record(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Recording is not tried again; one warning is logged; no record is kept."""
    recorder = Failing(NotRecordedError("operation not permitted when stream is capturing"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, SMALL, LARGE, SMALL, LARGE)
    assert recorder.times == 2
    assert graphs.num_recorded == 0
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text


def test_a_shape_without_memory_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Failing(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, LARGE, SMALL, LARGE, SMALL)
    assert recorder.times == 2
    assert graphs.num_recorded == 1
    assert "no memory to record passes of 3 tokens: tried to allocate 2 GiB" in caplog.text


def test_an_error_of_the_pass_itself_is_raised() -> None:
    def broken(numbers: Tensor, shape: BatchShape) -> Tensor:
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError, match="index out of range"):
        Graphs(broken, Recorder).replay(torch.tensor([1, 2]), SMALL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays_what_was_recorded() -> None:
    """Shapes share memory; all are recorded again after they were cleared."""
    weight = torch.randn(64, 64, device="cuda")

    def multiplied(numbers: Tensor, shape: BatchShape) -> Tensor:
        return numbers.float().view(-1, 64) @ weight

    graphs = Graphs(multiplied, cuda_recorder)
    with torch.inference_mode():
        for again in range(2):
            for start in range(3):
                for tokens in (640, 64, 6400):
                    numbers = torch.arange(start, start + tokens, device="cuda")
                    found = graphs.replay(numbers, BatchShape(tokens, 1, 1)).clone()
                    torch.testing.assert_close(found, multiplied(numbers, SMALL))
            assert graphs.num_recorded == 3, again
            graphs.clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_goes_on_after_a_pass_that_cannot_be_recorded() -> None:
    """The pass waits for the device, which a capture forbids."""

    def waits(numbers: Tensor, shape: BatchShape) -> Tensor:
        return numbers * float(numbers.sum().item())

    stream = torch.cuda.current_stream()
    graphs = Graphs(waits, cuda_recorder)
    numbers = torch.arange(3, device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            assert graphs.replay(numbers, LARGE).tolist() == [0.0, 3.0, 6.0]
    assert graphs.num_recorded == 0
    assert torch.cuda.current_stream() == stream
