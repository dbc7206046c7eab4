"""The engine: the only owner of torch objects while serving; turns rows of any tasks into logits.

One frozen backbone, one bank of deltas, one forward pass for a batch whatever it mixes. Which
deltas are in the bank is kept by `app.engine.cache`, how they get there by `app.engine.loader`. Knows nothing of
HTTP or queues: `app.batching.batcher` decides which rows run together.

Which answers int8 may have turned: they are computed once more, without rounding.

A forward pass: from rows' tokens and slots to their logits, on the bank's device.

On CPUs one kernel does what follows a product (`app.engine.cpu`); GPUs are served by
`app.engine.cuda`.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import torch

from app.engine.bank import Bank, StagedDelta
from app.engine.cache import DeltaCache, Key, PendingLoad
from app.engine.cpu import CpuForward
from app.engine.cuda import CudaForward, cuda_recorder
from app.engine.loader import Loader
from app.errors import DeltaUnavailableError
from deltas import (
    Backbone,
    DeltaError,
    DeltaFormatError,
    EncoderConfig,
    Record,
    Size,
    Store,
    TokenizedRow,
    check_fit,
    dtype_of,
    pick_device,
    pick_precision,
    tokenize_texts,
)
from deltas.encoder.flat_batch import Rows
from deltas.hardware import give_back_freed_memory
from deltas.manifest import Manifest, TaskKind

# On the packaged backbone rounding moves the margin between two labels by 0.05 (root mean square;
# docs/performance.md). Two labels that far apart score 0.5125 and 0.4875.
LOW_MARGIN = 0.05


def has_low_margin(kind: TaskKind, logits: Sequence[float]) -> bool:
    """Whether a row's labels would be others if its logits moved by a little.

    Args:
        kind: a regression's value has no labels that could turn.
        logits: [C]; not close if some are not finite, since a second look would not mend them.
    """
    if kind == "regression" or not all(map(math.isfinite, logits)):
        return False
    if kind == "multi_label":
        return any(abs(logit) < LOW_MARGIN for logit in logits)
    best, second = heapq.nlargest(2, logits)
    return best - second < LOW_MARGIN


@dataclass
class Int8Counts:
    """What int8 computed so far, by task and strategy.

    Attributes:
        rows: of all kinds, the readiness check's and those that nobody waited for any more too.
        low_margin: those of them that were computed once more.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    low_margin: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def needs_recompute(self, manifest: Manifest, logits: Sequence[float]) -> bool:
        """Count a row that int8 computed; gives whether it is a close call."""
        close = has_low_margin(manifest.task.kind, logits)
        with self._lock:
            self.rows[manifest.key] += 1
            if close:
                self.low_margin[manifest.key] += 1
        return close


