"""The delta cache with real files: residency, eviction, prefetching; and its I/O threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from app.engine.cache import DeltaCache, IoThreads
from app.engine.loader import Loader
from app.errors import DeltaUnavailableError
from deltas import Backbone, Record, Store
from deltas.encoder.bank import Bank, StagedDelta


class SlowLoader:
    """A real loader that waits for a gate and records its calls."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[Record] = []
        self.error: Exception | None = None

    def load(self, record: Record) -> StagedDelta:
        self.asked.append(record)
        assert self.gate.wait(30)
        if self.error is not None:
            raise self.error
        return self._loader.load(record)


@pytest.fixture
def loader(tiny_backbone: Backbone, bank: Bank) -> SlowLoader:
    return SlowLoader(Loader(tiny_backbone, bank, again=True))


def acquired_by(
    cache: DeltaCache, records: list[Record]
) -> dict[tuple[str, str, str], int | DeltaUnavailableError]:
    """Acquire deltas for a batch that ends at once."""
    with cache.acquire(records) as claimed:
        return claimed


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_the_least_recently_used_delta_is_evicted(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=3)
    one, two, three, four, five = store.records[:5]
    acquired_by(cache, [one, two, three])
    acquired_by(cache, [one])
    acquired_by(cache, [four])
    assert [r in cache for r in (one, two, three, four)] == [True, False, True, True]
    cache.prefetch([three])  # its row is about to be queued
    acquired_by(cache, [five])
    assert [r in cache for r in (one, three, four, five)] == [False, True, True, True]
    assert cache.counts.hits == 1
    assert cache.counts.evicted == 2
    assert cache.num_used == 3
    assert bank.num_slots == 4


def test_deltas_of_the_batch_are_not_evicted(bank: Bank, loader: SlowLoader, store: Store) -> None:
    """Also when it is the least recently used."""
    cache = DeltaCache(bank, loader.load, max_slots=2)
    one, two, three = store.records[:3]
    acquired_by(cache, [one])
    acquired_by(cache, [two])
    claimed = acquired_by(cache, [three, one])
    assert set(claimed) == {one.key, three.key}
    assert two not in cache


def test_free_slots_are_reused(bank: Bank, loader: SlowLoader, store: Store) -> None:
    """With deltas of all kinds coming and going, the bank grows no further than it must."""
    cache = DeltaCache(bank, loader.load, max_slots=2)
    for record in store.records * 2:
        acquired_by(cache, [record])
    assert len(bank.heads) == 3
    for tables in bank.vector_tables.values():
        assert tables.num_rows == 3
    held = sum(len(by_slot) for by_slot in bank.matrices.values())
    held += sum(len(by_slot) for by_slot in bank.sparse.values())
    assert held <= 2 * len(bank.frozen)
    assert bank.matrix_slots <= {1, 2}


def test_pinned_deltas_are_never_evicted(bank: Bank, loader: SlowLoader, store: Store) -> None:
    pinned, *others = store.records[:6]
    cache = DeltaCache(bank, loader.load, max_slots=2, pinned={pinned.key})
    acquired_by(cache, [pinned])
    for record in others:
        acquired_by(cache, [record])
        assert pinned in cache


