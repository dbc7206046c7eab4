"""CUDA's forward pass, run on a CPU or on the meta device, where reading a value would fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from app.engine.cuda.batch import BatchShape
from app.engine.cuda.forward import CudaForward, _on_device
from deltas import Backbone, Delta, TaskSpec, TokenizedRow
from deltas.encoder.bank import Bank
from deltas.encoder.cpu import CpuForward
from tests.unit.app.engine.cuda.test_graphs import Recorder
from tests.unit.deltas.encoder.test_packing import Copies


def row_of(length: int) -> TokenizedRow:
    return TokenizedRow(list(range(1, length + 1)), [0] * length, truncated=False)


STRATEGIES = ("head", "bitfit", "layernorm", "random:0.05", "top:1", "params:embeddings")
PLAIN = 3  # the first three train only vectors
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def deltas(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> list[Delta]:
    """Every task with every strategy, those that train only vectors first; all kinds of pooling."""
    pooled = {
        "toy2": {"pooling": "mean"},
        "toy3": {"pooling": "mean", "pairs": "separate"},
        "toyreg": {"pairs": "separate"},
        "toymulti": {"pooling": "layers"},
    }
    tasks = [task.model_copy(update=pooled.get(name, {})) for name, task in toy_tasks.items()]
    return [make_delta(tiny_backbone, task, strategy) for strategy in STRATEGIES for task in tasks]


class Fixed(Recorder):
    """A recorder whose records, like CUDA's, depend on the addresses of the bank's tables."""

    def __init__(self, bank: Bank) -> None:
        super().__init__()
        self._bank = bank

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, result = super().__call__(run)
        pointers = self._pointers()

        def replay_there() -> None:
            assert pointers == self._pointers(), "the bank's tables have moved"
            replay()

        return replay_there, result

    def _pointers(self) -> list[int]:
        return [
            t.data_ptr()
            for held in self._bank.vector_tables.values()
            for t in held.capacity.values()
        ]


def add(bank: Bank, deltas: list[Delta]) -> list[int]:
    """The slots of deltas that are added to a bank."""
    return bank.add([bank.stage(delta) for delta in deltas])


def bank_of(backbone: Backbone, deltas: list[Delta], device: torch.device = CPU) -> Bank:
    bank = Bank(backbone, device, torch.float32)
    add(bank, deltas)
    return bank


def some_rows(bank: Bank, seed: int, count: int, slots: range) -> tuple[Any, list[int]]:
    draw = random.Random(seed)
    rows, chosen = [], [draw.choice(slots) for _ in range(count)]
    for slot in chosen:
        length = draw.randrange(2, 20)
        ids, types = [draw.randrange(101) for _ in range(length)], [0, *[1] * (length - 1)]
        second = draw.randrange(1, length) if slot in bank.pair_slots else None
        rows.append(TokenizedRow(ids, types, False, second))
    return rows, chosen


def plain(bank: Bank) -> range:
    """Slots that train only vectors."""
    slots = range(1, 1 + bank.num_slots // len(STRATEGIES) * PLAIN)
    assert bank.matrix_slots.isdisjoint(slots)
    return slots


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("count", [1, 7, 60])
def test_answers_equal_those_of_the_cpu_pass(
    tiny_backbone: Backbone, deltas: list[Delta], records: bool, which: str, count: int
) -> None:
    """Also when replayed; the first batch of a shape is recorded."""
    bank = bank_of(tiny_backbone, deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, (lambda: recorder) if records else None)
    host = CpuForward(tiny_backbone.config, bank)
    with torch.inference_mode():
        for seed in range(3):
            rows, chosen = some_rows(bank, seed, count, slots)
            found, wanted = device.logits(rows, chosen), host.logits(rows, chosen)
            for mine, theirs in zip(found, wanted, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5)
    if which == "plain":
        assert bool(recorder.times) == records


def test_a_record_serves_other_deltas_too(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    """Also a delta that takes over a slot's rows; passes are recorded again only if tables move."""
    deltas = [delta for delta in deltas if delta.manifest.task.pairs == "joint"]
    bank = bank_of(tiny_backbone, deltas[: 2 * PLAIN])
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    host = CpuForward(tiny_backbone.config, bank)
    rows, _ = some_rows(bank, 0, 2, range(1))

    def agree(slots: list[int]) -> bool:
        with torch.inference_mode():
            pairs = zip(device.logits(rows, slots), host.logits(rows, slots), strict=True)
            return all(mine == pytest.approx(theirs, abs=1e-5) for mine, theirs in pairs)

    assert agree([1, 2])
    bank.remove(1)
    (slot,) = add(bank, deltas[PLAIN : PLAIN + 1])
    assert slot == 1
    assert agree([1, 2])
    assert recorder.times == 1
    generation = bank.generation
    while bank.generation == generation:
        add(bank, deltas[5:9])
    assert agree([bank.num_slots - 1, 1])
    assert recorder.times == 2


