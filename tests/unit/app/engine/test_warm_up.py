"""Warming up: made-up batches, which numbers are measured and chosen, and what is compiled."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

from app.engine.engine import Engine, EngineRow
from app.engine.tuning import Tuning
from app.engine.warm_up import (
    BUDGETS,
    THREADS,
    TOKENS,
    WORKERS,
    choose,
    made_up_rows,
    seconds_for,
    seconds_in_parallel,
    warm_up,
)
from app.main import create_app
from app.process.lifetime import run_in_own_thread
from app.process.settings import DEFAULT_BATCH_TOKENS, Settings
from deltas import Backbone, Store, packed_sizes


@pytest.fixture
def store(tiny_backbone: Backbone, pooled_deltas: Path) -> Store:
    return Store([pooled_deltas], backbone=tiny_backbone.ref)


@pytest.fixture
def engine(tiny_backbone: Backbone, store: Store) -> Iterator[Engine]:
    before = torch.get_num_threads()
    yield Engine(tiny_backbone, store, device="cpu", precision="fp32")
    torch.set_num_threads(before)


def test_made_up_rows_have_the_given_number_of_tokens(engine: Engine) -> None:
    for size in (1, 16, 700):
        rows = made_up_rows(engine, size)
        assert sum(row.num_tokens for row in rows) == size
    assert {row.record.manifest.task.name for row in rows} == set(engine.store.tasks[:9])
    for row in rows:
        assert len(row.tokens.sequences) == 1 + (row.record.manifest.task.pairs == "separate")


def test_pairs_of_any_size_are_made_up(tiny_backbone: Backbone, pooled_deltas: Path) -> None:
    """Also a last row of one token, of a task that needs two sequences."""
    folder = pooled_deltas / tiny_backbone.ref.id / "toysplit"
    engine = Engine(tiny_backbone, Store([folder], backbone=tiny_backbone.ref), device="cpu")
    for size in range(1, 16):
        rows = made_up_rows(engine, size)
        assert 0 <= sum(row.num_tokens for row in rows) - size <= 1
        assert [len(logits) for logits in engine.predict(rows) if isinstance(logits, list)] == [
            3
        ] * len(rows)


def test_made_up_rows_fit_a_small_bank(tiny_backbone: Backbone, store: Store) -> None:
    small = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=1)
    assert len({row.record.path for row in made_up_rows(small, 700)}) == 1


def test_made_up_rows_are_run(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[EngineRow]] = []
    monkeypatch.setattr(engine, "predict", lambda rows, _threads: seen.append(rows))
    seconds_for(engine, 700)
    assert [sum(row.num_tokens for row in rows) for rows in seen] == [700]


def test_the_number_of_threads_is_kept(engine: Engine) -> None:
    seconds_for(engine, 64, 1)
    assert torch.get_num_threads() == 1


def test_a_new_thread_takes_over_the_chosen_threads(engine: Engine) -> None:
    """The thread that chose them has ended by then."""
    run_in_own_thread(lambda: seconds_for(engine, 64, 1))
    assert run_in_own_thread(torch.get_num_threads) == 1


def test_given_numbers_are_not_measured(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "predict", None)
    assert warm_up(engine, 1, 1, 777) == Tuning(1, 1, 1, 777)


def test_the_chosen_numbers_are_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tuning = warm_up(engine)
    assert tuning.batch_tokens in BUDGETS
    assert tuning.threads >= 1 <= tuning.workers
    assert "threads: " in caplog.text
    assert "parallel batches: " in caplog.text
    assert "tokens per batch: " in caplog.text


def test_products_are_compiled_in_bfloat16_on_the_cpu_only(
    tiny_backbone: Backbone, store: Store, engine: Engine
) -> None:
    assert engine.prepare(64, 1) == 0
    bf16 = Engine(tiny_backbone, store, device="cpu", precision="bf16")
    # Of the tiny backbone's matrices: stacked in two ways, square, up and down.
    assert bf16.prepare(64, 1) == 5 * len(packed_sizes(64))


def test_only_batches_that_occur_are_compiled(
    tiny_backbone: Backbone, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Each product that oneDNN compiles keeps half a megabyte."""
    caplog.set_level("INFO")
    bf16 = Engine(tiny_backbone, store, device="cpu", precision="bf16")
    longest = bf16.longest_sequence
    most = 8 * longest
    shares, pair = len(packed_sizes(most // 2)), len(packed_sizes(max(2 * longest, 96)))
    try:
        warm_up(bf16, 2, 2, most, few_tokens=96)
        assert f"{5 * (shares + pair)} products compiled" in caplog.text
        warm_up(bf16, 2, 1, most, few_tokens=96)
        assert f"{5 * len(packed_sizes(most))} products compiled" in caplog.text
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("warms_up", "given", "expected"),
    [(False, 0, DEFAULT_BATCH_TOKENS), (False, 99, 99), (True, 99, 99), (True, 0, None)],
)
def test_the_settings_decide_whether_the_server_warms_up(
    tiny_backbone: Backbone,
    tiny_deltas: Path,
    caplog: pytest.LogCaptureFixture,
    warms_up: bool,
    given: int,
    expected: int | None,
) -> None:
    caplog.set_level("INFO")
    settings = Settings(
        deltas=(tiny_deltas,),
        zoo=False,
        threads=1,
        max_batch_tokens=given,
        warm_up=warms_up,
        reuse_tuning=False,
    )
    with TestClient(create_app(settings, backbone=tiny_backbone)):
        pass
    allowed = BUDGETS if expected is None else (expected,)
    assert any(f"batch_tokens={budget}\n" in caplog.text for budget in allowed)
    assert ("tokens per batch: " in caplog.text) == (warms_up and not given)


def test_a_server_without_deltas_starts_without_measuring(
    tiny_backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = Settings(deltas=(tmp_path,), zoo=False)
    with TestClient(create_app(settings, backbone=tiny_backbone)):
        pass
    assert f"batch_tokens={DEFAULT_BATCH_TOKENS}\n" in caplog.text
    assert "tokens per batch: " not in caplog.text


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_there_are_no_more_workers_than_threads(
    engine: Engine, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    tuning = warm_up(engine, threads, 8, 64)
    assert (tuning.threads, tuning.workers, tuning.share_threads) == (threads, threads, 1)
    assert (
        f"running {threads} batches in parallel, not 8: there are {threads} threads" in caplog.text
    )


def test_a_failing_batch_raises_and_does_not_block_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def run(rows: Sequence[EngineRow], threads: int) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 2:
            raise MemoryError("no room")

    monkeypatch.setattr(engine, "predict", run)
    with pytest.raises(MemoryError, match="no room"):
        seconds_in_parallel(engine, 64, 3, 1)


def test_parallel_batches_take_as_long_as_the_slowest(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()

    def run(rows: Sequence[EngineRow], threads: int) -> None:
        name = threading.current_thread().name
        calls[name] += 1
        time.sleep(0.4 if name.endswith("_0") else 0.35)

    monkeypatch.setattr(engine, "predict", run)
    assert 0.4 <= seconds_in_parallel(engine, 64, 2, 1) < 0.75
    assert sorted(calls.values()) == [3, 3], "the first pass of each thread does not count"


def test_the_smallest_nearly_fastest_budget_is_chosen() -> None:
    speeds = {512: 1e5, 1024: 1.5e5, 2048: 1.98e5, 4096: 2e5, 8192: 2.01e5, 16384: 2.02e5}
    assert choose(TOKENS, lambda tokens: tokens / speeds[tokens]) == 2048


def test_budgets_beyond_the_longest_batch_are_not_tried() -> None:
    tried = []

    def seconds(tokens: int) -> float:
        tried.append(tokens)
        return tokens / 5_000  # every batch is equally efficient, and slow

    assert choose(TOKENS, seconds) == 512
    assert set(tried) == {512, 1024, 2048}  # 2048 took 0.41 s


def test_a_slow_machine_still_gets_a_budget() -> None:
    assert choose(TOKENS, lambda tokens: tokens / 10.0) == BUDGETS[0]


def test_the_fewest_nearly_fastest_threads_are_chosen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seconds = {1: 1.0, 2: 0.5, 4: 0.3, 8: 0.29, 16: 0.6}
    assert choose(THREADS, seconds.__getitem__, 1000, 16) == 4
    assert "threads: 4 (tokens/s with 1: 1,000, 2: 2,000, 4: 3,333, 8: 3,448, 16: 1," in caplog.text


@pytest.mark.parametrize("cpus", [1, 2, 3, 6, 12])
def test_all_cores_are_among_the_candidates(cpus: int) -> None:
    assert choose(THREADS, lambda count: 1.0 / count, 1, cpus) == cpus


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({1: 1.0}, 1),
        ({1: 1.0, 2: 0.97}, 2),
        ({1: 1.0, 2: 1.04}, 2),  # several passes lose less to a busy event loop
        ({1: 1.0, 2: 1.06}, 1),
        ({1: 1.0, 2: 0.8, 4: 0.83, 8: 0.9}, 4),
    ],
)
def test_the_most_nearly_fastest_workers_are_chosen(
    seconds: dict[int, float], expected: int
) -> None:
    assert choose(WORKERS, seconds.__getitem__, 1000, max(seconds)) == expected


def test_the_first_run_and_disturbed_ones_do_not_count() -> None:
    seconds = {1: iter([9.0, 5.0, 2.0]), 2: iter([0.1, 3.0, 3.0])}
    assert choose(THREADS, lambda count: next(seconds[count]), 1000, 2) == 1