def test_a_batch_of_more_deltas_than_slots_is_split(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    """Resident deltas come first; otherwise they would be evicted before their turn."""
    records = store.records[:7]
    cache = DeltaCache(bank, loader.load, max_slots=3, pinned={records[6].key})
    acquired_by(cache, [records[4]])
    parts = cache.split([*records, *records])
    assert [[records.index(record) for record in part] for part in parts] == [
        [6, 4, 0],
        [1, 2],
        [3, 5],
    ]
    assert cache.split([]) == [[]]


def test_other_deltas_are_an_error_if_all_slots_are_pinned(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=1, pinned={store.records[0].key})
    with pytest.raises(ValueError, match="none is left"):
        cache.split(store.records[:2])


@pytest.mark.parametrize("max_slots", [3, 4])
def test_all_deltas_may_be_pinned(
    bank: Bank, loader: SlowLoader, store: Store, max_slots: int
) -> None:
    records = store.records[:3]
    pinned = {record.key for record in records}
    cache = DeltaCache(bank, loader.load, max_slots=max_slots, pinned=pinned)
    assert cache.split(records) == [records]
    assert [*acquired_by(cache, records)] == [record.key for record in records]


def test_without_a_limit_nothing_is_evicted(bank: Bank, loader: SlowLoader, store: Store) -> None:
    cache = DeltaCache(bank, loader.load)
    (part,) = cache.split(store.records)
    claimed = acquired_by(cache, part)
    assert [*claimed.values()] == [*range(1, 26)]
    assert acquired_by(cache, part) == claimed


def test_a_prefetched_delta_is_not_loaded_again(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=2)
    record = store.records[0]
    cache.prefetch([record, record])
    wait_until(lambda: cache._pending[record.key].staged.done())
    assert record not in cache
    acquired_by(cache, [record])
    cache.prefetch([record])
    assert loader.asked == [record]
    assert (cache.counts.prefetched, cache.counts.waited) == (1, 0)


def test_files_are_read_in_daemon_threads(bank: Bank, loader: SlowLoader, store: Store) -> None:
    daemons: list[bool] = []

    def load(record: Record) -> StagedDelta:
        daemons.append(threading.current_thread().daemon)
        return loader.load(record)

    acquired_by(DeltaCache(bank, load, max_slots=2), store.records[:1])
    assert daemons == [True]


def test_no_lock_is_held_while_a_file_is_read(bank: Bank, loader: SlowLoader, store: Store) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=2)
    there, slow = store.records[:2]
    acquired_by(cache, [there])
    loader.gate.clear()
    cache.prefetch([slow])
    wait_until(lambda: slow in loader.asked)
    cache.prefetch([there, slow])
    assert acquired_by(cache, [there]) == {there.key: 1}
    loader.gate.set()
    assert acquired_by(cache, [slow]) == {slow.key: 2}
    assert loader.asked.count(slow) == 1


