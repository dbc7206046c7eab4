"""The pass that GPUs run: its answers, here on a CPU, and that it copies once and never waits."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.bank import Bank
from app.device_forward import DeviceForward, _on_device
from app.forward import HostForward
from deltas import Backbone, Delta, Size, TaskSpec
from tests.unit.test_graphs import Recorder
from tests.unit.test_packing import Copies

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
    device = DeviceForward(tiny_backbone.config, bank, (lambda: recorder) if records else None)
    host = HostForward(tiny_backbone.config, bank)
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
    device = DeviceForward(tiny_backbone.config, bank, lambda: recorder)
    host = HostForward(tiny_backbone.config, bank)
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
    device = DeviceForward(tiny_backbone.config, bank, lambda: recorder)
    made = device.prepare(most)
    assert made == recorder.times > 0
    for tokens in (1, most.tokens // 3, most.tokens):
        for rows in (1, most.rows // 2, most.rows):
            rows = max(min(rows, tokens), -(-tokens // most.longest))  # each has some tokens
            lengths = [tokens // rows + (row < tokens % rows) for row in range(rows)]
            device.run([([1] * length, [0] * length) for length in lengths], [1] * rows)
    assert recorder.times == made
    assert DeviceForward(tiny_backbone.config, bank).prepare(most) == 0


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
    device = DeviceForward(tiny_backbone.config, bank, Recorder if records else None)
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
    found = DeviceForward(tiny_backbone.config, bank).run(rows, slots)
    with torch.inference_mode():
        wanted = HostForward(tiny_backbone.config, bank).run(rows, slots)
    assert [len(logits) for logits in found] == [{1: 300, 2: 2}[slot] for slot in slots]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_int8_is_for_cpus(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    device = DeviceForward(tiny_backbone.config, bank_of(tiny_backbone, deltas))
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        device.run([([1], [0])], [1], int8=True)
