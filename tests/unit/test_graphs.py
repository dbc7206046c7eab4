"""Recorded passes: which sizes there are, and that a record reads each batch's own numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from app.graphs import Graphs, cuda_recorder, fitting_size, sizes
from deltas import Size


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


def test_sizes_grow_by_a_half_at_most() -> None:
    found = [size.tokens for size in sizes()]
    assert found[:6] == [64, 96, 128, 192, 256, 384]
    assert found[-1] == 16384
    assert all(size < after <= 1.5 * size for size, after in pairwise(found))
    assert sizes(500) == [size for size in sizes() if size.tokens <= 500]


@pytest.mark.parametrize(
    ("tokens", "rows", "expected"),
    [
        (1, 1, Size(64, 8)),
        (64, 8, Size(64, 8)),
        (65, 2, Size(96, 12)),
        (64, 9, Size(96, 12)),  # many short rows
        (4000, 100, Size(4096, 512)),
        (16384, 1, Size(16384, 2048)),
        (16385, 1, None),
        (3000, 2049, None),
    ],
)
def test_the_smallest_size_that_fits(tokens: int, rows: int, expected: Size | None) -> None:
    assert fitting_size(tokens, rows) == expected


def test_a_size_is_recorded_once_and_reads_new_numbers() -> None:
    recorder = Recorder()
    graphs = Graphs(doubled, recorder)
    for size in (Size(2, 1), Size(3, 1)):
        for start in range(3):
            numbers = torch.arange(start, start + size.tokens)
            assert graphs.run(numbers, size).tolist() == (2.0 * numbers).tolist()
    assert recorder.times == 2


def test_the_callers_numbers_stay_theirs() -> None:
    graphs = Graphs(doubled, Recorder())
    first, second = torch.tensor([1, 2]), torch.tensor([5, 6])
    graphs.run(first, Size(2, 1))
    graphs.run(second, Size(2, 1))
    assert first.tolist() == [1, 2]


def test_what_moved_is_recorded_anew() -> None:
    recorder = Recorder()
    graphs = Graphs(doubled, recorder)
    graphs.run(torch.tensor([1, 2]), Size(2, 1))
    graphs.forget()
    graphs.run(torch.tensor([1, 2]), Size(2, 1))
    assert recorder.times == 2


def test_what_can_not_be_recorded_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """And tried once only, since it takes time; it is said once."""
    tried = []

    def fail(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = Graphs(doubled, fail)
    for tokens in (2, 3):
        numbers = torch.arange(tokens)
        assert graphs.run(numbers, Size(tokens, 1)).tolist() == (2.0 * numbers).tolist()
    assert len(tried) == len(caplog.records) == 1
    assert "not permitted when stream is capturing" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays_what_was_recorded() -> None:
    graphs = Graphs(doubled, cuda_recorder())
    with torch.inference_mode():
        for size in (Size(4, 1), Size(2, 1)):
            for start in range(3):
                numbers = torch.arange(start, start + size.tokens, device="cuda")
                assert graphs.run(numbers, size).tolist() == (2.0 * numbers).tolist()
    assert graphs._can_record
