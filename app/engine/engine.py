"""The engine computes the logits of tokenized rows of any tasks in one forward pass.

It owns the frozen backbone and the bank of deltas. `app.engine.cache` decides which deltas are in
the bank, `app.engine.loader` reads them from files, and `deltas.encoder.cpu` or `app.engine.cuda`
computes a pass. The engine knows neither HTTP nor queues: `app.batching.batcher` decides which rows
run together. Read `deltas.encoder.encoder` next.

With int8, a row whose labels could change if its logits moved a little is recomputed without int8.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch

from app.engine.cache import CacheCounts, DeltaCache, Key
from app.engine.cuda.forward import CudaForward
from app.engine.cuda.graphs import cuda_recorder
from app.engine.loader import Loader
from app.errors import DeltaUnavailableError
from deltas import (
    Backbone,
    DeltaError,
    DeltaFormatError,
    Record,
    Store,
    TokenizedRow,
    check_fit,
    dtype_of,
    pick_device,
    pick_precision,
    tokenize_texts,
)
from deltas.encoder.bank import Bank, StagedDelta
from deltas.encoder.cpu import CpuForward
from deltas.hardware import give_back_freed_memory
from deltas.manifest import Manifest

# On the packaged backbone int8 moves the margin between two labels by 0.05 (root mean square;
# docs/performance/log.md). Two labels with this margin score 0.5125 and 0.4875.
LOW_MARGIN = 0.05

_TRIAL_TEXT = "ready?"
_TRIAL_ROWS = 256
_LOADED_TOGETHER = 64  # bounds the deltas that the host and the bank hold at the same time

Outcome = list[float] | DeltaUnavailableError  # a row's logits, or why its delta is missing


def has_low_margin(manifest: Manifest, logits: Sequence[float]) -> bool:
    """Tell whether a row's decision could change if its logits moved by `LOW_MARGIN`.

    The margin counts in logits as trained, so a calibrated head scales it. A regression decides
    nothing, and recomputing logits that are not finite would not mend them.
    """
    kind, rule = manifest.task.kind, manifest.decision
    if kind == "regression" or not all(map(math.isfinite, logits)):
        return False
    scales = manifest.calibration.scale if manifest.calibration else (1.0,)
    if kind == "multi_label":
        thresholds = rule.thresholds if rule else ()
        cuts = [_log_odds(share) for share in thresholds] or [0.0] * len(logits)
        margins = [LOW_MARGIN * scale for scale in scales] * (len(logits) // len(scales))
        return any(abs(z - cut) < m for z, cut, m in zip(logits, cuts, margins, strict=True))
    margin = LOW_MARGIN * scales[0]
    best, second = heapq.nlargest(2, logits)
    if best - second < margin:
        return True
    if rule is None or rule.limit is None:
        return False
    found, limit = rule.confidence_of(logits), rule.limit
    if rule.confidence == "probability":
        found, limit = _log_odds(found), _log_odds(limit)
    return abs(found - limit) < margin


def _log_odds(share: float) -> float:
    if share <= 0 or share >= 1:
        return math.copysign(math.inf, share - 0.5)
    return math.log(share / (1 - share))


@dataclass
class Int8Counts:
    """Rows computed in int8 so far, by task and strategy.

    The readiness check and abandoned requests count, too. `low_margin` are the recomputed rows.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    low_margin: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def needs_recompute(self, manifest: Manifest, logits: Sequence[float]) -> bool:
        """Count a row that was computed in int8; tell whether to recompute it."""
        is_low = has_low_margin(manifest, logits)
        with self._lock:
            self.rows[manifest.key] += 1
            if is_low:
                self.low_margin[manifest.key] += 1
        return is_low


class Forward(Protocol):
    """A forward pass over rows of any slots, on the bank's device."""

    def logits(
        self, rows: Sequence[TokenizedRow], slots: Sequence[int], *, int8: bool = False
    ) -> list[list[float]]:
        """Return the logits of each row.

        Args:
            rows: the tokens of each row.
            slots: the bank's slot of each row.
            int8: whether to multiply in int8, on a CPU, for slots without trained matrices.
        """

    def prepare(self, max_tokens: int, max_rows: int, longest: int) -> int:
        """Compile or record everything that batches up to these sizes need; returns how much."""


@dataclass(frozen=True)
class EngineRow:
    """A tokenized row, the delta that answers it, and the tokens that it adds to a batch."""

    tokens: TokenizedRow
    record: Record
    num_tokens: int


