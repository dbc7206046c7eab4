"""Replicas over one folder: changes of one are served by all when they are acknowledged.

The servers, their folder and the coordinator are real; they share a process in place of Ray's.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from app.cluster import membership
from app.cluster.coordinator import Coordinator, Member
from app.cluster.membership import Membership
from app.errors import InvalidDeltaError, StorageError
from app.http.context import Serving
from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, delta_path, write_delta
from deltas.store import versions
from deltas.store.traffic import TrafficRule
from tests.factories import TOY_TASKS, make_delta

NAME = "toy2", "head"


class Handle:
    """Calls the methods of an object as those of an actor are called: `handle.method.remote()`."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        remote = lambda *args, **options: asyncio.ensure_future(method(*args, **options))  # noqa: E731
        return type("Method", (), {"remote": staticmethod(remote)})


class Cluster:
    """Replicas over one folder.

    Attributes:
        running: replicas that the cluster says are running, beside those that joined here.
        failures: counts of the replicas that fail from now on.
    """

    def __init__(self, folder: Path, backbone: Backbone, stack: AsyncExitStack) -> None:
        self._folder = folder
        self._backbone = backbone
        self._stack = stack
        self.dead: set[str] = set()
        self.running = 0
        self.failures = 0
        self.coordinator = Coordinator(self._is_alive)

    async def _is_alive(self, member: Member) -> bool:
        return member.replica not in self.dead

    async def _count(self) -> int:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("the controller is dead")
        return self.running

    async def start(self, replica: str, folder: Path | None = None) -> tuple[Serving, Membership]:
        """Start a replica, over the folder of all or its own."""
        folder = folder or self._folder
        settings = Settings(
            deltas=(folder,), zoo=False, device="cpu", precision="fp32", warm_up=False
        )
        app = create_app(settings, backbone=self._backbone)
        known = await self.coordinator.number()
        await self._stack.enter_async_context(app.router.lifespan_context(app))
        serving: Serving = app.state.serving
        member = Member(replica, "node", 1, None)
        handle = Handle(self.coordinator)
        joined = Membership(handle, member, serving, folder, self._count)
        await joined.start(known)
        self._stack.push_async_callback(joined.stop)
        self.running += 1
        return serving, joined


@pytest.fixture
def content(tiny_backbone: Backbone, tmp_path: Path) -> Callable[[int], AsyncIterator[bytes]]:
    """A function (seed) -> the body of an upload."""

    async def make(seed: int) -> AsyncIterator[bytes]:
        path = tmp_path / f"made-{seed}.safetensors"
        write_delta(make_delta(tiny_backbone, TOY_TASKS[NAME[0]], NAME[1], seed), path)
        yield path.read_bytes()

    return make


