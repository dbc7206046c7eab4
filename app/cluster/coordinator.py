"""Brings changes of deltas to all replicas: counts the changes, and knows which replica has which.

The files are the state (decision 0125); the coordinator holds none that a restart could lose. A
replica that changes files takes a turn, so that no two replicas change files at a time. At the end
of the turn the change gets a number, and the coordinator waits until each replica has read the
files and says so, or is dead. It is one actor of the cluster, and knows neither torch nor HTTP.
`app.cluster.membership` is its client in each replica. Tested by
tests/unit/app/cluster/test_coordinator.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

Name = tuple[str, str]  # task and strategy

_KEPT_CHANGES = 1000  # a replica that missed more reads all files
_LOOK_S = 0.5  # between two looks at replicas that have not confirmed


@dataclass(frozen=True)
class Announced:
    """A change that all replicas have to read.

    Attributes:
        name: the changed delta; None for all files.
        version: its default version after the change; None if it has none, or for all files.
        unknown: whether the version is not known, because the change failed half-way, or the
            replica died that made it.
    """

    name: Name | None = None
    version: str | None = None
    unknown: bool = False


@dataclass(frozen=True)
class News:
    """The changes after the one that a replica knows; `changes` is None if it must read all."""

    number: int
    changes: tuple[Announced, ...] | None = ()


@dataclass
class Member:
    """A replica that answers requests.

    Attributes:
        replica: its id.
        node: its machine, by the id that Ray gives it.
        pid: its process on that machine.
        handle: actor of Ray that lives as long as the replica.
        known: number of the last change that it has read.
    """

    replica: str
    node: str
    pid: int
    handle: Any
    known: int = 0


@dataclass
class _Turn:
    turn_id: str
    member: Member
    name: Name | None


async def answers(member: Member) -> bool:
    """Tell whether the actor of a replica lives; one that is only slow does."""
    import ray

    try:
        await asyncio.wait_for(member.handle.__ray_ready__.remote(), _LOOK_S)
    except TimeoutError:
        return True
    except ray.exceptions.RayActorError:
        return False
    return True


class Coordinator:
    """Numbers the changes, gives turns, and waits until all replicas know a change.

    The first number is the time of the start, so numbers rise across restarts.

    Args:
        is_alive: function that tells whether a replica lives.
    """

    def __init__(self, is_alive: Callable[[Member], Awaitable[bool]] = answers) -> None:
        self._is_alive = is_alive
        self._number = time.time_ns()
        self._oldest = self._number
        self._changes: dict[int, Announced] = {}
        self._members: dict[str, Member] = {}
        self._turn: _Turn | None = None
        self._given_up: set[str] = set()
        self._news = asyncio.Condition()
        self._watching: asyncio.Task[None] | None = None

    async def number(self) -> int:
        """Return the number of the last change."""
        return self._number

    async def members(self) -> list[tuple[str, str, int]]:
        """Return id, machine and process of each replica that answers requests."""
        return [(each.replica, each.node, each.pid) for each in self._members.values()]

    async def _watch(self) -> None:
        """Count dead replicas out, and end their turns, until cancelled.

        A replica that dies in its turn may have changed files: all others read them.
        """
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 - else no dead replica is noticed any more
                logger.warning("the replicas could not be looked at: %s", error)

    async def _look(self) -> None:
        for member in list(self._members.values()):
            if not await self._is_alive(member):
                await self.leave(member.replica)
        turn = self._turn
        if turn is not None and not await self._is_alive(turn.member):
            await self.end(turn.turn_id, Announced(turn.name, unknown=True), changed=True)

    async def join(self, member: Member) -> int:
        """Count a replica in, if it knows the last change; returns that change's number."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())
        if member.known == self._number:
            self._members[member.replica] = member
        return self._number

    async def leave(self, replica: str) -> None:
        """Count a replica out."""
        self._members.pop(replica, None)
        await self._wake()

    async def news(self, replica: str, known: int, patience_s: float) -> News | None:
        """Take a replica's confirmation, and return the next changes, at the latest after a while.

        Returns None if the replica is not counted, after a restart of the coordinator: it has to
        read all files and to join again.
        """
        member = self._members.get(replica)
        if member is None:
            return None
        if known != member.known:
            member.known = known
            await self._wake()
        if known == self._number:
            await self._wait(patience_s)
        return self._after(known)

    async def begin(self, member: Member, turn_id: str, name: Name | None) -> None:
        """Wait for the turn to change files, and take it.

        Args:
            member: replica that changes them.
            turn_id: name of the turn.
            name: delta that changes; None for all.
        """
        while self._turn is not None:
            await self._wait(_LOOK_S)
        if turn_id in self._given_up:  # the request has gone while it waited
            self._given_up.discard(turn_id)
        else:
            self._turn = _Turn(turn_id, member, name)

    async def end(self, turn_id: str, change: Announced, *, changed: bool) -> int:
        """End a turn, and announce its change; returns the number of the change.

        A turn that was lost with an earlier coordinator is announced all the same.
        """
        if self._turn is not None and self._turn.turn_id == turn_id:
            self._turn = None
        elif not changed:
            self._given_up.add(turn_id)
        if changed:
            self._number += 1
            self._changes[self._number] = change
            while len(self._changes) > _KEPT_CHANGES:
                self._oldest = next(iter(self._changes))
                del self._changes[self._oldest]
        await self._wake()
        return self._number

    async def unconfirmed(self, number: int, patience_s: float) -> tuple[list[str], int]:
        """Wait until all replicas know a change; dead ones are counted out.

        Returns the replicas that do not know it in time, and how many know it.
        """
        deadline = time.monotonic() + patience_s
        while late := [each for each in self._members.values() if each.known < number]:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            await self._wait(left)
        return [each.replica for each in late], len(self._members) - len(late)

    def _after(self, known: int) -> News:
        if known < self._oldest:
            return News(self._number, None)
        later = (change for number, change in self._changes.items() if number > known)
        return News(self._number, tuple(later))

    async def _wake(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _wait(self, seconds: float) -> None:
        """Wait until something changes, for `seconds` at most."""
        try:
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait()
        except TimeoutError:
            pass
