"""Recorded passes: which sizes there are, and that a record reads each batch's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from app.graphs import Graphs, NotRecordedError, cuda_recorder, fitting, sizes
from deltas import Size

SMALL, LARGE = Size(2, 1, 2), Size(3, 1, 3)


class Recorder:
    """What CUDA does, in Python: a replay reads and writes the memory that was recorded."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.times += 1
        result = run()

        def replay() -> None:
            result.copy_(run())

        return replay, result


def doubled(numbers: Tensor, size: Size) -> Tensor:
    assert len(numbers) == size.tokens
    return 2.0 * numbers


def check(graphs: Graphs, *in_turn: Size, start: int = 0) -> None:
    """Passes of these sizes give what they should."""
    for size in in_turn:
        numbers = torch.arange(start, start + size.tokens)
        assert graphs.run(numbers, size).tolist() == (2.0 * numbers).tolist()


def test_sizes_grow_by_a_half_at_most() -> None:
    found = sorted({size.tokens for size in sizes(512)})
    assert found[:6] == [64, 96, 128, 192, 256, 384]
    assert found[-1] == 16384
    assert all(size < after <= 1.5 * size for size, after in pairwise(found))


def test_long_rows_have_sizes_of_their_own() -> None:
    """Attention's kernels are started for the longest row that there may be."""
    assert [size.longest for size in sizes(512) if size.tokens == 64] == [64]
    assert [size.longest for size in sizes(512) if size.tokens == 256] == [128, 256]
    assert [size.longest for size in sizes(512) if size.tokens == 4096] == [128, 512]
    assert {size.longest for size in sizes(100)} == {64, 96, 100}  # what the encoder takes


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (Size(1, 1, 1), Size(64, 4, 64)),
        (Size(64, 4, 64), Size(64, 4, 64)),
        (Size(65, 2, 40), Size(96, 6, 96)),
        (Size(64, 5, 20), Size(96, 6, 96)),  # many short rows
        (Size(300, 10, 128), Size(384, 24, 128)),
        (Size(300, 10, 129), Size(384, 24, 384)),
        (Size(4000, 100, 77), Size(4096, 256, 128)),
        (Size(4000, 100, 512), Size(4096, 256, 512)),
        (Size(16384, 1024, 512), Size(16384, 1024, 512)),
        (Size(16385, 1, 1), None),
        (Size(3000, 1025, 9), None),
        (Size(1000, 1, 513), None),
    ],
)
def test_the_smallest_size_that_fits(needed: Size, expected: Size | None) -> None:
    assert fitting(sizes(512), needed) == expected


def test_a_size_is_recorded_once_and_reads_new_numbers() -> None:
    recorder = Recorder()
    graphs = Graphs(doubled, lambda: recorder)
    for start in range(3):
        check(graphs, SMALL, LARGE, start=start)
    assert recorder.times == graphs.num_recorded == 2


def test_the_callers_numbers_stay_theirs() -> None:
    graphs = Graphs(doubled, Recorder)
    first, second = torch.tensor([1, 2]), torch.tensor([5, 6])
    graphs.run(first, SMALL)
    graphs.run(second, SMALL)
    assert first.tolist() == [1, 2]


def test_what_moved_is_recorded_anew_and_elsewhere() -> None:
    """The memory of dropped records is given back as a whole."""
    recorders: list[Recorder] = []

    def new() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    graphs = Graphs(doubled, new)
    graphs.run(torch.tensor([1, 2]), SMALL)
    graphs.forget()
    assert graphs.num_recorded == 0
    graphs.run(torch.tensor([1, 2]), SMALL)
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


def test_what_can_not_be_recorded_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """And not tried again, since it takes time; it is said once. Nothing recorded is kept."""
    recorder = Failing(NotRecordedError("operation not permitted when stream is capturing"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, SMALL, LARGE, SMALL, LARGE)
    assert recorder.times == 2
    assert graphs.num_recorded == 0
    assert len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text


def test_a_size_without_memory_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Failing(torch.OutOfMemoryError("tried to allocate 2 GiB"))
    graphs = Graphs(doubled, lambda: recorder)
    check(graphs, LARGE, SMALL, LARGE, SMALL)
    assert recorder.times == 2
    assert graphs.num_recorded == 1
    assert "no memory to record passes of 3 tokens: tried to allocate 2 GiB" in caplog.text


def test_a_pass_that_fails_is_no_failure_to_record() -> None:
    def broken(numbers: Tensor, size: Size) -> Tensor:
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError, match="index out of range"):
        Graphs(broken, Recorder).run(torch.tensor([1, 2]), SMALL)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays_what_was_recorded() -> None:
    """Sizes in turn, which share memory; and anew, after all was forgotten."""
    weight = torch.randn(64, 64, device="cuda")

    def multiplied(numbers: Tensor, size: Size) -> Tensor:
        return numbers.float().view(-1, 64) @ weight

    graphs = Graphs(multiplied, cuda_recorder)
    with torch.inference_mode():
        for again in range(2):
            for start in range(3):
                for tokens in (640, 64, 6400):
                    numbers = torch.arange(start, start + tokens, device="cuda")
                    found = graphs.run(numbers, Size(tokens, 1, 1)).clone()
                    torch.testing.assert_close(found, multiplied(numbers, SMALL))
            assert graphs.num_recorded == 3, again
            graphs.forget()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_goes_on_after_a_pass_that_can_not_be_recorded() -> None:
    """This one waits, which a recording can't."""

    def waits(numbers: Tensor, size: Size) -> Tensor:
        return numbers * float(numbers.sum().item())

    stream = torch.cuda.current_stream()
    graphs = Graphs(waits, cuda_recorder)
    numbers = torch.arange(3, device="cuda")
    with torch.inference_mode():
        for _ in range(2):
            assert graphs.run(numbers, LARGE).tolist() == [0.0, 3.0, 6.0]
    assert graphs.num_recorded == 0
    assert torch.cuda.current_stream() == stream