@pytest.mark.parametrize(
    "most", [BatchShape(300, 10, 32), BatchShape(300, 100, 32), BatchShape(90, 90, 8)]
)
@pytest.mark.parametrize("kinds", [[1], [0, 1], [1, 2], [0, 1, 2]], ids=str)
def test_all_shapes_are_recorded_before_rows_come(
    tiny_backbone: Backbone, toy_tasks: Any, make_delta: Any, most: BatchShape, kinds: list[int]
) -> None:
    """Those with means, or with the means of every layer, only if a delta has them."""
    poolings = ("mean", "cls", "layers")
    tasks = [toy_tasks["toy2"].model_copy(update={"pooling": pooling}) for pooling in poolings]
    bank = bank_of(tiny_backbone, [make_delta(tiny_backbone, tasks[n], "bitfit") for n in kinds])
    recorder = Fixed(bank)
    device = CudaForward(tiny_backbone.config, bank, lambda: recorder)
    made = device.prepare(*most[:3])
    assert made == recorder.times > 0
    assert made % len(kinds) == 0
    for tokens in (1, most.tokens // 3, most.tokens):
        for rows in (1, most.rows // 2, most.rows):
            rows = max(min(rows, tokens), -(-tokens // most.longest))  # no row is empty
            lengths = [tokens // rows + (row < tokens % rows) for row in range(rows)]
            for slot in range(1, bank.num_slots):
                device.logits([row_of(length) for length in lengths], [slot] * rows)
    assert recorder.times == made
    assert CudaForward(tiny_backbone.config, bank).prepare(*most[:3]) == 0


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("which", ["plain", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_copies_once_and_never_waits(
    tiny_backbone: Backbone,
    deltas: list[Delta],
    monkeypatch: pytest.MonkeyPatch,
    records: bool,
    which: str,
    dtype: torch.dtype,
) -> None:
    """The meta device holds no values, so that waiting for one would fail."""
    bank = Bank(tiny_backbone, torch.device("meta"), dtype)
    add(bank, deltas)
    slots = plain(bank) if which == "plain" else range(1, bank.num_slots)
    device = CudaForward(tiny_backbone.config, bank, Recorder if records else None)
    rows, chosen = some_rows(bank, 1, 60, slots)
    make = torch.tensor

    def only_here(*args: Any, device: object = "cpu", **kwargs: Any) -> torch.Tensor:
        assert str(device) == "cpu", "another copy"
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", only_here)
    with Copies() as copies:
        logits = device.start(rows, chosen)
    assert copies.count == 1
    assert logits.shape == (sum(len(bank.heads[slot][1]) for slot in chosen),)
    assert (logits.dtype, logits.device.type) == (torch.float32, "meta")


def test_a_gpu_copies_from_pinned_memory_without_blocking() -> None:
    """Only pinned memory can be copied asynchronously."""
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
    found = CudaForward(tiny_backbone.config, bank).logits(rows, slots)
    with torch.inference_mode():
        wanted = CpuForward(tiny_backbone.config, bank).logits(rows, slots)
    assert [len(logits) for logits in found] == [{1: 300, 2: 2}[slot] for slot in slots]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)


def test_int8_is_for_cpus(tiny_backbone: Backbone, deltas: list[Delta]) -> None:
    device = CudaForward(tiny_backbone.config, bank_of(tiny_backbone, deltas))
    with pytest.raises(ValueError, match="int8 is for CPUs"):
        device.logits([row_of(1)], [1], int8=True)
