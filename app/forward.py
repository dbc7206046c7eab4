"""A forward pass: from rows' tokens and slots to their logits, on the bank's device.

On CPUs one kernel does what follows a product (`app.fused_overlay`); GPUs are served by
`app.device_forward`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import torch

from app.bank import Bank
from app.device_forward import DeviceForward
from app.fused_overlay import FusedOverlay
from app.graphs import cuda_recorder
from deltas import EncoderConfig, Size, encode, pack, packed_sizes
from deltas.flat_batch import Rows


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
        return HostForward(config, bank)
    return DeviceForward(config, bank, cuda_recorder)


class HostForward:
    """On a CPU."""

    def __init__(self, config: EncoderConfig, bank: Bank) -> None:
        self._config = config
        self._bank = bank

    def run(self, tokens: Rows, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits."""
        batch = pack(tokens, keys=self._keys(tokens, slots), windows=False)
        overlay = FusedOverlay(self._bank, batch, slots, int8=int8)
        return overlay.head(encode(self._config, overlay, batch))

    def prepare(self, needed: Size) -> int:
        """Have oneDNN compile its products for every size of batch.

        It compiles a bfloat16 product for each new number of lines, in 0.5 to 4 ms, which is
        longer than many take. Packed batches come in few sizes, so all of them are met here.
        """
        if self._bank.dtype != torch.bfloat16:
            return 0
        return self._bank.run_products(packed_sizes(needed.tokens))

    def _keys(self, tokens: Rows, slots: Sequence[int]) -> list[int]:
        """The slot of rows that must lie side by side, 0 for others."""
        num_tokens: Counter[int] = Counter()
        for (ids, _), slot in zip(tokens, slots, strict=True):
            num_tokens[slot] += len(ids)
        side_by_side = {
            slot for slot, num in num_tokens.items() if self._bank.needs_span(slot, num)
        }
        return [slot if slot in side_by_side else 0 for slot in slots]