class Engine:
    """Computes logits with every delta of a store.

    All manifests are checked at construction. Then the bank is filled, pinned deltas first, the
    others in the store's order: each delta is read, checked, and tried on a row. A delta that fails
    is moved to `store.rejected`. Deltas beyond `max_slots` are read when a row needs them.
    So are versions that are kept beside a default one. While it serves, `app.engine.changes`
    replaces its `store`.

    Args:
        backbone: the frozen encoder.
        store: the deltas.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or, on a CPU, "int8".
        max_slots: maximum number of resident deltas; 0 for no limit.
        pinned: deltas that stay resident; fewer than `max_slots`, unless all deltas are pinned.
        threads: threads of the passes that try out the deltas; 0 keeps the number of PyTorch.
    """

    def __init__(
        self,
        backbone: Backbone,
        store: Store,
        *,
        device: str = "auto",
        precision: str = "auto",
        max_slots: int = 0,
        pinned: Sequence[Record] = (),
        threads: int = 0,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.backbone = backbone
        self.store = store
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        dtype = dtype_of(self.precision, self.device)
        self._bank = Bank(backbone, self.device, dtype, int8=self.precision == "int8")
        self._forward: Forward = (
            CpuForward(backbone.config, self._bank)
            if self.device.type == "cpu"
            else CudaForward(backbone.config, self._bank, cuda_recorder)
        )
        self._loader = Loader(backbone, self._bank, again=max_slots > 0)
        self._pinned = {record.key for record in pinned}
        self._max_slots = max_slots
        limit = max_slots if 0 < max_slots < len(store.records) else None
        self.cache = DeltaCache(self._bank, self._loader.load, max_slots=limit, pinned=self._pinned)
        self.int8_counts = Int8Counts()
        self._check_manifests()
        self._fill()
        self._try_out([record for record in store.records if record in self.cache])
        self.reset_counts()
        give_back_freed_memory()

    def serve(self, store: Store) -> None:
        """Answer from another store from now on.

        Requests that have found their deltas are answered by those. New deltas are loaded when a
        row needs them. What was pinned stays pinned, in its new version.
        """
        self.store = store
        found = (store.versions(task, strategy) for task, strategy, _ in self._pinned)
        self.cache.pin({ranked[0].key for ranked in found if ranked})
        if self.cache.max_slots is None and 0 < self._max_slots < len(store.records):
            self.cache.limit(self._max_slots)

    def check(self, record: Record) -> None:
        """Check a file that is not served yet as those of the start are checked; thread-safe.

        Raises:
            DeltaFormatError: the file is missing, damaged, or not the one that was found.
            DeltaMismatchError: the delta does not fit the backbone.
        """
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)  # of this thread; a team would compete with the batches
        check_fit(record.manifest, self.backbone)
        self._loader.load(record)

    def forget(self, path: Path) -> None:
        """Forget a file that has gone."""
        self._loader.forget(path)

    def reset_counts(self) -> None:
        """Start all counts at zero, so that rows of the start-up are not counted."""
        self.cache.counts = CacheCounts()
        self.int8_counts = Int8Counts()

    def _check_manifests(self) -> None:
        for record in self.store.records:
            try:
                check_fit(record.manifest, self.backbone)
            except DeltaError as error:
                self.store.reject(record, str(error), with_copies=True)

    def _fill(self) -> None:
        """Load deltas until all slots are used, pinned deltas first."""
        tried: set[Path] = set()
        wanted = [record for record in self.store.records if not record.is_kept]
        most = self.cache.max_slots or len(wanted)
        self._bank.reserve(min(most, len(wanted)))
        while free := most - self.cache.num_used:
            wanted = [record for record in self.store.records if not record.is_kept]
            new = [record for record in wanted if record.path not in tried]
            if not new:
                break
            new.sort(key=lambda record: record.key not in self._pinned)  # stable
            new = new[:free]
            for start in range(0, len(new), _LOADED_TOGETHER):
                self._load(new[start : start + _LOADED_TOGETHER])
            # Repeated, because a rejected file leaves its slot free, or a copy takes its place.
            tried |= {record.path for record in new}

    def _load(self, records: Sequence[Record]) -> None:
        loaded: list[tuple[Record, StagedDelta]] = []
        for record in records:
            try:
                loaded.append((record, self._loader.load(record)))
            except DeltaError as error:
                reason = error.reason if isinstance(error, DeltaFormatError) else str(error)
                self.store.reject(record, reason)
        self.cache.insert(loaded)

    def _try_out(self, records: Sequence[Record]) -> None:
        """Reject deltas that have finite values but give infinite logits or NaN."""
        rows = [row for record in records for row in self.tokenize(record, [self.trial(record)])]
        for start in range(0, len(rows), _TRIAL_ROWS):
            part = rows[start : start + _TRIAL_ROWS]
            for row, logits in zip(part, self._predict(part), strict=True):
                if isinstance(logits, list) and not all(map(math.isfinite, logits)):
                    reason = f"answers NaN or infinite numbers in {self.precision}; train it again"
                    self.store.reject(row.record, reason, with_copies=True)
                    self.cache.evict(row.record)

    @staticmethod
    def trial(record: Record) -> tuple[str, ...]:
        """Return a row of texts that fits a delta's task."""
        return (_TRIAL_TEXT,) * len(record.manifest.task.text_fields)

    def tokenize(self, record: Record, texts: Sequence[tuple[str, ...]]) -> list[EngineRow]:
        """Tokenize checked texts for one delta; thread-safe."""
        task = record.manifest.task
        tokenizer = self.backbone.tokenizer
        tokenized = tokenize_texts(tokenizer, task.max_length, texts, pairs=task.pairs)
        return [EngineRow(tokens, record, tokens.num_tokens) for tokens in tokenized]

    def predict(self, rows: Sequence[EngineRow], threads: int = 0) -> list[Outcome]:
        """Compute the logits of each row, in order.

        Takes several forward passes if the rows need more deltas than there are slots. A row whose
        delta cannot be loaded gets the error in place of logits. As many threads may call this at
        a time as `cache.set_concurrency` was told.

        Args:
            rows: rows of any deltas.
            threads: threads of the forward pass; PyTorch keeps the number for the calling thread.
                0 leaves it unchanged.
        """
        if threads and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return self._predict(rows)

    def _predict(self, rows: Sequence[EngineRow]) -> list[Outcome]:
        outcomes: list[Outcome] = [[]] * len(rows)
        indices: dict[Key, list[int]] = {}  # of each delta's rows
        for index, row in enumerate(rows):
            indices.setdefault(row.record.key, []).append(index)
        records = [rows[of_delta[0]].record for of_delta in indices.values()]
        with torch.inference_mode():
            for part in self.cache.split(records):
                with self.cache.acquire(part) as acquired:
                    passes: dict[bool, list[tuple[int, int]]] = {}
                    for key, slot in acquired.items():
                        if isinstance(slot, DeltaUnavailableError):
                            for index in indices[key]:
                                outcomes[index] = slot
                        else:
                            chosen = passes.setdefault(self._bank.allows_int8(slot), [])
                            chosen += [(index, slot) for index in indices[key]]
                    for int8, chosen in passes.items():
                        self._run_pass(rows, chosen, outcomes, int8=int8)
        return outcomes

    def _run_pass(
        self,
        rows: Sequence[EngineRow],
        chosen: Sequence[tuple[int, int]],
        outcomes: list[Outcome],
        *,
        int8: bool,
    ) -> None:
        """Write the logits of the chosen rows, (index, slot) each, into `outcomes`.

        With int8, rows with a low margin are recomputed without it.
        """
        slots = [slot for _, slot in chosen]
        answers = self._forward.logits([rows[n].tokens for n, _ in chosen], slots, int8=int8)
        again: list[tuple[int, int]] = []
        for (index, slot), logits in zip(chosen, answers, strict=True):
            outcomes[index] = logits
            if int8 and self.int8_counts.needs_recompute(rows[index].record.manifest, logits):
                again.append((index, slot))
        if again:
            self._run_pass(rows, again, outcomes, int8=False)

    def prepare(self, max_tokens: int, threads: int, max_rows: int = 256) -> int:
        """Compile products (CPU) or record passes (GPU) for batches up to these sizes.

        Returns their number.
        """
        torch.set_num_threads(threads)
        return self._forward.prepare(max_tokens, max_rows, self.longest_sequence)

    @property
    def longest_sequence(self) -> int:
        """The most tokens of a text, or of a pair that is read jointly."""
        lengths = (record.manifest.task.max_length for record in self.store.records)
        return max(lengths, default=1)

    def describe(self) -> dict[str, Any]:
        """Describe device, precision and deltas, for operators and for the log at start."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "deltas": len(self.store.records),
            "slots": self.cache.max_slots or "all",
            "backbone": self.backbone.ref.id,
            "fingerprint": self.backbone.ref.fingerprint,
        }
