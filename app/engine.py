"""The engine: the only owner of torch objects while serving; turns rows of any tasks into logits.

One frozen backbone, one bank with a slot for each delta, one forward pass for a batch whatever it
mixes. Knows nothing of HTTP or queues: `app.batcher` decides which rows run together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.bank import Bank
from app.bank_overlay import BankOverlay
from deltas import (
    DTYPES,
    Backbone,
    DeltaError,
    DeltaFormatError,
    Record,
    Store,
    TokenizedRow,
    check_delta,
    encode,
    pack,
    packed_sizes,
    pick_device,
    pick_precision,
    tokenize_texts,
)

_TRIAL_TEXT = "ready?"
_TRIAL_ROWS = 256
_MADE_UP_LENGTHS = (12, 24, 9, 60, 33, 45, 18, 100, 28)  # mean 37, as in GLUE's dev sets


@dataclass(frozen=True)
class EngineRow:
    """One tokenized row and the delta that shall answer it."""

    tokens: TokenizedRow
    record: Record

    @property
    def num_tokens(self) -> int:
        """Length, special tokens included: what the batcher's budget counts."""
        return self.tokens.num_tokens


class Engine:
    """Answers rows.

    Every delta of the store is read, checked, put into the bank and tried out on a row here; one
    that fails is moved to `store.rejected` and the others are served.

    Args:
        backbone: the frozen encoder.
        store: the deltas.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "fp32" or "bf16".
    """

    def __init__(
        self, backbone: Backbone, store: Store, *, device: str = "auto", precision: str = "auto"
    ) -> None:
        self.backbone = backbone
        self.store = store
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        self._bank = Bank(backbone, self.device, DTYPES[self.precision])
        self._slots: dict[tuple[str, str, str], int] = {}
        self._load()
        self._try_out(list(store.records))

    def _load(self) -> None:
        """Put one delta after the other into the bank, so that no more than one is held twice."""
        loaded: set[Path] = set()
        # Again, since a copy may step in for a damaged file.
        while new := [record for record in self.store.records if record.path not in loaded]:
            for record in new:
                try:
                    delta = record.load()
                    check_delta(delta, self.backbone)
                except DeltaError as error:
                    reason = error.reason if isinstance(error, DeltaFormatError) else str(error)
                    self.store.reject(record, reason)
                else:
                    loaded.add(record.path)
                    (slot,) = self._bank.add([delta])
                    self._slots[(*record.manifest.key, record.version)] = slot

    def _try_out(self, records: Sequence[Record]) -> None:
        """Reject deltas whose values are finite but whose answers are not."""
        rows = [row for record in records for row in self.tokenize(record, [self.trial(record)])]
        for start in range(0, len(rows), _TRIAL_ROWS):
            part = rows[start : start + _TRIAL_ROWS]
            with torch.inference_mode():
                answers = self._forward(part)
            for row, logits in zip(part, answers, strict=True):
                if not all(map(math.isfinite, logits)):
                    reason = f"answers NaN or infinite numbers in {self.precision}; train it again"
                    self.store.reject(row.record, reason, with_copies=True)

    @staticmethod
    def trial(record: Record) -> tuple[str, ...]:
        """Texts that fit a delta's task, to try it out."""
        return (_TRIAL_TEXT,) * len(record.manifest.task.text_fields)

    def tokenize(self, record: Record, texts: Sequence[tuple[str, ...]]) -> list[EngineRow]:
        """Tokenize checked texts for one delta; thread-safe, nothing of it touches the bank."""
        max_length = record.manifest.task.max_length
        tokenized = tokenize_texts(self.backbone.tokenizer, max_length, texts)
        return [EngineRow(tokens, record) for tokens in tokenized]

    def run(self, rows: Sequence[EngineRow]) -> list[list[float]]:
        """Logits of each row, in order, from one forward pass. Call from one thread at a time."""
        if not rows:
            return []
        with torch.inference_mode():
            return self._forward(rows)

    def _forward(self, rows: Sequence[EngineRow]) -> list[list[float]]:
        slots = [self._slots[(*row.record.manifest.key, row.record.version)] for row in rows]
        matrix_slots = self._bank.matrix_slots
        tokens = [(row.tokens.input_ids, row.tokens.token_type_ids) for row in rows]
        keys = [slot if slot in matrix_slots else 0 for slot in slots]
        batch = pack(tokens, self.device, keys)
        overlay = BankOverlay(self._bank, batch, slots)
        pooled = encode(self.backbone.config, overlay, batch)
        return [logits.tolist() for logits in overlay.head(pooled)]

    def seconds_for(self, num_tokens: int, threads: int | None = None) -> float:
        """Run a batch of about so many tokens in rows of mixed lengths; returns how long it took.

        Call it before rows are served, in the thread that will start the one that serves them.

        Args:
            num_tokens: of the batch.
            threads: set to so many first, for good.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        rows = self._made_up_rows(num_tokens)
        started = time.perf_counter()
        self.run(rows)
        return time.perf_counter() - started

    def _made_up_rows(self, num_tokens: int) -> list[EngineRow]:
        records, size = self.store.records, self.backbone.config.vocab_size
        rows: list[EngineRow] = []
        left = num_tokens
        while records and left > 0:
            record = records[len(rows) % len(records)]
            longest = min(record.manifest.task.max_length, left)
            length = min(_MADE_UP_LENGTHS[len(rows) % len(_MADE_UP_LENGTHS)], longest)
            ids = [(len(rows) + place) % size for place in range(length)]
            rows.append(EngineRow(TokenizedRow(ids, [0] * length, False), record))
            left -= length
        return rows

    def compile_kernels(self, max_tokens: int) -> int:
        """Have the CPU library compile its products for every size of batch, before rows come.

        oneDNN compiles a bfloat16 product for each new number of lines, in 1 to 4 ms: several times
        what the product takes. Packed batches come in few sizes, so all of them are met here.

        Returns:
            how many products were run; 0 where nothing is compiled.
        """
        if self.device.type != "cpu" or self.precision != "bf16":
            return 0
        return self._bank.run_products(packed_sizes(max_tokens))

    def describe(self) -> dict[str, Any]:
        """What the engine runs on, for the log at start and for operators."""
        return {
            "device": str(self.device),
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "deltas": self._bank.num_slots - 1,
            "backbone": self.backbone.ref.id,
            "fingerprint": self.backbone.ref.fingerprint,
        }
