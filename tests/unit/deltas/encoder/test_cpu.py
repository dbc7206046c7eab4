"""Shows that rows share a pass of the encoder where they see equal values, and only there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deltas import Backbone, TaskSpec, TokenizedRow
from deltas.encoder import cpu
from deltas.encoder.bank import Bank
from deltas.encoder.cpu import CpuForward
from deltas.encoder.packing import pack
from deltas.kernels.epilogue import apply_epilogue
from tests.factories import POOLED_TASKS, TOY_TASKS, make_delta

ROW = TokenizedRow([2, 30, 31, 32, 3], [0, 0, 0, 0, 0], truncated=False)
OTHER = TokenizedRow([2, 30, 31, 33, 3], [0, 0, 0, 0, 0], truncated=False)
AS_PAIR = TokenizedRow([2, 30, 31, 32, 3], [0, 0, 0, 1, 1], truncated=False)
SPLIT = TokenizedRow([2, 30, 3, 2, 30, 3], [0] * 6, truncated=False, second_start=3)
STRATEGIES = ("head", "bitfit", "layernorm", "random:0.05", "top:1")


@pytest.fixture(scope="module")
def slots(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec]) -> dict[str, int]:
    """The slot of each delta below, by name, in the order in which `forward` adds them."""
    del tiny_backbone, toy_tasks
    return {name: number for number, name in enumerate(_deltas(), 1)}


def _deltas() -> dict[str, tuple[TaskSpec, str]]:
    toy, other = TOY_TASKS["toy2"], TOY_TASKS["toy68"]
    made = {strategy: (toy, strategy) for strategy in STRATEGIES}
    return made | {
        "another head": (other, "head"),
        "mean": (POOLED_TASKS["toymean"], "head"),
        "pairs": (POOLED_TASKS["toysplit"], "head"),
    }


@pytest.fixture(scope="module")
def bank(tiny_backbone: Backbone) -> Bank:
    """A bank with a delta of each strategy, and heads of each kind."""
    bank = Bank(tiny_backbone, torch.device("cpu"), torch.float32)
    made = [make_delta(tiny_backbone, *given) for given in _deltas().values()]
    bank.add([bank.stage(delta) for delta in made])
    return bank


@pytest.fixture
def forward(tiny_backbone: Backbone, bank: Bank) -> CpuForward:
    return CpuForward(tiny_backbone.config, bank)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Sequences that are packed, and passes after products, by what they add."""
    counts: Counter[str] = Counter()

    def counted_pack(sequences: Any, **named: Any) -> Any:
        counts["sequences"] += len(sequences)
        return pack(sequences, **named)

    def counted_epilogue(product: Any, output: Any, **steps: Any) -> None:
        norm = steps.get("norm")
        vectors = [steps.get("bias"), *([norm.scale, norm.shift] if norm else [])]
        is_own = any(vector is not None and vector.row_of.any() for vector in vectors)
        counts["passes"] += 1
        counts["passes with own vectors"] += is_own
        counts["passes with sparse values"] += product.correction is not None
        apply_epilogue(product, output, **steps)

    monkeypatch.setattr(cpu, "pack", counted_pack)
    monkeypatch.setattr(cpu, "apply_epilogue", counted_epilogue)
    return counts


@pytest.mark.parametrize(
    ("asked", "num_sequences"),
    [
        ([("head", ROW), ("another head", ROW)], 1),
        ([("bitfit", ROW), ("bitfit", ROW)], 1),
        ([("head", ROW), ("head", OTHER)], 2),
        ([("head", ROW), ("head", AS_PAIR)], 2),
        ([("head", ROW), ("mean", ROW)], 2),
        ([("head", ROW), ("bitfit", ROW)], 2),
        ([("bitfit", ROW), ("layernorm", ROW), ("random:0.05", ROW), ("top:1", ROW)], 4),
        ([("pairs", SPLIT)], 1),
        ([("pairs", SPLIT), ("mean", ROW), ("pairs", SPLIT), ("head", ROW)], 3),
        ([(name, ROW) for name in (*STRATEGIES, "another head", "mean") for _ in range(3)], 6),
    ],
)
def test_peers_row_38_equal_sequences_that_see_equal_values_run_once(
    forward: CpuForward,
    slots: dict[str, int],
    work: Counter[str],
    asked: list[tuple[str, TokenizedRow]],
    num_sequences: int,
) -> None:
    rows, of_rows = [row for _, row in asked], [slots[name] for name, _ in asked]
    alone = [forward.logits([row], [slot])[0] for row, slot in zip(rows, of_rows, strict=True)]
    work.clear()
    together = forward.logits(rows, of_rows)
    assert work["sequences"] == num_sequences
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_peers_row_40_a_head_takes_the_bare_backbones_pass(
    forward: CpuForward, slots: dict[str, int], work: Counter[str]
) -> None:
    """Other deltas in the bank add nothing to it: no step, no gathered vector, no sparse value."""

    def work_of(compute: Callable[[], object]) -> Counter[str]:
        work.clear()
        compute()
        return +work

    bare = work_of(lambda: forward.pooled([ROW, OTHER], [0, 0]))
    assert bare.keys() == {"sequences", "passes"}
    heads = [slots["head"], slots["another head"]]
    assert work_of(lambda: forward.logits([ROW, OTHER], heads)) == bare
    trained = work_of(lambda: forward.logits([ROW, OTHER], [slots["bitfit"]] * 2))
    assert trained == bare + Counter({"passes with own vectors": trained["passes"]})
    sparse = work_of(lambda: forward.logits([ROW, OTHER], [slots["random:0.05"]] * 2))
    assert sparse["passes with sparse values"] > 0