class Forward(Protocol):
    """A pass over rows of any slots."""

    def run(self, tokens: Rows, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits, C numbers.

        Args:
            tokens: of each row.
            slots: of each row, in the bank.
            int8: multiply whole numbers; on CPUs, and for slots without matrices of their own.
        """

    def prepare(self, needed: Size) -> int:
        """Have ready what passes of no more than that need; returns how much was made."""


def forward_of(config: EncoderConfig, bank: Bank) -> Forward:
    """The pass for the bank's device."""
    if bank.device.type == "cpu":
        return CpuForward(config, bank)
    return CudaForward(config, bank, cuda_recorder)


_TRIAL_TEXT = "ready?"
_TRIAL_ROWS = 256
_PUT_AT_ONCE = 64  # bounds what is held twice at the start

Outcome = list[float] | DeltaUnavailableError  # a row's logits, or why its delta isn't there


@dataclass(frozen=True)
class EngineRow:
    """A tokenized row, the delta that answers it, and its length with special tokens."""

    tokens: TokenizedRow
    record: Record
    num_tokens: int


class Engine:
    """Answers rows.

    What the manifests of all deltas say is checked here. Then the bank is filled: pinned deltas
    first, then others in the store's order, each read, checked and tried out on a row; one that
    fails is moved to `store.rejected`. What finds no room is read and checked when a row needs it.

    Args:
        backbone: the frozen encoder.
        store: the deltas.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32", "bf16" or, on a CPU, "int8".
        max_slots: most deltas on the device at a time; 0 for all.
        pinned: deltas that stay there; fewer than `max_slots`, unless they are all there is.
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
    ) -> None:
        self.backbone = backbone
        self.store = store
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        dtype = dtype_of(self.precision, self.device)
        self._bank = Bank(backbone, self.device, dtype, int8=self.precision == "int8")
        self._forward = forward_of(backbone.config, self._bank)
        self.int8_counts = Int8Counts()
        self._loader = Loader(backbone, self._bank, again=max_slots > 0)
        self._pinned = {record.key for record in pinned}
        most = max_slots if 0 < max_slots < len(store.records) else None
        self.cache = DeltaCache(self._bank, self._loader.load, max_slots=most, pinned=self._pinned)
        self._check_manifests()
        self._fill()
        self._try_out([record for record in store.records if record in self.cache])
        self.forget_counts()
        give_back_freed_memory()

    def forget_counts(self) -> None:
        """Begin to count anew: what is run at the start is nobody's."""
        self.cache.forget_counts()
        self.int8_counts = Int8Counts()

    def _check_manifests(self) -> None:
        for record in self.store.records:
            try:
                check_fit(record.manifest, self.backbone)
            except DeltaError as error:
                self.store.reject(record, str(error), with_copies=True)

    def _fill(self) -> None:
        """Load as many deltas as there are slots for, the pinned ones first."""
        tried: set[Path] = set()
        most = self.cache.max_slots or len(self.store.records)
        self._bank.reserve(min(most, len(self.store.records)))
        while free := most - self.cache.num_used:
            new = [record for record in self.store.records if record.path not in tried]
            if not new:
                break
            new.sort(key=lambda record: record.key not in self._pinned)  # stable
            new = new[:free]
            for start in range(0, len(new), _PUT_AT_ONCE):
                self._load(new[start : start + _PUT_AT_ONCE])
            # Again, since a copy may step in for a damaged file, or there is still room.
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
        """Reject deltas whose values are finite but whose answers are not."""
        rows = [row for record in records for row in self.tokenize(record, [self.trial(record)])]
        for start in range(0, len(rows), _TRIAL_ROWS):
            part = rows[start : start + _TRIAL_ROWS]
            for row, logits in zip(part, self._answer(part), strict=True):
                if isinstance(logits, list) and not all(map(math.isfinite, logits)):
                    reason = f"answers NaN or infinite numbers in {self.precision}; train it again"
                    self.store.reject(row.record, reason, with_copies=True)
                    self.cache.evict(row.record)

    @staticmethod
    def trial(record: Record) -> tuple[str, ...]:
        """Texts that fit a delta's task, to try it out."""
        return (_TRIAL_TEXT,) * len(record.manifest.task.text_fields)

    def tokenize(self, record: Record, texts: Sequence[tuple[str, ...]]) -> list[EngineRow]:
        """Tokenize checked texts for one delta; thread-safe, nothing of it touches the bank."""
        max_length = record.manifest.task.max_length
        tokenized = tokenize_texts(self.backbone.tokenizer, max_length, texts)
        return [EngineRow(tokens, record, tokens.num_tokens) for tokens in tokenized]

    def prefetch(self, records: Sequence[Record]) -> dict[Key, PendingLoad]:
        """Begin to load what rows will need that are about to be queued; from any thread.

        Returns:
            what is being loaded; a batch with these rows would wait for it.
        """
        return self.cache.prefetch(records)

    def predict(self, rows: Sequence[EngineRow], threads: int = 0) -> list[Outcome]:
        """Logits of each row, in order. In as many threads at a time as `slots.share` was told.

        One forward pass, or several if the rows need more deltas than there are slots. A row whose
        delta can't be loaded gets the error in place of logits; the others get theirs.

        Args:
            rows: of any deltas.
            threads: that the forward pass gets; PyTorch keeps that for the calling thread. 0 leaves
                it as it is.
        """
        if threads and threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return self._answer(rows)

    def _answer(self, rows: Sequence[EngineRow]) -> list[Outcome]:
        """`predict`, also for the trials at the start, which are nobody's batches."""
        outcomes: list[Outcome] = [[]] * len(rows)
        of_delta: dict[tuple[str, str, str], list[int]] = {}
        for number, row in enumerate(rows):
            of_delta.setdefault(row.record.key, []).append(number)
        with torch.inference_mode():
            for part in self.cache.split([rows[own[0]].record for own in of_delta.values()]):
                with self.cache.acquire(part) as claimed:
                    slot_of: dict[tuple[str, str, str], int] = {}
                    for key, slot in claimed.items():
                        if isinstance(slot, DeltaUnavailableError):
                            for number in of_delta[key]:
                                outcomes[number] = slot
                        else:
                            slot_of[key] = slot
                    self._run_passes(rows, of_delta, slot_of, outcomes)
        return outcomes

    def _run_passes(
        self,
        rows: Sequence[EngineRow],
        of_delta: Mapping[tuple[str, str, str], list[int]],
        slot_of: Mapping[tuple[str, str, str], int],
        outcomes: list[Outcome],
    ) -> None:
        """Answer the rows of the deltas that have slots, in one pass where that can be."""
        passes: dict[bool, tuple[list[int], list[int]]] = {}
        for key, slot in slot_of.items():
            chosen, slots = passes.setdefault(self._bank.is_apart(slot), ([], []))
            chosen += of_delta[key]
            slots += [slot] * len(of_delta[key])
        for chosen, slots in passes.values():
            self._run_pass(rows, chosen, slots, outcomes)

    def _run_pass(
        self,
        rows: Sequence[EngineRow],
        chosen: list[int],
        slots: list[int],
        outcomes: list[Outcome],
        *,
        exact: bool = False,
    ) -> None:
        """Write the logits of the chosen rows, whose deltas lie in `slots`, into `outcomes`.

        In int8 close calls are computed once more without it, as everything is if `exact`.
        """
        tokens = [(rows[n].tokens.input_ids, rows[n].tokens.token_type_ids) for n in chosen]
        int8 = bool(self._bank.quantised) and not exact
        int8 = int8 and self._bank.matrix_slots.isdisjoint(slots)
        answers = self._forward.run(tokens, slots, int8=int8)
        close: tuple[list[int], list[int]] = [], []
        for number, slot, logits in zip(chosen, slots, answers, strict=True):
            outcomes[number] = logits
            if int8 and self.int8_counts.needs_recompute(rows[number].record.manifest, logits):
                close[0].append(number)
                close[1].append(slot)
        if close[0]:
            self._run_pass(rows, *close, outcomes, exact=True)

    def prepare(self, max_tokens: int, threads: int, max_rows: int = 256) -> int:
        """Have ready what batches of no more than that need, before rows come.

        On CPUs that is code for every number of lines, on GPUs a recorded pass for every size.

        Returns:
            how much was made.
        """
        torch.set_num_threads(threads)
        lengths = (record.manifest.task.max_length for record in self.store.records)
        longest = max(lengths, default=1)
        return self._forward.prepare(Size(max_tokens, max_rows, longest))

    def describe(self) -> dict[str, Any]:
        """What the engine runs on, for the log at start and for operators."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "deltas": len(self.store.records),
            "slots": self.cache.max_slots or "all",
            "backbone": self.backbone.ref.id,
            "fingerprint": self.backbone.ref.fingerprint,
        }
