"""Keeps the deltas of a replica equal to those of all others: joins, follows changes, takes turns.

A replica asks the coordinator for news all the time. To ask again is to confirm the last
news, so it first reads the changed files. A replica that starts reads the folder, and is counted
only if no change came in between. Read `app.cluster.coordinator` for the other side, and
`app.engine.changes` for a change itself. Tested by tests/unit/app/cluster/test_membership.py and
tests/integration/app/test_cluster.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.cluster.coordinator import Announced, Member, Name
from app.errors import StorageError
from app.http.context import Serving
from deltas.store.files import checked_path, kept_files

logger = logging.getLogger(__name__)

CONFIRM_S = 30.0  # to read the files of a change; a replica that needs longer is replaced
_PATIENCE_S = 5.0
_READ_ALL_S = 900.0  # new files are many, perhaps; reading them again in a new replica takes longer
_AGAIN_S = 0.5


class Membership:
    """The part of a replica that speaks with the coordinator.

    Args:
        coordinator: handle of the coordinator's actor.
        member: this replica.
        serving: parts of its server; it confirms the state of the store.
        root: folder that takes published deltas; None takes none.
        count: function that counts the replicas that the cluster says are running.
    """

    def __init__(
        self,
        coordinator: Any,
        member: Member,
        serving: Serving,
        root: Path | None,
        count: Callable[[], Awaitable[int]],
    ) -> None:
        self._coordinator = coordinator
        self._member = member
        self._serving = serving
        self._root = root
        self._count = count
        self._current_at = time.monotonic()
        self._patience_s = _PATIENCE_S
        self._following: asyncio.Task[None] | None = None

    @property
    def behind_s(self) -> float:
        """The seconds since this replica last knew all changes, or spoke with the coordinator.

        They do not count while it reads all files, unless that takes very long.
        """
        return max(0.0, time.monotonic() - self._current_at - self._patience_s)

    async def start(self, known: int) -> None:
        """Join, and follow changes from now on.

        Args:
            known: number of the last change before the files were read.
        """
        await self._join(known)
        self._serving.changes.turn = self.turn
        self._following = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Leave, because the replica ends."""
        if self._following is not None:
            self._following.cancel()
        with suppress(Exception):  # the cluster may be gone
            await self._coordinator.leave.remote(self._member.replica)

    async def _join(self, known: int) -> None:
        """Read all files until the coordinator has no change that is newer."""
        while (number := await self._coordinator.join.remote(self._with(known))) != known:
            await self._read_all()
            known = number
        self._member = self._with(known)

    def _with(self, known: int) -> Member:
        return replace(self._member, known=known)

    async def _follow(self) -> None:
        """Read all changes, until cancelled; failures are tried again."""
        while True:
            try:
                await self._follow_once()
            except Exception as error:  # noqa: BLE001 - the replica is replaced if it lasts
                logger.warning("changes of other replicas can't be followed: %s", error)
                await asyncio.sleep(_AGAIN_S)

    async def _follow_once(self) -> None:
        known = self._member.known
        news = await self._coordinator.news.remote(self._member.replica, known, _PATIENCE_S)
        if news is None:  # the coordinator was restarted and does not know this replica
            number = await self._coordinator.number.remote()
            await self._read_all()
            await self._join(number)
        elif news.number != known:
            await self._read(news.changes)
            if missing := self._missing(news.changes or ()):
                raise StorageError(f"the folder here does not show {', '.join(missing)}")
            self._member = self._with(news.number)
        self._current_at = time.monotonic()

    async def _read(self, changes: Iterable[Announced] | None) -> None:
        """Read the files of changed deltas again; None reads all."""
        names = {change.name for change in changes or ()}
        if changes is None or None in names or self._root is None:
            await self._read_all()
            return
        paths: set[Path] = set()
        for name in filter(None, names):
            target = checked_path(self._root, self._serving.engine.backbone.ref.id, *name)
            paths |= {target, *await asyncio.to_thread(kept_files, target)}
            paths |= set(self._serving.engine.store.files_of(*name))
        await self._serving.reload(sorted(paths))

    async def _read_all(self) -> None:
        self._patience_s = _READ_ALL_S
        try:
            await self._serving.reload()
        finally:
            self._patience_s = _PATIENCE_S

    def _missing(self, changes: Iterable[Announced]) -> list[str]:
        """Return the changed deltas that have another default version here."""
        last = {change.name: change for change in changes if change.name}
        wanted = {name: change.version for name, change in last.items() if not change.unknown}
        return [
            f"version {version or 'none'} of {'/'.join(name)}"
            for name, version in wanted.items()
            if self._version(name) != version
        ]

    def _version(self, name: Name) -> str | None:
        served = self._serving.engine.store.versions(*name)
        return served[0].version if served else None

    @asynccontextmanager
    async def turn(self, name: Name | None) -> AsyncIterator[None]:
        """Keep other replicas from changing files, and have all of them read the change.

        Args:
            name: delta that changes; None for all.

        Raises:
            StorageError: a replica has not read the change in time; the files have it all the same.
        """
        turn_id = uuid.uuid4().hex
        try:
            await self._coordinator.begin.remote(self._member, turn_id, name)
        except asyncio.CancelledError:
            self._coordinator.end.remote(turn_id, Announced(name), changed=False)
            raise
        try:
            yield
        except BaseException:
            # Whatever the files are now, all replicas have to agree on it. This one may not have
            # read them, so the version that it serves may be another one.
            self._end(turn_id, Announced(name, unknown=True))
            raise
        change = Announced(name, self._version(name) if name else None)
        await self._confirmed(await self._end(turn_id, change))

    def _end(self, turn_id: str, change: Announced) -> Any:
        return self._coordinator.end.remote(turn_id, change, changed=True)

    async def _confirmed(self, number: int) -> None:
        """Wait until each live replica knows a change."""
        deadline = time.monotonic() + CONFIRM_S
        late, num_members, num_running = ["?"], 0, 1
        while time.monotonic() < deadline:
            left = deadline - time.monotonic()
            late, num_members = await self._coordinator.unconfirmed.remote(number, left)
            try:
                num_running = await self._count()
            except Exception as error:  # noqa: BLE001 - Ray starts its controller again
                logger.warning("the replicas can't be counted: %s", error)
                late = late or ["?"]
            if not late and num_members >= num_running:
                return
            await asyncio.sleep(_AGAIN_S)
        raise StorageError(
            f"the change is on the disk, but {max(len(late), num_running - num_members)} of "
            f"{num_running} replicas have not read it within {CONFIRM_S:g} s ({', '.join(late)}); "
            "all replicas need the same folder. Those that stay behind are replaced; wait and "
            "repeat the request"
        )


async def read_number(coordinator: Any) -> int:
    """Return the number of the last change, once the coordinator answers."""
    while True:
        try:
            return int(await coordinator.number.remote())
        except Exception as error:  # noqa: BLE001 - its machine may have failed just now
            logger.warning("the coordinator does not answer: %s", error)
            await asyncio.sleep(_AGAIN_S)