@pytest.fixture
def run(tmp_path: Path, tiny_backbone: Backbone) -> Callable[..., None]:
    """A function that runs a test with a cluster over a folder with one delta."""
    folder = tmp_path / "shared"
    delta = make_delta(tiny_backbone, TOY_TASKS[NAME[0]], NAME[1], 0)
    write_delta(delta, delta_path(folder, tiny_backbone.ref.id, *NAME))

    def run_one(test: Callable[[Cluster], Coroutine[Any, Any, None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(60), AsyncExitStack() as stack:
                await test(Cluster(folder, tiny_backbone, stack))

        asyncio.run(limited())

    return run_one


def version_of(serving: Serving) -> str | None:
    served = serving.engine.store.versions(*NAME)
    return served[0].version if served else None


def test_all_replicas_serve_a_change_that_is_acknowledged(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        (one, _), (two, _) = await cluster.start("one"), await cluster.start("two")
        first = version_of(two)
        second = (await one.changes.publish(*NAME, content(1))).versions[0]
        assert version_of(one) == version_of(two) == second != first
        third = (await two.changes.publish(*NAME, content(2))).versions[0]
        assert version_of(one) == version_of(two) == third
        await one.changes.roll_back(*NAME, first)
        assert version_of(one) == version_of(two) == first
        assert len(two.engine.store.versions(*NAME)) == 3  # the kept ones are known, too
        rule = TrafficRule.model_validate({"split": {"version": second, "share": 0.5}})
        await two.traffic.set(NAME, rule)
        assert dict(one.traffic.rules) == {NAME: rule}
        await one.traffic.clear(NAME)
        assert not two.traffic.rules
        await two.changes.withdraw(*NAME)
        assert version_of(one) is version_of(two) is None

    run(test)


def test_a_change_that_fails_changes_no_replica(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def bad() -> AsyncIterator[bytes]:
        yield b"no delta"

    async def test(cluster: Cluster) -> None:
        (one, _), (two, _) = await cluster.start("one"), await cluster.start("two")
        first = version_of(two)
        with pytest.raises(InvalidDeltaError):
            await one.changes.publish(*NAME, bad())
        assert version_of(one) == version_of(two) == first
        second = (await two.changes.publish(*NAME, content(1))).versions[0]  # the turn has ended
        assert version_of(one) == second

    run(test)


def test_replicas_agree_after_a_change_that_failed_when_the_files_had_changed(
    run: Callable[..., None],
    content: Callable[[int], AsyncIterator[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = versions.switch

    def half_way(*arguments: Any, **options: Any) -> None:
        switch(*arguments, **options)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def test(cluster: Cluster) -> None:
        (one, _), (two, _) = await cluster.start("one"), await cluster.start("two")
        earlier = version_of(one)
        await one.changes.publish(*NAME, content(1))
        monkeypatch.setattr(versions, "switch", half_way)
        before = await cluster.coordinator.number()
        with pytest.raises(StorageError):
            await one.changes.roll_back(*NAME, earlier)
        late, num_members = await cluster.coordinator.unconfirmed(before + 1, 20)
        assert (late, num_members) == ([], 2)
        assert version_of(one) == version_of(two) == earlier  # as in the files

    run(test)


def test_changes_at_the_same_time_end_with_the_same_version(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        servers = [(await cluster.start(name))[0] for name in ("one", "two", "three")]
        changes = [
            serving.changes.publish(*NAME, content(seed)) for seed, serving in enumerate(servers)
        ]
        versions = {change.versions[0] for change in await asyncio.gather(*changes)}
        assert len(versions) == 3
        (left,) = {version_of(serving) for serving in servers}
        assert left in versions

    run(test)


def test_a_replica_that_starts_reads_what_changed_meanwhile(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        one, _ = await cluster.start("one")
        number = cluster.coordinator.number
        changed: list[str] = []

        async def number_before_a_change() -> int:
            known = await number()
            if not changed:
                changed.append((await one.changes.publish(*NAME, content(1))).versions[0])
            return known

        cluster.coordinator.number = number_before_a_change  # type: ignore[method-assign]
        two, _ = await cluster.start("two")
        assert [version_of(two)] == changed

    run(test)


def test_a_dead_replica_delays_no_change_and_its_successor_has_it(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        (one, _), (_, second) = await cluster.start("one"), await cluster.start("two")
        second._following.cancel()  # type: ignore[union-attr]
        cluster.dead.add("two")
        cluster.running -= 1
        version = (await one.changes.publish(*NAME, content(1))).versions[0]
        three, _ = await cluster.start("three")
        assert version_of(three) == version

    run(test)


def test_a_replica_with_another_folder_is_told(
    run: Callable[..., None],
    content: Callable[[int], AsyncIterator[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership, "CONFIRM_S", 2.0)
    (tmp_path / "own").mkdir()

    async def test(cluster: Cluster) -> None:
        one, _ = await cluster.start("one")
        _, second = await cluster.start("two", tmp_path / "own")
        with pytest.raises(StorageError, match=r"1 of 2 replicas.*\(two\).*same folder"):
            await one.changes.publish(*NAME, content(1))
        assert version_of(one) is not None
        second._current_at -= 60
        assert second.behind_s > 50  # Ray is told by `check_health`, and replaces it

    run(test)


def test_a_replica_that_reads_many_files_is_not_replaced(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reload = Serving.reload

    async def test(cluster: Cluster) -> None:
        (one, first), (two, second) = await cluster.start("one"), await cluster.start("two")
        reads, may_end = asyncio.Event(), asyncio.Event()

        async def slow(serving: Serving, *arguments: Any, **options: Any) -> Any:
            if serving is two:
                reads.set()
                await may_end.wait()
            return await reload(serving, *arguments, **options)

        async def reload_all() -> None:
            async with first.turn(None):
                await one.reload()

        monkeypatch.setattr(Serving, "reload", slow)
        change = asyncio.create_task(reload_all())
        await reads.wait()
        second._current_at -= 120
        assert second.behind_s == 0
        second._current_at -= 900
        assert second.behind_s > 0
        may_end.set()
        await change
        assert second.behind_s == 0

    run(test)


def test_a_change_survives_that_the_replicas_can_not_be_counted_for_a_while(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        one, _ = await cluster.start("one")
        cluster.failures = 2
        version = (await one.changes.publish(*NAME, content(1))).versions[0]
        assert version_of(one) == version
        assert not cluster.failures

    run(test)


def test_a_running_replica_that_has_not_joined_is_waited_for(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        one, _ = await cluster.start("one")
        cluster.running += 1
        publishing = asyncio.create_task(one.changes.publish(*NAME, content(1)))
        await asyncio.sleep(1)
        assert not publishing.done()
        cluster.running -= 1
        await cluster.start("two")
        await publishing

    run(test)


def test_after_a_restart_of_the_coordinator_replicas_join_again(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        (one, _), (two, _) = await cluster.start("one"), await cluster.start("two")
        cluster.coordinator.__init__(cluster.coordinator._is_alive)  # type: ignore[misc]
        version = (await two.changes.publish(*NAME, content(1))).versions[0]
        assert version_of(one) == version_of(two) == version
        assert len(await cluster.coordinator.members()) == 2

    run(test)


def test_a_request_that_ends_while_it_waits_gives_its_turn_back(
    run: Callable[..., None], content: Callable[[int], AsyncIterator[bytes]]
) -> None:
    async def test(cluster: Cluster) -> None:
        (one, first), (two, _) = await cluster.start("one"), await cluster.start("two")
        async with first.turn(NAME):
            waiting = asyncio.create_task(two.changes.publish(*NAME, content(1)))
            await asyncio.sleep(0.5)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        version = (await one.changes.publish(*NAME, content(2))).versions[0]
        assert version_of(two) == version

    run(test)
