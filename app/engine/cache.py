"""Slots: which deltas are in the bank, which are on their way there, and which give way.

A bank holds so many deltas; the others wait as files. Threads load what queued rows will need, onto
the host (`prefetch`). A thread that runs a batch moves it into the bank (`claim`): there the
least recently used delta gives way, but never one of the batch itself and never a pinned one. The
lock guards the tables of who is where; no file is read while it is held.

Batches may run side by side. Each holds the slots that it claimed until it gives them back, and
claims no more than its share of the slots at a time, so that none ever waits for another's.

A few threads for work beside everything else, which never hold up an exit.

An executor would do, but the interpreter waits at exit until its threads have done everything that
is queued: a file that hangs would keep a server from stopping. These threads are daemons. And while
all of them hang, others take their place, up to a limit.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from threading import Lock
from typing import Any, TypeVar

from app.engine.bank import Bank, StagedDelta
from app.errors import DeltaUnavailableError
from deltas import DeltaError, DeltaFormatError, Record

A = TypeVar("A")
B = TypeVar("B")

_Work = tuple[Future[Any], Callable[[Any], Any], Any]
_Inbox = SimpleQueue[_Work | None]
_Busy = dict[int, float]  # threads at work, and since when

_MOST = 32  # threads that hang, at most, before work waits for them
_HANGS_S = 1.0


class IoThreads:
    """Runs what it is given, in order; its threads end with it.

    Args:
        num_threads: as many as work at a time, those that hang aside.
        name: of the threads.
        hangs_s: a call that takes longer does not count as work.
    """

    def __init__(self, num_threads: int, name: str, hangs_s: float = _HANGS_S) -> None:
        self._inbox: _Inbox = SimpleQueue()
        self._busy: _Busy = {}
        self._name = name
        self._num_threads = num_threads
        self._hangs_s = hangs_s
        self._threads: list[threading.Thread] = []
        for _ in range(num_threads):
            self._start_one()
        # Threads that held this object would keep it, and themselves, alive.
        weakref.finalize(self, _end, self._inbox, self._threads)

    def submit(self, function: Callable[[A], B], argument: A) -> Future[B]:
        """Have a function called; the future gets what it returns or raises."""
        future: Future[B] = Future()
        self._inbox.put((future, function, argument))
        self.replace_hanging()
        return future

    def replace_hanging(self) -> None:
        """Start another thread if one hangs; for those who wait for work behind it."""
        now = time.monotonic()
        hanging = sum(now - since > self._hangs_s for since in list(self._busy.values()))
        if len(self._threads) - hanging < self._num_threads and len(self._threads) < _MOST:
            self._start_one()

    def _start_one(self) -> None:
        thread = threading.Thread(
            target=_serve,
            args=(self._inbox, self._busy),
            name=f"{self._name}-{len(self._threads)}",
            daemon=True,
        )
        self._threads.append(thread)
        thread.start()


def _serve(inbox: _Inbox, busy: _Busy) -> None:
    own = threading.get_ident()
    while (work := inbox.get()) is not None:
        future, function, argument = work
        busy[own] = time.monotonic()
        try:
            future.set_result(function(argument))
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it, whatever it is
            future.set_exception(error)
        busy.pop(own, None)
        del work, future, function, argument  # or they would live until the next one comes


def _end(inbox: _Inbox, threads: list[threading.Thread]) -> None:
    for _ in threads:
        inbox.put(None)


logger = logging.getLogger(__name__)

Key = tuple[str, str, str]

TOO_SLOW = "reading its file takes too long"

# Threads beyond the cores slow the forward pass (docs/performance.md).
_THREADS = min(4, max(1, (os.cpu_count() or 1) // 4))
_KEEP_S = 30.0  # what nobody has come for by then was for a request that is over
_AHEAD_UNLIMITED = 64


@dataclass
class CacheCounts:
    """What happened so far, counted once a batch for each delta that the batch needs.

    Attributes:
        hits: it was in the bank.
        prefetched: it was on the host, loaded ahead.
        waited: the batch waited for its file.
        failed: it could not be loaded.
        evicted: how many gave way to others.
    """

    hits: int = 0
    prefetched: int = 0
    waited: int = 0
    failed: int = 0
    evicted: int = 0


@dataclass(frozen=True)
class PendingLoad:
    """A delta that is being loaded, or lies loaded on the host.

    Attributes:
        staged: the delta.
        asked_at: on the monotonic clock.
        until: nobody waits for it any longer.
    """

    staged: Future[StagedDelta]
    asked_at: float
    until: float

    def takes_room(self, now: float) -> bool:
        """Whether it is there, or may come."""
        return self.staged.done() or now <= self.until


class DeltaCache:
    """Who is in the bank.

    Args:
        bank: changed by `claim`, `hold` and `drop` only.
        load: reads a delta; called in threads.
        max_slots: most deltas in the bank; None for as many as there are.
        pinned: keys of those that never give way once they are in.
        load_timeout_s: how long a batch waits for a file.
    """

    def __init__(
        self,
        bank: Bank,
        load: Callable[[Record], StagedDelta],
        *,
        max_slots: int | None = None,
        pinned: Collection[Key] = (),
        load_timeout_s: float = 10.0,
    ) -> None:
        self.counts = CacheCounts()
        self.max_slots = max_slots
        self._bank = bank
        self._load = load
        self._pinned = frozenset(pinned)
        self.load_timeout_s = load_timeout_s
        self._max_ahead = max_slots or _AHEAD_UNLIMITED
        self._threads = IoThreads(_THREADS, "deltas")
        self._lock = Lock()
        self._bank_lock = Lock()  # taken before the other one
        self._num_claims = 1
        self._slot_of: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._claimed: Counter[Key] = Counter()  # by how many batches
        self._pending: dict[Key, PendingLoad] = {}

    @property
    def num_used(self) -> int:
        """How many deltas are in the bank."""
        return len(self._slot_of)

    def __contains__(self, record: object) -> bool:
        """Whether a delta is in the bank now."""
        return isinstance(record, Record) and record.key in self._slot_of

    def forget_counts(self) -> None:
        """Begin to count anew."""
        self.counts = CacheCounts()

    def insert(self, loaded: Sequence[tuple[Record, StagedDelta]]) -> None:
        """Put loaded deltas into free slots, before anything is claimed."""
        if self.max_slots is not None and self.num_used + len(loaded) > self.max_slots:
            raise ValueError(f"{len(loaded)} deltas don't fit: {self.num_used} are there already")
        with self._bank_lock, self._lock:
            slots = self._bank.put([staged for _, staged in loaded])
            for (record, _), slot in zip(loaded, slots, strict=True):
                self._slot_of[record.key] = slot

    def evict(self, record: Record) -> None:
        """Free a delta's slot, if it has one."""
        with self._bank_lock:
            with self._lock:
                slot = self._slot_of.pop(record.key, None)
            if slot is not None:
                self._bank.remove(slot)

    def set_concurrency(self, num_claims: int) -> int:
        """Let so many batches claim slots at a time, or fewer if there are not enough slots.

        Returns:
            how many.
        """
        room = self._room
        self._num_claims = num_claims if room is None else max(1, min(num_claims, room))
        return self._num_claims

    @property
    def _room(self) -> int | None:
        """Slots for deltas that are not pinned; None for as many as there are deltas."""
        return None if self.max_slots is None else self.max_slots - len(self._pinned)

    def prefetch(self, records: Iterable[Record]) -> dict[Key, PendingLoad]:
        """Begin to load what will be claimed soon; returns at once. From any thread.

        Loads nothing when as many deltas as the bank has slots are on their way already.

        Returns:
            those of them that are on their way, or wait on the host.
        """
        now = time.monotonic()
        coming: dict[Key, PendingLoad] = {}
        with self._lock:
            for record in records:
                key = record.key
                if key in self._slot_of:
                    self._slot_of.move_to_end(key)  # it will be needed: others give way first
                elif key not in self._pending and self._has_room_ahead(now):
                    self._pending[key] = self._begin_to_load(record)
                if key in self._pending:
                    coming[key] = self._pending[key]
        return coming

    def replace_hanging(self) -> None:
        """Have another thread load what waits behind a file that hangs; from any thread."""
        self._threads.replace_hanging()

    def _begin_to_load(self, record: Record) -> PendingLoad:
        now = time.monotonic()
        return PendingLoad(self._threads.submit(self._load, record), now, now + self.load_timeout_s)

    def _has_room_ahead(self, now: float) -> bool:
        if len(self._pending) >= self._max_ahead:
            stale = [key for key, item in self._pending.items() if now - item.asked_at > _KEEP_S]
            for key in stale:
                del self._pending[key]
        # What hangs takes nobody's room.
        return sum(item.takes_room(now) for item in self._pending.values()) < self._max_ahead

    def split(self, records: Iterable[Record]) -> list[list[Record]]:
        """Cut a batch's deltas into parts of which each fits its share, what is there first."""
        distinct = {record.key: record for record in records}
        if self._room is None:
            return [list(distinct.values())]
        held = [record for key, record in distinct.items() if key in self._pinned]
        others = [record for key, record in distinct.items() if key not in self._pinned]
        room = self._room // self._num_claims
        if len(others) <= room:
            return [held + others]
        if room < 1:
            raise ValueError(f"all {self.max_slots} slots are pinned; none is left for the others")
        others.sort(key=lambda record: record.key not in self._slot_of)
        first, rest = others[:room], others[room:]
        return [held + first, *(rest[at : at + room] for at in range(0, len(rest), room))]

    @contextmanager
    def acquire(
        self, records: Sequence[Record]
    ) -> Iterator[dict[Key, int | DeltaUnavailableError]]:
        """Each delta's slot, or why it has none; the slots stay theirs until the end.

        Args:
            records: distinct deltas, as many as fit: one of `parts`.
        """
        claimed: list[Key] = []
        try:
            outcomes: dict[Key, int | DeltaUnavailableError] = {}
            coming = self._find(records, outcomes)
            claimed += outcomes
            staged = self._wait(records, coming, outcomes)
            outcomes.update(self._put(staged, coming, claimed))
            yield outcomes
        finally:
            with self._lock:
                self._claimed.subtract(claimed)
                self._claimed = +self._claimed  # without those that nobody has

    def _wait(
        self,
        records: Sequence[Record],
        coming: dict[Key, PendingLoad],
        outcomes: dict[Key, int | DeltaUnavailableError],
    ) -> dict[Key, StagedDelta]:
        """Wait for files; writes into `outcomes` what went wrong."""
        staged: dict[Key, StagedDelta] = {}
        for record in records:
            if record.key in coming:
                try:
                    wait_s = max(0.0, coming[record.key].until - time.monotonic())
                    staged[record.key] = coming[record.key].staged.result(wait_s)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is this delta's own
                    outcomes[record.key] = _unavailable(record, error)
        return staged

    def _put(
        self, staged: dict[Key, StagedDelta], coming: dict[Key, PendingLoad], claimed: list[Key]
    ) -> dict[Key, int]:
        """Put what was loaded into slots; returns these, and adds to what the batch has claimed."""
        with self._bank_lock:
            with self._lock:  # another batch may have put the same delta in meanwhile
                slots = {key: self._slot_of[key] for key in staged if key in self._slot_of}
                self._claimed.update(slots.keys())  # before anyone gives way
                claimed += slots
                gone = self._make_room(len(staged) - len(slots))
            for slot in gone:
                self._bank.remove(slot)
            new = {key: item for key, item in staged.items() if key not in slots}
            put = dict(zip(new, self._bank.put(list(new.values())), strict=True))
            with self._lock:
                self._slot_of |= put
                self._claimed.update(put.keys())
                claimed += put
                for key, item in coming.items():
                    if item.staged.done():  # one that was too slow may be there for the next batch
                        self._pending.pop(key, None)
                self.counts.failed += len(coming) - len(staged)
        return slots | put

    def _find(
        self, records: Sequence[Record], outcomes: dict[Key, int | DeltaUnavailableError]
    ) -> dict[Key, PendingLoad]:
        """Write the slots of those in the bank into `outcomes`; returns the others, loading."""
        coming: dict[Key, PendingLoad] = {}
        with self._lock:
            for record in records:
                key = record.key
                if key in self._slot_of:
                    self._slot_of.move_to_end(key)
                    outcomes[key] = self._slot_of[key]
                    self._claimed[key] += 1
                    self.counts.hits += 1
                    continue
                if key not in self._pending:
                    self._pending[key] = self._begin_to_load(record)
                coming[key] = self._pending[key]
                if coming[key].staged.done():
                    self.counts.prefetched += 1
                else:
                    self.counts.waited += 1
        return coming

    def _make_room(self, num_new: int) -> list[int]:
        """Have the least recently used give way to so many new ones; returns their slots."""
        if self.max_slots is None:
            return []
        excess = max(0, self.num_used + num_new - self.max_slots)
        may_go = (k for k in self._slot_of if k not in self._claimed and k not in self._pinned)
        gone = list(islice(may_go, excess))
        self.counts.evicted += len(gone)
        return [self._slot_of.pop(key) for key in gone]


def _unavailable(record: Record, error: Exception) -> DeltaUnavailableError:
    """What the client is told; paths and anything unforeseen are only in the log."""
    if isinstance(error, DeltaFormatError):
        reason = error.reason
    elif isinstance(error, DeltaError):
        reason = str(error)
    elif isinstance(error, TimeoutError):
        reason = TOO_SLOW
    else:
        logger.error("loading %s failed", record.path, exc_info=error)
        reason = "loading it failed; the server's log has the cause"
    return DeltaUnavailableError(*record.key, reason)
