"""Keeps the values of versions that are served no more while requests still hold their records.

A request finds its record once, and its rows may wait or be loaded after that. A record that no
request holds is freed by Python, which a weak reference tells, so that requests count nothing. Read
`app.engine.changes` first, which reports each change. Tested by
tests/unit/app/engine/test_retired.py.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable
from pathlib import Path

from app.engine.cache import DeltaCache, Key
from deltas import Record

_CLEAN_EVERY_S = 0.5


class RetiredVersions:
    """The versions that left the store, and those whose files went bad while they are served.

    Args:
        cache: holds the values of these versions until they are unused.
    """

    def __init__(self, cache: DeltaCache) -> None:
        self._cache = cache
        self._records: list[tuple[Key, weakref.ref[Record]]] = []  # that requests may hold
        self._keys: set[Key] = set()  # of versions that are served no more
        self._leaving: set[Key] = set()  # of versions whose files are being removed
        self._bad: dict[Path, Key] = {}  # served, though the file has another content now
        self._cleaning: asyncio.Task[None] | None = None

    @property
    def keys(self) -> frozenset[Key]:
        """The versions that are served no more and still held by requests, as far as is known."""
        return frozenset(self._keys)

    def hold(self, keys: Iterable[Key]) -> None:
        """Keep resident versions, because their files will be removed."""
        self._leaving.update(keys)
        self._hold_all()

    def hold_bad(self, bad: dict[Path, Key]) -> None:
        """Keep resident versions while their files are bad; these replace those of the last call.

        Args:
            bad: the version that is served in place of each bad file.
        """
        self._bad = dict(bad)
        self._hold_all()

    def add(self, before: Iterable[Record], after: Iterable[Record]) -> None:
        """Note a change of the store; call it in the event loop.

        Args:
            before: the records of the changed deltas that the store had.
            after: the records that it has now.
        """
        current = list(after)
        same, served = {id(record) for record in current}, {record.key for record in current}
        for record in before:
            if id(record) not in same:
                self._records.append((record.key, weakref.ref(record)))
            if record.key not in served:
                self._keys.add(record.key)
        self._keys -= served
        self._leaving.clear()
        self._cache.revive(served)
        self._hold_all()
        if self._records and (self._cleaning is None or self._cleaning.done()):
            self._cleaning = asyncio.create_task(self._clean_until_empty())

    def clean(self) -> None:
        """Let go of the versions that no request holds."""
        self._records = [item for item in self._records if item[1]() is not None]
        free = self._keys - {key for key, _ in self._records}
        self._keys -= free
        self._hold_all()
        self._cache.retire(free)

    def close(self) -> None:
        """End the background work."""
        if self._cleaning is not None:
            self._cleaning.cancel()

    def _hold_all(self) -> None:
        self._cache.hold({*self._keys, *self._leaving, *self._bad.values()})

    async def _clean_until_empty(self) -> None:
        while self._keys or self._records:
            await asyncio.sleep(_CLEAN_EVERY_S)
            self.clean()
