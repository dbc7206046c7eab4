"""An LRU cache of deltas: which are resident in the bank, which are being loaded, which are pinned.

The bank holds a limited number of deltas; the others wait as files. I/O threads load the deltas of
queued rows to the host (`DeltaCache.prefetch`). A thread that runs a batch moves them into the bank
(`DeltaCache.acquire`), which evicts the least recently used deltas, but neither pinned ones nor
deltas of a running batch. Read `app.engine.loader` next.

Batches may run at the same time. Each acquires at most its share of the slots, so that no batch
ever waits for another's. No file is read while a lock is held.
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

from app.errors import DeltaUnavailableError
from deltas import DeltaError, DeltaFormatError, Record
from deltas.encoder.bank import Bank, StagedDelta

logger = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")
Key = tuple[str, str, str]  # of a record
Acquired = dict[Key, int | DeltaUnavailableError]  # the slot of each delta, or why it has none

TOO_SLOW = "reading its file takes too long"

# More threads than a quarter of the cores slow the forward pass (docs/performance/log.md).
_THREADS = min(4, max(1, (os.cpu_count() or 1) // 4))
_MAX_THREADS = 32  # threads at most, hanging ones included
_HANGS_S = 1.0
_KEEP_S = 30.0  # a delta that was prefetched, but not used by then, belonged to a cancelled request
_PREFETCHED_UNLIMITED = 64

_Task = tuple[Future[Any], Callable[[Any], Any], Any]
_Inbox = SimpleQueue[_Task | None]
_Busy = dict[int, float]  # when each working thread began its task


class IoThreads:
    """A pool of daemon threads that calls functions in the order in which they are submitted.

    A stock executor would make the interpreter wait at exit for every queued call, so that a file
    that hangs would keep a server from stopping. If threads hang, others replace them, up to a
    limit. The threads end when the pool is garbage-collected.

    Args:
        num_threads: threads that work at the same time.
        name: prefix of the threads' names.
        hangs_s: a call that takes longer counts as hanging.
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
        # The threads hold no reference to this pool, which would keep it alive.
        weakref.finalize(self, _stop, self._inbox, self._threads)

    def submit(self, function: Callable[[A], B], argument: A) -> Future[B]:
        """Call a function in a thread; the future gets its result or exception."""
        future: Future[B] = Future()
        self._inbox.put((future, function, argument))
        self.replace_hanging()
        return future

    def replace_hanging(self) -> None:
        """Start another thread if hanging ones leave too few to load files."""
        now = time.monotonic()
        hanging = sum(now - since > self._hangs_s for since in list(self._busy.values()))
        too_few = len(self._threads) - hanging < self._num_threads
        if too_few and len(self._threads) < _MAX_THREADS:
            self._start_one()

    def _start_one(self) -> None:
        name = f"{self._name}-{len(self._threads)}"
        arguments = self._inbox, self._busy
        thread = threading.Thread(target=_work, args=arguments, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()


def _work(inbox: _Inbox, busy: _Busy) -> None:
    thread = threading.get_ident()
    while (task := inbox.get()) is not None:
        future, function, argument = task
        busy[thread] = time.monotonic()
        try:
            future.set_result(function(argument))
        except BaseException as error:  # noqa: BLE001 - the caller gets it from the future
            future.set_exception(error)
        busy.pop(thread, None)
        del task, future, function, argument  # else they would live until the next task


def _stop(inbox: _Inbox, threads: list[threading.Thread]) -> None:
    for _ in threads:
        inbox.put(None)


@dataclass
class CacheCounts:
    """Lookups and evictions so far; a batch looks up each of its deltas once."""

    hits: int = 0  # lookups of resident deltas
    prefetched: int = 0  # lookups of deltas that were on the host
    waited: int = 0  # lookups that waited for a file
    failed: int = 0  # deltas that could not be loaded
    evicted: int = 0


@dataclass(frozen=True)
class PendingLoad:
    """A delta that is being loaded, or is on the host; times are on the monotonic clock."""

    staged: Future[StagedDelta]
    requested_at: float
    deadline: float  # batches wait no longer


class DeltaCache:
    """The resident deltas, in the order of their last use.

    Args:
        bank: holds the deltas; only this class changes it while serving.
        load: reads a delta; called in I/O threads.
        max_slots: maximum number of resident deltas; None for no limit.
        pinned: keys of deltas that are never evicted.
        load_timeout_s: longest time that a batch waits for a file.
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
        self.load_timeout_s = load_timeout_s
        self._bank = bank
        self._load = load
        self._pinned = frozenset(pinned)
        self._max_prefetched = max_slots or _PREFETCHED_UNLIMITED
        # Slots for deltas that are not pinned; None for no limit.
        self._num_evictable = None if max_slots is None else max_slots - len(self._pinned)
        self._concurrency = 1
        self._threads = IoThreads(_THREADS, "deltas")
        self._lock = Lock()  # guards the attributes below
        self._bank_lock = Lock()  # guards the bank; taken before the other lock
        self._slot_of: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._users: Counter[Key] = Counter()  # running batches that use a delta
        self._pending: dict[Key, PendingLoad] = {}
        self._held: frozenset[Key] = frozenset()
        self._retired: set[Key] = set()

    @property
    def num_used(self) -> int:
        """Number of resident deltas."""
        return len(self._slot_of)

    def __contains__(self, record: object) -> bool:
        """Tell whether a delta is resident."""
        return isinstance(record, Record) and record.key in self._slot_of

    def insert(self, loaded: Sequence[tuple[Record, StagedDelta]]) -> None:
        """Put loaded deltas into free slots, before any batch runs."""
        if self.max_slots is not None and self.num_used + len(loaded) > self.max_slots:
            raise ValueError(
                f"{len(loaded)} deltas do not fit: {self.num_used} of {self.max_slots} are used"
            )
        with self._bank_lock, self._lock:
            slots = self._bank.add([staged for _, staged in loaded])
            for (record, _), slot in zip(loaded, slots, strict=True):
                self._slot_of[record.key] = slot

    def evict(self, record: Record) -> None:
        """Remove a delta from the bank if it is resident."""
        with self._bank_lock:
            with self._lock:
                slot = self._slot_of.pop(record.key, None)
            if slot is not None:
                self._bank.remove(slot)

    def retire(self, keys: Iterable[Key]) -> None:
        """Let the next batch evict deltas that no request can ask for any more; thread-safe."""
        with self._lock:
            self._retired.update(keys)

    def revive(self, keys: Iterable[Key]) -> None:
        """Undo `retire` for deltas that are served again; thread-safe."""
        with self._lock:
            self._retired.difference_update(keys)

    def hold(self, keys: Iterable[Key]) -> None:
        """Keep exactly these deltas once they are resident, because their files may go.

        They come on top of `max_slots`; thread-safe.
        """
        with self._lock:
            self._held = frozenset(keys)

    def pin(self, keys: Collection[Key]) -> None:
        """Never evict these deltas, and no others; they may be loaded later."""
        with self._lock:
            self._pinned = frozenset(keys)
            if self.max_slots is not None:
                self._num_evictable = self.max_slots - len(self._pinned)

    def limit(self, max_slots: int) -> None:
        """Limit the number of resident deltas from now on, because there are more than slots.

        Without a slot for deltas that are not pinned, there is no limit.
        """
        with self._lock:
            if max_slots > len(self._pinned):
                self.max_slots = max_slots
                self._max_prefetched = max_slots
                self._num_evictable = max_slots - len(self._pinned)

    def set_concurrency(self, num_batches: int) -> int:
        """Share the slots between this many batches, or fewer; returns how many may run."""
        if self._num_evictable is not None:
            num_batches = max(1, min(num_batches, self._num_evictable))
        self._concurrency = num_batches
        return num_batches

    def prefetch(self, records: Iterable[Record]) -> dict[Key, PendingLoad]:
        """Start loading the deltas of rows that will be queued; returns the pending ones at once.

        Thread-safe. Loads nothing if as many deltas as the bank has slots are pending already.
        """
        now = time.monotonic()
        pending: dict[Key, PendingLoad] = {}
        with self._lock:
            for record in records:
                key = record.key
                if key in self._slot_of:
                    self._slot_of.move_to_end(key)  # evict others first
                elif key not in self._pending and self._may_prefetch(now):
                    self._pending[key] = self._start_load(record)
                if key in self._pending:
                    pending[key] = self._pending[key]
        return pending

    def replace_hanging(self) -> None:
        """Start another thread if files that hang block the queue; thread-safe."""
        self._threads.replace_hanging()

    def _start_load(self, record: Record) -> PendingLoad:
        now = time.monotonic()
        return PendingLoad(self._threads.submit(self._load, record), now, now + self.load_timeout_s)

    def _may_prefetch(self, now: float) -> bool:
        if len(self._pending) >= self._max_prefetched:
            old = [key for key, load in self._pending.items() if now - load.requested_at > _KEEP_S]
            for key in old:
                del self._pending[key]
        loads = self._pending.values()
        on_time = sum(load.staged.done() or now <= load.deadline for load in loads)
        return on_time < self._max_prefetched  # files that hang do not count

    def split(self, records: Iterable[Record]) -> list[list[Record]]:
        """Split a batch's deltas into parts that fit its share of slots, resident ones first."""
        distinct = {record.key: record for record in records}
        if self._num_evictable is None:
            return [list(distinct.values())]
        pinned = [record for key, record in distinct.items() if key in self._pinned]
        others = [record for key, record in distinct.items() if key not in self._pinned]
        share = self._num_evictable // self._concurrency or min(1, self._num_evictable)
        if len(others) <= share:
            return [pinned + others]
        if share < 1:
            raise ValueError(f"all {self.max_slots} slots are pinned; none is left for the others")
        others.sort(key=lambda record: record.key not in self._slot_of)
        first, rest = others[:share], others[share:]
        return [pinned + first, *(rest[at : at + share] for at in range(0, len(rest), share))]

    @contextmanager
    def acquire(self, records: Sequence[Record]) -> Iterator[Acquired]:
        """Make the deltas of a part of `split` resident, and keep them so until the block ends.

        Yields the slot of each delta, or the error for the client.
        """
        used: list[Key] = []
        try:
            acquired: Acquired = {}
            pending = self._look_up(records, acquired)
            used += acquired
            staged = self._wait(records, pending, acquired)
            acquired.update(self._add(staged, pending, used))
            yield acquired
        finally:
            with self._lock:
                self._users.subtract(used)
                self._users = +self._users  # drops zeros

    def _look_up(self, records: Sequence[Record], acquired: Acquired) -> dict[Key, PendingLoad]:
        """Write the slots of resident deltas into `acquired`; returns the others, being loaded."""
        pending: dict[Key, PendingLoad] = {}
        with self._lock:
            for record in records:
                key = record.key
                if key in self._slot_of:
                    self._slot_of.move_to_end(key)
                    acquired[key] = self._slot_of[key]
                    self._users[key] += 1
                    self.counts.hits += 1
                    continue
                if key not in self._pending:
                    self._pending[key] = self._start_load(record)
                pending[key] = self._pending[key]
                if pending[key].staged.done():
                    self.counts.prefetched += 1
                else:
                    self.counts.waited += 1
        return pending

    def _wait(
        self, records: Sequence[Record], pending: dict[Key, PendingLoad], acquired: Acquired
    ) -> dict[Key, StagedDelta]:
        """Wait for files; writes errors into `acquired`."""
        staged: dict[Key, StagedDelta] = {}
        for record in records:
            if load := pending.get(record.key):
                try:
                    wait_s = max(0.0, load.deadline - time.monotonic())
                    staged[record.key] = load.staged.result(wait_s)
                except Exception as error:  # noqa: BLE001 - concerns this delta only
                    acquired[record.key] = _unavailable(record, error)
        return staged

    def _add(
        self, staged: dict[Key, StagedDelta], pending: dict[Key, PendingLoad], used: list[Key]
    ) -> dict[Key, int]:
        """Move deltas into the bank; returns their slots and appends their keys to `used`."""
        with self._bank_lock:
            with self._lock:  # another batch may have added the same delta meanwhile
                slots = {key: self._slot_of[key] for key in staged if key in self._slot_of}
                self._users.update(slots.keys())  # before anything is evicted
                used += slots
                evicted = self._evict_for(len(staged) - len(slots))
            for slot in evicted:
                self._bank.remove(slot)
            new = {key: delta for key, delta in staged.items() if key not in slots}
            added = dict(zip(new, self._bank.add(list(new.values())), strict=True))
            with self._lock:
                self._slot_of |= added
                self._users.update(added.keys())
                used += added
                for key, load in pending.items():
                    if load.staged.done():  # a late one may serve the next batch
                        self._pending.pop(key, None)
                self.counts.failed += len(pending) - len(staged)
        return slots | added

    def _evict_for(self, num_new: int) -> list[int]:
        """Forget retired deltas, and the least recently used ones to make space for new ones.

        Returns their slots.
        """
        evicted = [k for k in self._retired if k in self._slot_of and k not in self._users]
        # Others have been evicted before, unless a batch waits for them.
        left = self._retired.difference(evicted)
        self._retired = {k for k in left if k in self._slot_of or k in self._pending}
        slots = [self._slot_of.pop(key) for key in evicted]
        if self.max_slots is None:
            return slots
        num_held = sum(key in self._slot_of for key in self._held)
        excess = max(0, self.num_used - num_held + num_new - self.max_slots)
        stays = self._pinned | self._held if self._held else self._pinned
        unused = (k for k in self._slot_of if k not in self._users and k not in stays)
        evicted = list(islice(unused, excess))
        self.counts.evicted += len(evicted)
        return slots + [self._slot_of.pop(key) for key in evicted]


def _unavailable(record: Record, error: Exception) -> DeltaUnavailableError:
    """Make the client's error; paths and unforeseen errors appear in the log only."""
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
