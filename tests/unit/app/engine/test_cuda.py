"""The pass that GPUs run: its answers, here on a CPU, and that it copies once and never waits.

Recorded passes: which sizes there are, and that a record reads each batch's own numbers.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.bank import Bank
from app.engine.cpu import CpuForward
from app.engine.cuda import (
    CudaForward,
    Graphs,
    NotRecordedError,
    _on_device,
    cuda_recorder,
    fitting,
    sizes,
)
from deltas import Backbone, Delta, Size, TaskSpec
from tests.unit.deltas.encoder.test_packing import Copies

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


STRATEGIES = ("head", "bitfit", "layernorm", "random:0.05", "top:1", "params:embeddings")
PLAIN = 3  # so many of these have nothing but vectors
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deltas(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> list[Delta]:
    """Every task with every strategy, those with vectors alone first: heads of all widths."""
    return [
        make_delta(tiny_backbone, task, strategy)
        for strategy in STRATEGIES
        for task in toy_tasks.values()
    ]


class Fixed(Recorder):
    """One whose records, like CUDA's, know where the bank's tables were."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self._bank = bank

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, result = super().__call__(run)
        places = self._places()

        def replay_there() -> None:
            assert places == self._places(), "the bank's tables have moved"
            replay()

        return replay_there, result

    def _places(self) -> list[int]:
        return [t.data_ptr() for lines in self._bank.lines.values() for t in lines.room.values()]


def bank_of(backbone: Backbone, deltas: list[Delta], device: torch.device = CPU) -> Bank:
    bank = Bank(backbone, device, torch.float32)
    bank.add(deltas)
    return bank


def some_rows(bank: Bank, seed: int, count: int, slots: range) -> tuple[Any, list[int]]:
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = draw.randrange(1, 20)
        rows.append(([draw.randrange(101) for _ in range(length)], [0, *[1] * (length - 1)]))
    return rows, [draw.choice(slots) for _ in range(count)]


def plain(bank: Bank) -> range:
    """Slots with nothing but vectors."""
    slots = range(1, 1 + bank.num_slots // len(STRATEGIES) * PLAIN)
    assert bank.matrix_slots.isdisjoint(slots)
    return slots


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_answers_are_those_of_the_other_pass(
    tiny_backbone: Backbone, deltas: list[Delta], records: bool, which: str, count: int
) -> None:
    """Also from the record, which the first batch of a size makes."""
    bank = bank_of(tiny_backbone, deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, (lambda: recorder) if records else None)
    host = CpuForward(tiny_backbone.config, bank)
    with torch.inference_mode():
        for seed in range(3):
            rows, chosen = some_rows(bank, seed, count, slots)
            found, wanted = device.run(rows, chosen), host.run(rows, chosen)
            for mine, theirs in zip(found, wanted, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5)
    if which == "plain":
        assert bool(recorder.times) == records


def test_a_record_serves_other_deltas_too(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    """Also one that takes over a slot's lines; nothing is recorded anew until tables move."""
    bank = bank_of(tiny_backbone, deltas[: 2 * PLAIN])
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    host = CpuForward(tiny_backbone.config, bank)
    rows, _ = some_rows(bank, 0, 2, range(1))

    def agree(slots: list[int]) -> bool:
        with torch.inference_mode():
            pairs = zip(device.run(rows, slots), host.run(rows, slots), strict=True)
            return all(mine == pytest.approx(theirs, abs=1e-5) for mine, theirs in pairs)

    assert agree([1, 2])
    bank.remove(1)
    (slot,) = bank.add(deltas[6:7])
    assert slot == 1
    assert agree([1, 2])
    assert recorder.times == 1
    moves = bank.moves
    while bank.moves == moves:
        bank.add(deltas[5:9])
    assert agree([bank.num_slots - 1, 1])
    assert recorder.times == 2


@pytest.mark.parametrize("most", [Size(300, 10, 32), Size(300, 100, 32), Size(90, 90, 8)])
def test_all_sizes_are_recorded_before_rows_come(
    tiny_backbone: Backbone, deltas: list[Delta], most: Size
) -> None:
    bank = bank_of(tiny_backbone, deltas)
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    made = device.prepare(most)
    assert made == recorder.times > 0
    for tokens in (1, most.tokens // 3, most.tokens):
        for rows in (1, most.rows // 2, most.rows):
            rows = max(min(rows, tokens), -(-tokens // most.longest))  # each has some tokens
            lengths = [tokens // rows + (row < tokens % rows) for row in range(rows)]
            device.run([([1] * length, [0] * length) for length in lengths], [1] * rows)
    assert recorder.times == made
    assert CudaForward(tiny_backbone.config, bank).prepare(most) == 0


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_copy_brings_a_batch_there_and_nothing_waits(
    tiny_backbone: Backbone,
    deltas: list[Delta],
    monkeypatch: pytest.MonkeyPatch,
    records: bool,
    which: str,
    dtype: torch.dtype,
) -> None:
    """On a device that holds no values: whatever waited for one would fail."""
    bank = Bank(tiny_backbone, torch.device("meta"), dtype)
    bank.add(deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    device = CudaForward(tiny_backbone.config, bank, Recorder if records else None)
    rows, chosen = some_rows(bank, 1, 60, slots)
    make = torch.tensor

    def only_here(*args: Any, device: object = "cpu", **kwargs: Any) -> torch.Tensor:
        assert str(device) == "cpu", "a copy of its own"
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", only_here)
    with Copies() as copies:
        logits = device.begin(rows, chosen)
    assert copies.count == 1
    assert logits.shape == (sum(len(bank.heads[slot][1]) for slot in chosen),)
    assert (logits.dtype, logits.device.type) == (torch.float32, "meta")


def test_a_gpu_gets_a_copy_that_nobody_waits_for() -> None:
    """Which it only is from memory that stays where it is."""
    done: list[Any] = []

    class Numbers:
        def pin_memory(self) -> Numbers:
            done.append("pinned")
            return self

        def to(self, device: Any, *, non_blocking: bool) -> str:
            done.append((device.type, non_blocking))
            return "there"

    found: Any = _on_device(Numbers(), SimpleNamespace(type="cuda"))  # type: ignore[arg-type]
    assert found == "there"
    assert done == ["pinned", ("cuda", True)]


def test_a_task_of_many_labels_mixes_with_one_of_two(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    labels = tuple(f"label{number}" for number in range(300))
    many = toy_tasks["toy2"].model_copy(update={"labels": labels})
    bank = bank_of(
        tiny_backbone,
        [make_delta(tiny_backbone, task, "head") for task in (many, toy_tasks["toy2"])],
    )
    rows, slots = some_rows(bank, 0, 9, range(1, 3))
    found = CudaForward(tiny_backbone.config, bank).run(rows, slots)
    with torch.inference_mode():
        wanted = CpuForward(tiny_backbone.config, bank).run(rows, slots)
    assert [len(logits) for logits in found] == [{1: 300, 2: 2}[slot] for slot in slots]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_int8_is_for_cpus(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    device = CudaForward(tiny_backbone.config, bank_of(tiny_backbone, deltas))
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        device.run([([1], [0])], [1], int8=True)
