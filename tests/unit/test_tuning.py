"""Choosing threads and tokens by measurement: what is chosen from which speeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from app.engine import Engine, EngineRow
from app.main import warm_up
from app.settings import Settings
from app.tuning import BUDGETS, DEFAULT_BUDGET, best_of, choose_budget, choose_threads
from deltas import Backbone, Store, pack, packed_sizes


def test_the_smallest_nearly_fastest_budget_is_chosen() -> None:
    speeds = {512: 100_000, 1024: 150_000, 2048: 198_000, 4096: 200_000, 8192: 201_000}
    choice = choose_budget(lambda tokens: tokens / speeds[tokens], tuple(speeds))
    assert choice.value == 2048
    assert choice.tokens_per_s == pytest.approx(speeds)


def test_batches_that_take_too_long_are_not_even_tried_further() -> None:
    tried = []

    def seconds(tokens: int) -> float:
        tried.append(tokens)
        return tokens / 5_000  # every batch is equally efficient, and slow

    choice = choose_budget(seconds, (512, 1024, 2048, 4096))
    assert choice.value == 512
    assert set(tried) == {512, 1024, 2048}  # 2048 took 0.41 s


def test_a_slow_machine_still_gets_a_budget() -> None:
    assert choose_budget(lambda tokens: tokens / 10.0).value == BUDGETS[0]


def test_the_fewest_nearly_fastest_threads_are_chosen() -> None:
    seconds = {1: 1.0, 2: 0.5, 4: 0.3, 8: 0.29, 16: 0.6}
    choice = choose_threads(seconds.__getitem__, 1000, 16)
    assert choice.value == 4
    assert sorted(choice.tokens_per_s) == [1, 2, 4, 8, 16]
    assert str(choice).startswith("4 (tokens/s with 1: 1,000, 2: 2,000, ")


@pytest.mark.parametrize("cpus", [1, 2, 3, 6, 12])
def test_all_processors_are_among_the_candidates(cpus: int) -> None:
    assert choose_threads(lambda count: 1.0 / count, 1, cpus).value == cpus


def test_the_first_run_and_disturbed_ones_do_not_count() -> None:
    seconds = iter([0.001, 5.0, 2.0])
    assert best_of(lambda: next(seconds)) == 2.0


@pytest.fixture
def engine(tiny_backbone: Backbone, tiny_deltas: Path) -> Engine:
    return Engine(tiny_backbone, Store([tiny_deltas], backbone=tiny_backbone.ref), device="cpu")


def test_the_engine_runs_batches_of_the_size_asked_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[EngineRow]] = []
    monkeypatch.setattr(engine, "run", seen.append)
    assert engine.seconds_for(700) > 0
    assert sum(row.num_tokens for row in seen[0]) == 700
    assert len({row.record.path for row in seen[0]}) > 1


def test_threads_stay_as_they_were_set(engine: Engine) -> None:
    before = torch.get_num_threads()
    try:
        engine.seconds_for(64, 1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_the_settings_say_is_not_measured(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "seconds_for", None)
    assert warm_up(Settings(threads=1, max_batch_tokens=777), engine) == 777
    assert warm_up(Settings(warm_up=False), engine) == DEFAULT_BUDGET


def test_a_server_without_deltas_starts_without_measuring(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    empty = Engine(tiny_backbone, Store([tmp_path], backbone=tiny_backbone.ref), device="cpu")
    assert warm_up(Settings(), empty) == DEFAULT_BUDGET


def test_the_choice_is_one_of_the_budgets_and_is_logged(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    before = torch.get_num_threads()
    caplog.set_level("INFO")
    try:
        assert warm_up(Settings(), engine) in BUDGETS
    finally:
        torch.set_num_threads(before)
    assert "chose " in caplog.text
    assert "tokens a batch" in caplog.text


def test_products_are_compiled_in_bfloat16_on_the_cpu_only(
    tiny_backbone: Backbone, tiny_deltas: Path
) -> None:
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    made = {
        name: Engine(tiny_backbone, store, device="cpu", precision=name)
        for name in ("fp32", "bf16")
    }
    assert made["fp32"].compile_kernels(64) == 0
    # Of the tiny backbone's matrices: stacked in three ways, square, up and down.
    assert made["bf16"].compile_kernels(64) == 5 * len(packed_sizes(64))


@pytest.mark.parametrize("lengths", [[3], [40], [100, 30], [9] * 50, [64, 128, 7, 90, 33]])
def test_the_sizes_compiled_are_those_that_batches_have(lengths: list[int]) -> None:
    batch = pack([([1] * length, [0] * length) for length in lengths])
    sizes = packed_sizes(sum(lengths) + 64)
    assert len(batch.input_ids) in sizes
    assert len(batch.first) in sizes
