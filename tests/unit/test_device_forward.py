"""The pass that GPUs run: its answers, here on a CPU, and that it copies once and never waits."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from app.bank import Bank
from app.device_forward import DeviceForward
from app.forward import HostForward
from deltas import Backbone, Delta, TaskSpec
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
    recorder = Recorder()
    device = DeviceForward(tiny_backbone.config, bank, recorder if records else None)
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
    recorder = Recorder()
    device = DeviceForward(tiny_backbone.config, bank, recorder)
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


def test_all_sizes_are_recorded_before_rows_come(
    tiny_backbone: Backbone, deltas: list[Delta]
) -> None:
    bank = bank_of(tiny_backbone, deltas)
    recorder = Recorder()
    device = DeviceForward(tiny_backbone.config, bank, recorder)
    assert device.prepare(300) == recorder.times == 5
    with torch.inference_mode():
        for count in (1, 5, 12):
            device.run(*some_rows(bank, count, count, plain(bank)))
    assert recorder.times == 5
    assert DeviceForward(tiny_backbone.config, bank).prepare(300) == 0


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_copy_brings_a_batch_there_and_nothing_waits(
    tiny_backbone: Backbone, deltas: list[Delta], records: bool, which: str, dtype: torch.dtype
) -> None:
    """On a device that holds no values: whatever waited for one would fail."""
    bank = Bank(tiny_backbone, torch.device("meta"), dtype)
    bank.add(deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    device = DeviceForward(tiny_backbone.config, bank, Recorder() if records else None)
    rows, chosen = some_rows(bank, 1, 60, slots)
    with torch.inference_mode(), Copies() as copies:
        logits = device.begin(rows, chosen)
    assert copies.count == 1
    assert logits.shape == (sum(len(bank.heads[slot][1]) for slot in chosen),)
    assert (logits.dtype, logits.device.type) == (torch.float32, "meta")


def test_int8_is_for_cpus(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    device = DeviceForward(tiny_backbone.config, bank_of(tiny_backbone, deltas))
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        device.run([([1], [0])], [1], int8=True)