def test_no_more_deltas_are_prefetched_than_the_bank_holds(
    bank: Bank, loader: SlowLoader, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefetched deltas that no batch used are dropped after a while."""
    cache = DeltaCache(bank, loader.load, max_slots=3)
    cache.prefetch(store.records[:10])
    wait_until(lambda: all(item.staged.done() for item in cache._pending.values()))
    assert loader.asked == store.records[:3]
    monkeypatch.setattr("app.engine.cache._KEEP_S", 0.0)
    time.sleep(0.01)
    cache.prefetch(store.records[10:11])
    wait_until(lambda: store.records[10] in loader.asked)
    assert len(cache._pending) == 1


def test_a_file_that_takes_too_long_fails_alone(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=2, load_timeout_s=0.05)
    there, slow = store.records[:2]
    acquired_by(cache, [there])
    loader.gate.clear()
    claimed = acquired_by(cache, [slow, there])
    assert claimed[there.key] == 1
    assert "takes too long" in str(claimed[slow.key])
    loader.gate.set()
    wait_until(lambda: cache._pending[slow.key].staged.done())
    assert acquired_by(cache, [slow]) == {slow.key: 2}
    assert loader.asked.count(slow) == 1


def test_clients_do_not_see_unforeseen_errors(
    bank: Bank, loader: SlowLoader, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=2)
    loader.error = MemoryError("secret")
    (outcome,) = acquired_by(cache, store.records[:1]).values()
    assert isinstance(outcome, DeltaUnavailableError)
    assert "secret" not in str(outcome)
    assert "secret" in caplog.text
    assert cache.counts.failed == 1
    loader.error = None
    assert acquired_by(cache, store.records[:1]) == {store.records[0].key: 1}


def test_only_free_slots_can_be_filled(bank: Bank, loader: SlowLoader, store: Store) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=1)
    loaded = [(record, loader.load(record)) for record in store.records[:2]]
    with pytest.raises(ValueError, match="2 deltas do not fit"):
        cache.insert(loaded)
    cache.insert(loaded[:1])
    cache.evict(store.records[0])
    cache.evict(store.records[0])
    cache.insert(loaded[1:])
    assert store.records[1] in cache
    assert bank.num_slots == 2


def test_deltas_of_a_running_batch_are_not_evicted(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    """Also when it is the least recently used and its batch takes long."""
    cache = DeltaCache(bank, loader.load, max_slots=2)
    assert cache.set_concurrency(2) == 2
    one, two, three = store.records[:3]
    with cache.acquire([one]) as long:
        acquired_by(cache, [two])
        acquired_by(cache, [three])
        assert one in cache
        assert two not in cache
        with cache.acquire([one]) as again:
            assert again == long
        acquired_by(cache, [two])
        assert one in cache, "the first batch still uses it"
    acquired_by(cache, [three])
    assert one not in cache


def test_each_batch_gets_its_share_of_the_slots(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    pinned, *others = store.records[:7]
    cache = DeltaCache(bank, loader.load, max_slots=5, pinned={pinned.key})
    assert cache.set_concurrency(2) == 2
    assert [len(part) for part in cache.split([*others, pinned])] == [3, 2, 2]
    assert cache.set_concurrency(9) == 4, "there are no more slots for those that are not pinned"
    assert [len(part) for part in cache.split(others)] == [1] * 6


def test_parallel_batches_never_wait_for_each_others_slots(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=4)
    cache.set_concurrency(4)
    held: Counter[Any] = Counter()
    lock = threading.Lock()

    def play(first: int) -> None:
        for number in range(60):
            record = store.records[(first + number * (first + 1)) % 9]
            for part in cache.split([record, store.records[(first + number) % 9]]):
                with cache.acquire(part) as claimed:
                    assert all(isinstance(slot, int) for slot in claimed.values())
                    with lock:
                        held.update(claimed.keys())
                    assert all(record in cache for record in part)

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(play, first) for first in range(4)]:
            done.result(60)
    assert len(held) == 9
    assert cache.num_used == 4
    assert bank.num_slots == 5


def test_two_batches_that_wait_for_the_same_file_share_a_slot(
    bank: Bank, loader: SlowLoader, store: Store
) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=4)
    cache.set_concurrency(2)
    record = store.records[0]
    loader.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(acquired_by, cache, [record]) for _ in range(2)]
        wait_until(lambda: cache.counts.waited == 2)
        loader.gate.set()
        first, second = (done.result(30) for done in both)
    assert first == second
    assert bank.num_slots == 2


def test_a_failed_batch_releases_its_deltas(bank: Bank, loader: SlowLoader, store: Store) -> None:
    cache = DeltaCache(bank, loader.load, max_slots=2)
    one, two, three = store.records[:3]
    with pytest.raises(RuntimeError, match="pass"), cache.acquire([one, two]):
        raise RuntimeError("the forward pass failed")
    acquired_by(cache, [three])
    assert one not in cache


def test_threads_return_results_and_errors_in_order() -> None:
    threads = IoThreads(1, "test")
    seen: list[int] = []

    def work(number: int) -> int:
        seen.append(number)
        if number == 2:
            raise SystemExit(2)
        return number**2

    futures = [threads.submit(work, number) for number in range(4)]
    assert [futures[number].result(10) for number in (0, 1, 3)] == [0, 1, 9]
    with pytest.raises(SystemExit):
        futures[2].result(10)
    assert seen == [0, 1, 2, 3]


def test_all_threads_work_at_the_same_time() -> None:
    threads, both = IoThreads(2, "test"), threading.Barrier(2, timeout=10)
    for future in [threads.submit(lambda _: both.wait(), None) for _ in range(2)]:
        future.result(10)


def test_threads_end_with_their_pool_and_keep_no_reference() -> None:
    class Argument:
        pass

    threads, argument = IoThreads(2, "ending"), Argument()
    gone = weakref.ref(argument)
    threads.submit(id, argument).result(10)
    del argument
    wait_until(lambda: gone() is None)
    del threads
    wait_until(lambda: not any(t.name.startswith("ending") for t in threading.enumerate()))


def test_hanging_threads_are_replaced() -> None:
    threads = IoThreads(1, "test", hangs_s=0.05)
    is_open = threading.Event()
    stuck = [threads.submit(lambda _: is_open.wait(30), None)]
    for _ in range(3):
        time.sleep(0.1)
        assert threads.submit(lambda number: number + 1, 1).result(10) == 2
        stuck.append(threads.submit(lambda _: is_open.wait(30), None))
    assert not any(future.done() for future in stuck)
    is_open.set()
    assert all(future.result(10) for future in stuck)


def test_working_threads_are_not_replaced() -> None:
    threads = IoThreads(2, "working")
    assert sum(threads.submit(lambda number: number, n).result(10) for n in range(50)) == 1225
    assert sum(thread.name.startswith("working") for thread in threading.enumerate()) == 2
