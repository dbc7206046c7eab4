"""The coordinator: turns, numbers of changes, and who has confirmed them; without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from app.cluster.coordinator import Announced, Coordinator, Member

NAME = "sst2", "head"
CHANGE = Announced(NAME, "0123456789abcdef")
SOON = 0.01


class Cluster:
    """A coordinator, and replicas that can die."""

    def __init__(self) -> None:
        self.dead: set[str] = set()
        self.failures = 0  # of the next looks
        self.coordinator = Coordinator(self.is_alive)

    async def is_alive(self, member: Member) -> bool:
        if self.failures:
            self.failures -= 1
            raise OSError("the network is down")
        return member.replica not in self.dead

    async def join(self, replica: str) -> Member:
        number = await self.coordinator.number()
        member = Member(replica, "node", 1, None, number)
        assert await self.coordinator.join(member) == number
        return member

    async def change(self, member: Member, change: Announced = CHANGE) -> int:
        await self.coordinator.begin(member, "turn", change.name)
        return await self.coordinator.end("turn", change, changed=True)


def with_cluster(test: Callable[[Cluster], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in an event loop; whatever waits for ever fails it."""

    def run() -> None:
        async def limited() -> None:
            async with asyncio.timeout(30):
                await test(Cluster())

        asyncio.run(limited())

    run.__name__ = test.__name__
    return run


@with_cluster
async def test_a_change_is_confirmed_when_each_replica_has_asked_again(cluster: Cluster) -> None:
    one, two = await cluster.join("one"), await cluster.join("two")
    number = await cluster.change(one)
    assert number > one.known
    assert await cluster.coordinator.unconfirmed(number, SOON) == (["one", "two"], 0)
    for member in (one, two):
        news = await cluster.coordinator.news(member.replica, member.known, SOON)
        assert news is not None
        assert (news.number, news.changes) == (number, (CHANGE,))
    assert (await cluster.coordinator.unconfirmed(number, SOON))[1] == 0  # told, but not confirmed
    await cluster.coordinator.news("one", number, SOON)
    assert await cluster.coordinator.unconfirmed(number, SOON) == (["two"], 1)
    waiting = asyncio.create_task(cluster.coordinator.unconfirmed(number, 20))
    await cluster.coordinator.news("two", number, SOON)
    assert await waiting == ([], 2)


@with_cluster
async def test_a_replica_that_waits_for_news_is_woken(cluster: Cluster) -> None:
    member = await cluster.join("one")
    waiting = asyncio.create_task(cluster.coordinator.news("one", member.known, 20))
    await asyncio.sleep(0)
    number = await cluster.change(member)
    news = await waiting
    assert news is not None
    assert news.number == number


@with_cluster
async def test_a_dead_replica_is_not_waited_for(cluster: Cluster) -> None:
    one, _ = await cluster.join("one"), await cluster.join("two")
    number = await cluster.change(one)
    await cluster.coordinator.news("one", number, SOON)
    cluster.dead = {"two"}
    assert await cluster.coordinator.unconfirmed(number, 20) == ([], 1)
    assert await cluster.coordinator.members() == [("one", "node", 1)]


@with_cluster
async def test_a_look_that_fails_is_not_the_last_one(cluster: Cluster) -> None:
    one, _ = await cluster.join("one"), await cluster.join("two")
    number = await cluster.change(one)
    await cluster.coordinator.news("one", number, SOON)
    cluster.failures, cluster.dead = 1, {"two"}
    assert await cluster.coordinator.unconfirmed(number, 20) == ([], 1)


@with_cluster
async def test_a_replica_that_has_missed_a_change_is_not_counted(cluster: Cluster) -> None:
    one = await cluster.join("one")
    late = Member("late", "node", 1, None, await cluster.coordinator.number())
    number = await cluster.change(one)
    assert await cluster.coordinator.join(late) == number
    assert [replica for replica, _, _ in await cluster.coordinator.members()] == ["one"]
    late.known = number
    await cluster.coordinator.join(late)
    assert len(await cluster.coordinator.members()) == 2


@with_cluster
async def test_changes_take_turns(cluster: Cluster) -> None:
    one = await cluster.join("one")
    await cluster.coordinator.begin(one, "first", NAME)
    second = asyncio.create_task(cluster.coordinator.begin(one, "second", NAME))
    await asyncio.sleep(0.05)
    assert not second.done()
    await cluster.coordinator.end("first", CHANGE, changed=True)
    await second


@with_cluster
async def test_a_request_that_goes_while_it_waits_takes_no_turn(cluster: Cluster) -> None:
    one = await cluster.join("one")
    before = await cluster.coordinator.number()
    await cluster.coordinator.begin(one, "first", NAME)
    gone = asyncio.create_task(cluster.coordinator.begin(one, "gone", NAME))
    await asyncio.sleep(0)
    await cluster.coordinator.end("gone", CHANGE, changed=False)
    assert await cluster.coordinator.number() == before
    await cluster.coordinator.end("first", CHANGE, changed=True)
    await gone
    await cluster.coordinator.begin(one, "third", NAME)  # would wait for ever for the one that left


@with_cluster
async def test_the_turn_of_a_dead_replica_ends_and_is_read_by_all(cluster: Cluster) -> None:
    one, two = await cluster.join("one"), await cluster.join("two")
    await cluster.coordinator.begin(one, "first", NAME)
    cluster.dead = {"one"}
    await cluster.coordinator.begin(two, "second", NAME)
    news = await cluster.coordinator.news("two", two.known, SOON)
    assert news is not None
    assert news.changes == (Announced(NAME, unknown=True),)


@with_cluster
async def test_who_missed_many_changes_reads_all_files(cluster: Cluster) -> None:
    one = await cluster.join("one")
    for _ in range(1001):
        await cluster.change(one)
    news = await cluster.coordinator.news("one", one.known, SOON)
    assert news is not None
    assert news.changes is None
    news = await cluster.coordinator.news("one", news.number - 1000, SOON)
    assert news is not None
    assert len(news.changes or ()) == 1000


@with_cluster
async def test_a_new_coordinator_has_higher_numbers_and_knows_nobody(cluster: Cluster) -> None:
    one = await cluster.join("one")
    known = await cluster.change(one)
    restarted = Cluster()
    assert await restarted.coordinator.number() > known
    assert await restarted.coordinator.news("one", known, SOON) is None
    number = await restarted.coordinator.end("lost", CHANGE, changed=True)  # of the earlier one
    assert await restarted.coordinator.number() == number
