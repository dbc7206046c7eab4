"""A forward pass on a GPU: one copy there, one back, and nobody waits in between.

Rows lie end to end (`deltas.flat_batch`). Where none of them has matrices of its own, the pass is a
recorded one (`app.graphs`); others are started kernel by kernel.

Legend: R rows, P packed rows, H hidden width, M logits of all rows, L labels of all their tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor

from app.bank import KINDS, Bank
from app.bank_overlay import BankOverlay
from app.graphs import Graphs, Recorder, fitting, sizes
from deltas import EncoderConfig, Size, encode, flatten, unflatten
from deltas.flat_batch import Rows
from deltas.packing import Span


class DeviceForward:
    """Passes on a GPU; from one thread at a time.

    Args:
        config: sizes of the encoder.
        bank: on that device.
        new_recorder: makes what records passes; None runs each as it is.
    """

    def __init__(
        self,
        config: EncoderConfig,
        bank: Bank,
        new_recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self._config = config
        self._bank = bank
        self._sizes = sizes(config.max_positions) if new_recorder else []
        self._graphs = Graphs(self._encode, new_recorder) if new_recorder else None
        self._moves = bank.moves

    def run(self, tokens: Rows, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits; see `app.forward.Forward`."""
        if int8:
            raise ValueError("int8 is for CPUs")
        ends = list(accumulate(len(self._bank.heads[slot][1]) for slot in slots))
        logits = self.begin(tokens, slots).tolist()  # the only place that waits
        return [logits[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    @torch.inference_mode()
    def begin(self, tokens: Rows, slots: Sequence[int]) -> Tensor:
        """Start a pass, and wait for nothing.

        Returns:
            float32 [M] on the device: the logits of all rows, one row's after the other's.
        """
        own = self._bank.matrix_slots.intersection(slots)
        size = None if own else fitting(self._sizes, Size.of(tokens))
        with_heads = list(dict.fromkeys(slots))
        lines = self._lines(slots, size.rows if size else len(tokens))
        keys = [slot if slot in own else 0 for slot in slots]
        flat = flatten(tokens, size, keys, (lines, self._places(slots, with_heads)))
        numbers = _on_device(flat.numbers, self._bank.device)
        of_pass, places = numbers.tensor_split([flat.size.num_numbers + len(lines)])
        if size is None:
            pooled = self._encode(of_pass, flat.size, slots, flat.spans)
        else:
            pooled = self._encode_recorded(of_pass, size)
        weight = torch.cat([self._bank.heads[slot][0] for slot in with_heads])  # [L, H]
        bias = torch.cat([self._bank.heads[slot][1] for slot in with_heads])
        # Every row with every label is one product; most rows need a few of their numbers.
        scores = torch.addmm(bias, pooled[: len(tokens)].float(), weight.t())  # [R, L]
        return scores.view(-1)[places]

    @torch.inference_mode()
    def prepare(self, needed: Size) -> int:
        """Record passes for all batches that need no more than that; returns how many there are."""
        if self._graphs is None:
            return 0
        most = fitting(self._sizes, needed) or self._sizes[-1]
        for size in reversed(self._sizes):
            if size.tokens <= most.tokens and size.longest <= most.longest:
                flat = flatten([([0], [0])], size, along=[self._lines([0], size.rows)])
                self._encode_recorded(_on_device(flat.numbers, self._bank.device), size)
        return self._graphs.num_recorded

    def _encode_recorded(self, numbers: Tensor, size: Size) -> Tensor:
        assert self._graphs is not None
        if self._moves != self._bank.moves:
            self._graphs.forget()
            self._moves = self._bank.moves
        return self._graphs.run(numbers, size)

    def _encode(
        self,
        numbers: Tensor,
        size: Size,
        slots: Sequence[int] = (),
        spans: dict[int, Span] | None = None,
    ) -> Tensor:
        """A pass: [P, H], the input's rows first. What it is made of are the size and the slots.

        Args:
            numbers: of the batch, and of each packed row its lines in the bank's vectors.
            size: of the batch.
            slots: of each row; may be left out if all have nothing but vectors.
            spans: where rows of slots lie that have more.
        """
        batch = unflatten(numbers, size, spans)
        lines = numbers[size.num_numbers :].view(len(KINDS), -1)
        return encode(self._config, BankOverlay(self._bank, batch, slots, lines), batch)

    def _lines(self, slots: Sequence[int], count: int) -> list[int]:
        """Each row's lines in the bank's vectors, kind after kind, filled up to so many rows."""
        filling = [0] * (count - len(slots))
        return list(chain.from_iterable(kind + filling for kind in self._bank.lines_of(slots)))

    def _places(self, slots: Sequence[int], with_heads: Sequence[int]) -> list[int]:
        """Where each logit of each row is in the scores of all rows with all heads' labels."""
        counts = [len(self._bank.heads[slot][1]) for slot in with_heads]
        first = dict(zip(with_heads, accumulate(counts, initial=0), strict=False))
        count = dict(zip(with_heads, counts, strict=True))
        labels = sum(counts)
        places: list[int] = []
        for row, slot in enumerate(slots):
            start = row * labels + first[slot]
            places += range(start, start + count[slot])
        return places


def _on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """In one copy, which on a GPU nobody waits for."""
    if device.type == "cuda":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
