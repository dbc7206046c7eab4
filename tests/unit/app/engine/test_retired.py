"""Versions that left the store stay in the bank until nothing holds their records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from app.engine.engine import Engine
from app.engine.retired import RetiredVersions
from deltas import Backbone, Record, Store


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, where the store is changed."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


@pytest.fixture
def engine(tiny_backbone: Backbone, tiny_deltas: Path) -> Engine:
    """An engine with two slots."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    return Engine(tiny_backbone, store, device="cpu", precision="fp32", max_slots=2)


def predict(engine: Engine, record: Record) -> None:
    engine.predict(engine.tokenize(record, [Engine.trial(record)]))


def copied(engine: Engine, number: int) -> Record:
    """A record that only the caller holds, as a request does after a change of the store."""
    return replace(engine.store.records[number])


@in_event_loop
async def test_a_version_stays_while_a_request_holds_its_record(engine: Engine) -> None:
    retired = RetiredVersions(engine.cache)
    asked = copied(engine, 0)
    predict(engine, asked)
    retired.add([asked], [])
    for other in engine.store.records[5:12]:
        predict(engine, other)
    retired.clean()
    assert asked in engine.cache, "though others wanted its slot"
    assert retired.keys == {asked.key}
    key = asked.key
    del asked
    retired.clean()
    assert not retired.keys
    predict(engine, engine.store.records[12])
    assert key not in engine.cache._slot_of, "the next batch has evicted it"
    assert engine.cache.num_used <= 2
    retired.close()


@in_event_loop
async def test_a_version_that_is_served_again_is_no_longer_retired(engine: Engine) -> None:
    retired = RetiredVersions(engine.cache)
    first = copied(engine, 0)
    predict(engine, first)
    retired.add([first], [])
    again = replace(first)
    retired.add([], [again])
    del first
    retired.clean()
    predict(engine, again)
    assert again in engine.cache
    assert not retired.keys
    retired.close()


@in_event_loop
async def test_versions_of_bad_files_stay(engine: Engine) -> None:
    retired = RetiredVersions(engine.cache)
    record = engine.store.records[0]
    predict(engine, record)
    retired.hold_bad({record.path: record.key})
    for other in engine.store.records[5:12]:
        predict(engine, other)
    assert record in engine.cache
    retired.hold_bad({})
    for other in engine.store.records[5:12]:
        predict(engine, other)
    assert record not in engine.cache
    retired.close()


@in_event_loop
async def test_unused_versions_go_by_themselves(engine: Engine) -> None:
    retired = RetiredVersions(engine.cache)
    record = copied(engine, 0)
    predict(engine, record)
    retired.add([record], [])
    del record
    for _ in range(100):
        if not retired.keys:
            break
        await asyncio.sleep(0.05)
    assert not retired.keys
    retired.close()
