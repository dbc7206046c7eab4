"""Changes of an engine's deltas: what requests get that found their deltas before."""

# ruff: noqa: ASYNC240 - nothing else runs in the loops of these tests

from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from app.engine.changes import DeltaChanges
from app.engine.engine import Engine
from app.errors import ConflictError, DeltaUnavailableError, InvalidDeltaError
from deltas import Backbone, DeltaNotFoundError, Record, Store, delta_path, write_delta
from tests.factories import TOY_TASKS, make_delta

NAME = "toy2", "head"
OTHER = "toy3", "bitfit"


def in_event_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, where the store is changed."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        asyncio.run(test(**fixtures))

    return run


def write(backbone: Backbone, path: Path, seed: int, name: tuple[str, str] = NAME) -> str:
    """Write a version of a delta and return its name."""
    return write_delta(make_delta(backbone, TOY_TASKS[name[0]], name[1], seed), path).version


@pytest.fixture
def folder(tiny_backbone: Backbone, tmp_path: Path) -> Path:
    """A folder with two deltas."""
    for name in (NAME, OTHER):
        path = delta_path(tmp_path / "managed", tiny_backbone.ref.id, *name)
        write(tiny_backbone, path, 0, name)
    return tmp_path / "managed"


@pytest.fixture
def path(folder: Path, tiny_backbone: Backbone) -> Path:
    return delta_path(folder, tiny_backbone.ref.id, *NAME)


