"""Laws of the delta cache: with any number of slots, answers equal those of a full engine."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.engine import Engine, EngineRow
from app.errors import DeltaUnavailableError
from deltas import Backbone, Store, TokenizedRow
from tests.laws import law

pytestmark = pytest.mark.law

LAW = law(20)

TOLERANCE = 1e-5
NUM_DELTAS = 25

# Batches of rows; a row is its delta's number and its token ids.
batches = st.lists(
    st.lists(
        st.tuples(
            st.integers(0, NUM_DELTAS - 1),
            st.lists(st.integers(5, 100), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=12,
    ),
    min_size=1,
    max_size=5,
)


@pytest.fixture(scope="module")
def folder(tiny_deltas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy deltas, some of which are taken away and put back."""
    return Path(shutil.copytree(tiny_deltas, tmp_path_factory.mktemp("slots") / "copy"))


@pytest.fixture(scope="module")
def store(tiny_backbone: Backbone, folder: Path) -> Store:
    return Store([folder], backbone=tiny_backbone.ref)


@pytest.fixture(scope="module")
def whole(tiny_backbone: Backbone, store: Store) -> Engine:
    """Holds everything."""
    return Engine(tiny_backbone, store, device="cpu", precision="fp32")


@pytest.fixture(scope="module", params=[1, 3, 8, 40])
def few(request: pytest.FixtureRequest, tiny_backbone: Backbone, store: Store) -> Engine:
    """Holds some; lives through all examples, so that its state is never the same."""
    return Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=request.param)


def engine_rows(store: Store, batch: list[tuple[int, list[int]]]) -> list[EngineRow]:
    return [
        EngineRow(
            TokenizedRow([2, *ids, 3], [0] * (len(ids) + 2), truncated=False),
            store.records[number],
            len(ids) + 2,
        )
        for number, ids in batch
    ]


def check_equal(found: Any, expected: Any) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=TOLERANCE)


@LAW
@given(batches=batches, ahead=st.booleans())
def test_few_slots_answer_as_many(few: Engine, whole: Engine, batches: Any, ahead: bool) -> None:
    """Any batches, with and without prefetching; the limit is never exceeded."""
    for number, batch in enumerate(batches):
        rows = engine_rows(whole.store, batch)
        if ahead:
            following = batches[number + 1] if number + 1 < len(batches) else batch
            few.cache.prefetch([row.record for row in engine_rows(whole.store, following)])
        check_equal(few.predict(rows), whole.predict(rows))
        most = few.cache.max_slots or NUM_DELTAS  # slots for more than there are is no limit
        assert few.cache.num_used <= most
        assert few._bank.num_slots - 1 == few.cache.num_used
        assert len(few._bank.heads) <= most + 1
        most_rows = most + 1  # the backbone has one, too
        assert few._bank.vector_tables["bias"].num_rows <= most_rows


@LAW
@given(batches=batches, pins=st.sets(st.integers(0, NUM_DELTAS - 1), min_size=1, max_size=3))
def test_pinned_deltas_stay(
    tiny_backbone: Backbone, store: Store, whole: Engine, batches: Any, pins: set[int]
) -> None:
    pinned = [store.records[number] for number in pins]
    engine = Engine(
        tiny_backbone, store, device="cpu", precision="fp32", max_slots=4, pinned=pinned
    )
    for batch in batches:
        rows = engine_rows(store, batch)
        check_equal(engine.predict(rows), whole.predict(rows))
        assert all(record in engine.cache for record in pinned)


@LAW
@given(batches=batches, gone=st.sets(st.integers(0, NUM_DELTAS - 1), max_size=6))
def test_missing_files_harm_only_their_own_rows(
    tiny_backbone: Backbone, store: Store, whole: Engine, batches: Any, gone: set[int]
) -> None:
    """Other rows of the same batches are answered; restored files are served again."""
    engine = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=3)
    away = [record for n, record in enumerate(store.records) if n in gone]
    away = [record for record in away if record not in engine.cache]
    with hidden([record.path for record in away]):
        for batch in batches:
            rows = engine_rows(store, batch)
            for row, mine, theirs in zip(
                rows, engine.predict(rows), whole.predict(rows), strict=True
            ):
                if row.record in away:
                    assert isinstance(mine, DeltaUnavailableError)
                    assert "no such file" in str(mine)
                    assert str(row.record.path) not in str(mine)
                else:
                    assert mine == pytest.approx(theirs, abs=TOLERANCE)
    for batch in batches:
        rows = engine_rows(store, batch)
        check_equal(engine.predict(rows), whole.predict(rows))


@contextmanager
def hidden(paths: list[Path]) -> Iterator[None]:
    """Files under another name for the length of a block."""
    for path in paths:
        path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        for path in paths:
            path.with_suffix(".away").rename(path)


@pytest.fixture
def prefetching(tiny_backbone: Backbone, store: Store) -> Iterator[Engine]:
    """An engine of few slots, for which three threads ask for everything all the time."""
    engine = Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=5)
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            for record in store.records:
                engine.cache.prefetch([record])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield engine
    stop.set()
    for thread in threads:
        thread.join()


def test_prefetching_during_batches_is_safe(prefetching: Engine, whole: Engine) -> None:
    batch = [(number, [number + 5] * (1 + number % 4)) for number in range(NUM_DELTAS)]
    for _ in range(8):
        rows = engine_rows(whole.store, batch)
        check_equal(prefetching.predict(rows), whole.predict(rows))
        batch = batch[7:] + batch[:7]
    counts = prefetching.cache.counts
    assert counts.prefetched > 0
    assert counts.failed == 0
