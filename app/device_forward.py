"""A forward pass on a GPU: one copy there, one back, and nobody waits in between.

Rows lie end to end (`deltas.flat_batch`). Where none of them has matrices of its own, the pass is a
recorded one (`app.graphs`); others are started kernel by kernel.

Legend: R rows, P packed rows, H hidden width, C labels of a row's task, M labels of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from app.bank import KINDS, Bank
from app.bank_overlay import BankOverlay
from app.graphs import Graphs, Recorder, fitting_size, sizes
from deltas import EncoderConfig, FlatBatch, Size, encode, flatten, unflatten

Tokens = Sequence[tuple[Sequence[int], Sequence[int]]]  # input ids, token type ids


class _Places(NamedTuple):
    """Where the logits of a batch come from: of each its row, and its line in the slots' heads."""

    slots: list[int]
    rows: list[int]
    lines: list[int]


class DeviceForward:
    """Passes on a GPU; from one thread at a time.

    Args:
        config: sizes of the encoder.
        bank: on that device.
        record: what records passes; None runs each as it is.
    """

    def __init__(self, config: EncoderConfig, bank: Bank, record: Recorder | None = None) -> None:
        self._config = config
        self._bank = bank
        self._graphs = Graphs(self._encode_plain, record) if record else None
        self._moves = bank.moves

    def run(self, tokens: Tokens, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits; see `app.forward.Forward`."""
        if int8:
            raise ValueError("int8 is for CPUs")
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in slots))
        logits = self.begin(tokens, slots).tolist()  # the only place that waits
        return [logits[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def begin(self, tokens: Tokens, slots: Sequence[int]) -> Tensor:
        """Start a pass, and wait for nothing.

        Returns:
            float32 [M] on the device: the logits of all rows, one row's after the other's.
        """
        own = self._bank.matrix_slots.intersection(slots)
        size = None
        if self._graphs is not None and not own:
            size = fitting_size(sum(len(ids) for ids, _ in tokens), len(tokens))
        places = self._places(slots)
        lines = self._lines(slots, size.rows if size else len(tokens))
        keys = [slot if slot in own else 0 for slot in slots]
        flat = flatten(tokens, size, keys, (lines, places.rows, places.lines))
        numbers = _on_device(flat.numbers, self._bank.device)
        of_pass, of_logits = numbers.tensor_split([flat.size.num_numbers + len(lines)])
        if size is None:
            pooled = self._encode(of_pass, flat, slots)
        else:
            pooled = self._encode_recorded(of_pass, size)
        return self._logits(pooled, places.slots, *of_logits.view(2, -1))

    def prepare(self, max_tokens: int) -> int:
        """Record passes of the sizes up to that one; returns how many there are."""
        if self._graphs is None:
            return 0
        wanted = sizes(max_tokens)
        with torch.inference_mode():
            for size in reversed(wanted):  # the others find room in what the largest one took
                flat = flatten([([0], [0])], size, along=[self._lines([0], size.rows)])
                self._encode_recorded(_on_device(flat.numbers, self._bank.device), size)
        return len(wanted)

    def _encode_recorded(self, numbers: Tensor, size: Size) -> Tensor:
        assert self._graphs is not None
        if self._moves != self._bank.moves:
            self._graphs.forget()
            self._moves = self._bank.moves
        return self._graphs.run(numbers, size)

    def _encode_plain(self, numbers: Tensor, size: Size) -> Tensor:
        """Of rows with nothing but vectors of their own, as it can be recorded: [P, H]."""
        batch = unflatten(numbers, size, min(size.tokens, self._config.max_positions))
        lines = numbers[size.num_numbers :].view(len(KINDS), -1)
        return encode(self._config, BankOverlay(self._bank, batch, (), lines), batch)

    def _encode(self, numbers: Tensor, flat: FlatBatch, slots: Sequence[int]) -> Tensor:
        """Of any rows: [R, H]."""
        batch = unflatten(numbers, flat.size, flat.longest, flat.spans)
        lines = numbers[flat.size.num_numbers :].view(len(KINDS), -1)
        return encode(self._config, BankOverlay(self._bank, batch, slots, lines), batch)

    def _lines(self, slots: Sequence[int], count: int) -> list[int]:
        """Each row's lines in the bank's vectors, kind after kind, filled up to so many rows."""
        filling = [0] * (count - len(slots))
        return list(chain.from_iterable(kind + filling for kind in self._bank.lines_of(slots)))

    def _places(self, slots: Sequence[int]) -> _Places:
        first_line: dict[int, int] = {}
        num_lines = 0
        places = _Places([], [], [])
        for row, slot in enumerate(slots):
            count = len(self._bank.heads[slot][1])
            if slot not in first_line:
                first_line[slot] = num_lines
                num_lines += count
                places.slots.append(slot)
            places.rows.extend([row] * count)
            places.lines.extend(range(first_line[slot], first_line[slot] + count))
        return places

    def _logits(self, pooled: Tensor, slots: Sequence[int], rows: Tensor, lines: Tensor) -> Tensor:
        """Logits of all rows [M], however many heads they have, in a few kernels.

        Args:
            pooled: [P or R, H].
            slots: whose heads are read, one after the other.
            rows: int64 [M], of each logit.
            lines: int64 [M], of each logit in these heads.
        """
        weight = torch.cat([self._bank.heads[slot][0] for slot in slots])
        bias = torch.cat([self._bank.heads[slot][1] for slot in slots])
        logits: Tensor = torch.linalg.vecdot(pooled.float()[rows], weight[lines])
        return logits.add_(bias[lines])


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """In one copy, which on a GPU nobody waits for."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