def serve(folder: Path, backbone: Backbone, **options: Any) -> tuple[Engine, DeltaChanges]:
    """Return an engine over a folder, and its changes."""
    store = Store([folder], backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu", precision="fp32", **options)

    async def try_out(record: Record) -> None:
        await asyncio.to_thread(logits, engine, record)

    return engine, DeltaChanges(engine, folder, try_out, keep_versions=2)


def logits(engine: Engine, record: Record) -> list[float]:
    """Answer a row by a delta, as a request does that has found it."""
    (outcome,) = engine.predict(engine.tokenize(record, [Engine.trial(record)]))
    if isinstance(outcome, DeltaUnavailableError):
        raise outcome
    return outcome


async def upload(backbone: Backbone, folder: Path, seed: int) -> AsyncIterator[bytes]:
    """Yield the file of a version in pieces, as a body arrives."""
    path = folder.parent / "made.safetensors"
    write(backbone, path, seed)
    content = path.read_bytes()
    for start in range(0, len(content), 1000):
        yield content[start : start + 1000]


def evict_all(engine: Engine) -> None:
    """Use the only slot for another delta."""
    logits(engine, engine.store.resolve(*OTHER))


@in_event_loop
async def test_a_request_is_answered_by_the_version_that_it_found(
    folder: Path, tiny_backbone: Backbone
) -> None:
    """With one slot, after every kind of change, pruning and removal included."""
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    found: list[tuple[Record, list[float]]] = []
    for seed in (1, 2, 3, 4):
        record = engine.store.resolve(*NAME)
        found.append((record, logits(engine, record)))
        await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
    await changes.roll_back(*NAME)
    await changes.withdraw(*NAME)
    assert not engine.store.versions(*NAME)
    assert not list(folder.rglob("head*"))
    evict_all(engine)
    for record, before in found:
        assert logits(engine, record) == pytest.approx(before, abs=1e-5)
    answered = len({tuple(before) for _, before in found})
    assert answered == 4
    changes.close()


@in_event_loop
async def test_removed_versions_leave_the_bank(folder: Path, tiny_backbone: Backbone) -> None:
    engine, changes = serve(folder, tiny_backbone)
    for seed in range(1, 6):
        await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
    assert len(engine.store.versions(*NAME)) == 2
    for _ in range(100):
        gc.collect()
        evict_all(engine)
        if engine.cache.num_used == 3:
            break
        await asyncio.sleep(0.05)
    assert engine.cache.num_used == 3, "two versions and the other delta"
    changes.close()


@in_event_loop
async def test_a_replaced_file_answers_once_its_delta_could_not_be_loaded(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    record = engine.store.resolve(*NAME)
    evict_all(engine)
    version = write(tiny_backbone, path, 1)
    with pytest.raises(DeltaUnavailableError, match="changed from version"):
        logits(engine, record)
    assert await changes.is_outdated([record], math.inf)
    assert engine.store.resolve(*NAME).version == version
    logits(engine, engine.store.resolve(*NAME))
    assert not await changes.is_outdated([engine.store.resolve(*NAME)], math.inf)
    changes.close()


@in_event_loop
async def test_a_file_that_is_gone_or_bad_may_come_back(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    record = engine.store.resolve(*NAME)
    evict_all(engine)
    content = path.read_bytes()
    path.unlink()
    assert not await changes.is_outdated([record], math.inf)
    with pytest.raises(DeltaUnavailableError, match="no such file"):
        logits(engine, engine.store.resolve(*NAME))
    path.write_bytes(content[:-1])
    assert not await changes.is_outdated([record], math.inf)
    assert engine.store.resolve(*NAME).version == record.version
    path.write_bytes(content)
    logits(engine, engine.store.resolve(*NAME))
    path.unlink()
    assert await changes.reload() == {NAME}
    assert not engine.store.versions(*NAME)
    changes.close()


@in_event_loop
async def test_values_stay_in_memory_while_their_file_is_bad(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    record = engine.store.resolve(*NAME)
    before = logits(engine, record)
    path.write_bytes(b"half a file")
    await changes.reload()
    evict_all(engine)
    assert logits(engine, engine.store.resolve(*NAME)) == pytest.approx(before, abs=1e-5)
    version = write(tiny_backbone, path, 1)
    await changes.reload()
    assert engine.store.resolve(*NAME).version == version
    assert engine.store.rejected == []
    changes.close()


@in_event_loop
async def test_what_is_pinned_stays_pinned_in_its_new_version(
    folder: Path, tiny_backbone: Backbone
) -> None:
    store = Store([folder], backbone=tiny_backbone.ref)
    write(tiny_backbone, folder / "more.safetensors", 0, ("toy68", "head"))
    engine, changes = serve(folder, tiny_backbone, max_slots=2, pinned=[store.resolve(*NAME)])
    await changes.publish(*NAME, upload(tiny_backbone, folder, 1))
    default = engine.store.resolve(*NAME)
    for name in (OTHER, ("toy68", "head"), OTHER):
        logits(engine, engine.store.resolve(*name))
    assert default in engine.cache
    changes.close()


@in_event_loop
async def test_needed_versions_stay(folder: Path, tiny_backbone: Backbone) -> None:
    engine, changes = serve(folder, tiny_backbone)
    needed = engine.store.resolve(*NAME).version
    changes.needed.append(lambda name: {needed} if name == NAME else ())
    for seed in (1, 2, 3):
        change = await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
    assert needed in change.versions
    assert len(change.versions) == 2
    for version in (needed, None):
        with pytest.raises(ConflictError, match=f"needs version {needed}"):
            await changes.withdraw(*NAME, version)
    changes.close()


@in_event_loop
async def test_a_strategy_cannot_take_the_file_of_another(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    """Short names of files may meet, as those of random:0.05 and random::0.05 would."""
    write(tiny_backbone, path, 1, ("toy2", "layernorm"))
    _, changes = serve(folder, tiny_backbone)
    with pytest.raises(ConflictError, match="holds toy2/layernorm"):
        await changes.publish(*NAME, upload(tiny_backbone, folder, 1))
    changes.close()


@in_event_loop
async def test_a_refused_upload_leaves_nothing(folder: Path, tiny_backbone: Backbone) -> None:
    engine, changes = serve(folder, tiny_backbone)
    before, files = engine.store, sorted(folder.rglob("*"))
    with pytest.raises(InvalidDeltaError, match="not toy2/bitfit"):
        await changes.publish("toy2", "bitfit", upload(tiny_backbone, folder, 1))
    assert engine.store is before
    assert sorted(folder.rglob("*")) == files
    changes.close()


@in_event_loop
async def test_a_version_that_is_pruned_stays_though_others_want_its_slot(
    folder: Path, tiny_backbone: Backbone
) -> None:
    """Also at the moment between its load and its removal, when other batches may run."""
    engine, _ = serve(folder, tiny_backbone, max_slots=1)

    async def try_out(record: Record) -> None:
        await asyncio.to_thread(logits, engine, record)
        await asyncio.to_thread(evict_all, engine)

    changes = DeltaChanges(engine, folder, try_out, keep_versions=1)
    found: list[tuple[Record, list[float]]] = []
    for seed in (1, 2, 3):
        record = engine.store.resolve(*NAME)
        found.append((record, logits(engine, record)))
        await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
    await changes.withdraw(*NAME)
    for record, before in found:
        assert logits(engine, record) == pytest.approx(before, abs=1e-5)
    changes.close()


@in_event_loop
async def test_nothing_is_remembered_of_versions_that_have_gone(
    folder: Path, tiny_backbone: Backbone
) -> None:
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    for seed in range(1, 7):
        await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
        evict_all(engine)
    for _ in range(100):
        gc.collect()
        evict_all(engine)
        if not changes._retired.keys:
            break
        await asyncio.sleep(0.05)
    logits(engine, engine.store.resolve(*NAME))
    evict_all(engine)
    assert all(path.exists() for path in engine._loader._recipes)
    assert not engine.cache._retired
    changes.close()


@in_event_loop
async def test_a_kept_version_needs_no_memory_while_its_default_file_is_bad(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    """Else many bad files would hold many deltas beyond `max_slots`."""
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    await changes.publish(*NAME, upload(tiny_backbone, folder, 1))
    record = engine.store.resolve(*NAME)
    before = logits(engine, record)
    path.write_bytes(b"half a file")
    await changes.reload()
    evict_all(engine)
    assert record not in engine.cache
    assert logits(engine, engine.store.resolve(*NAME)) == pytest.approx(before, abs=1e-5)
    changes.close()


@in_event_loop
async def test_a_name_of_the_same_file_removes_no_other_delta(
    folder: Path, tiny_backbone: Backbone
) -> None:
    """The file of random::0.05 would be that of random:0.05."""
    path = delta_path(folder, tiny_backbone.ref.id, "toy2", "random:0.05")
    write(tiny_backbone, path, 1, ("toy2", "random:0.05"))
    engine, changes = serve(folder, tiny_backbone)
    assert delta_path(folder, tiny_backbone.ref.id, "toy2", "random::0.05") == path
    with pytest.raises(DeltaNotFoundError):
        await changes.withdraw("toy2", "random::0.05")
    assert path.exists()
    assert engine.store.resolve("toy2", "random:0.05")
    changes.close()


@in_event_loop
async def test_changes_see_what_another_server_has_changed(
    folder: Path, tiny_backbone: Backbone
) -> None:
    (one, changes), (other, others) = (serve(folder, tiny_backbone) for _ in range(2))
    for seed in (1, 2):
        await changes.publish(*NAME, upload(tiny_backbone, folder, seed))
    default = one.store.resolve(*NAME).version
    assert other.store.resolve(*NAME).version != default
    with pytest.raises(ConflictError, match="is the default"):
        await others.withdraw(*NAME, default)
    await changes.roll_back(*NAME)
    with pytest.raises(ConflictError, match="older than the default"):
        await others.roll_back(*NAME)
    changes.close()
    others.close()


@in_event_loop
async def test_a_file_that_was_loaded_for_one_version_is_not_taken_for_another(
    folder: Path, path: Path, tiny_backbone: Backbone
) -> None:
    """A request still waits with the earlier version while the new one is loaded again."""
    engine, changes = serve(folder, tiny_backbone, max_slots=1)
    record = engine.store.resolve(*NAME)
    write(tiny_backbone, path, 1)
    await changes.reload()
    logits(engine, engine.store.resolve(*NAME))
    evict_all(engine)
    with pytest.raises(DeltaUnavailableError, match="changed from version"):
        logits(engine, record)
    changes.close()
