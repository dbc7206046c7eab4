"""The overlay that mixes deltas: what the rows of one packed batch see of the bank.

Legend: N tokens, P packed rows, T lines of x (tokens or packed rows), R rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.bank import KINDS, Bank
from app.engine.sparse import SparseWeights
from deltas import Overlay, PackedBatch

# What a slot has of its own in place of a frozen matrix, and its lines in the batch.
OwnMatrix = tuple[Tensor | SparseWeights, slice]


class BankOverlay(Overlay):
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots.
        batch: packed rows; those of a slot in `bank.matrix_slots` lie side by side.
        slots: each row's slot, in the order of the input.
        lines: int64 [2, R], each row's lines in the bank's vectors, by kind, where they are on the
            device already; then `slots` may leave out those that have nothing but vectors.
    """

    def __init__(
        self, bank: Bank, batch: PackedBatch, slots: Sequence[int], lines: Tensor | None = None
    ) -> None:
        self._bank = bank
        # Which line of the bank's vectors, biases and weights, each token and packed row sees.
        by_row = torch.tensor(bank.lines_of(slots), device=bank.device) if lines is None else lines
        self._lines = {
            per_position: dict(zip(KINDS, by_row[:, rows], strict=True))
            for per_position, rows in ((False, batch.row_of_token), (True, batch.row_at_position))
        }
        self._rows: dict[int, list[int]] = {}
        for row, slot in enumerate(slots):
            self._rows.setdefault(slot, []).append(row)
        # Lines of each slot that has more than vectors: of tokens, of packed rows.
        own = sorted(bank.matrix_slots.intersection(self._rows))
        self._loose = [slot for slot in own if slot not in batch.key_spans]
        if astray := [slot for slot in self._loose if self._must_have_span(slot)]:
            raise ValueError(f"rows of slots {astray} don't lie side by side; pack with keys")
        spans = {slot: batch.key_spans[slot] for slot in own if slot in batch.key_spans}
        self._spans = {
            False: {slot: span.tokens for slot, span in spans.items()},
            True: {slot: span.positions for slot, span in spans.items()},
        }

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        name = f"{site}.weight"
        out = F.embedding(ids, self._bank.frozen[name])
        for own, lines in self._own(name, per_position=False):
            if isinstance(own, Tensor):
                out[lines] = F.embedding(ids[lines], own)
            else:
                where = torch.arange(lines.start, lines.stop, device=ids.device)
                own.add_to_embedded(out, ids, where)
        return out

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [T, in] by each line's own matrix at `site`, add its bias: [T, out]."""
        # The GEMM accumulates onto the gathered biases: no broadcast, no second pass.
        out = self._gathered(site, "bias", per_position=per_position)
        name = f"{site}.weight"
        for matrix, lines in self._stretches(
            name, len(x), self._own(name, per_position=per_position)
        ):
            out[lines].addmm_(x[lines], matrix.t())
        return out

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        out = F.layer_norm(x, (x.shape[-1],), None, None, self._bank.eps)
        scale = self._gathered(site, "weight", per_position=per_position)
        return self._gathered(site, "bias", per_position=per_position).addcmul_(out, scale)

    def head(self, pooled: Tensor) -> list[list[float]]:
        """Each row's logits, as many as its own task has labels; pooled is [R, H]."""
        by_slot = pooled[[row for rows in self._rows.values() for row in rows]].float()
        logits: list[list[float]] = [[]] * len(pooled)
        done = 0
        for slot, rows in self._rows.items():
            weight, bias = self._bank.heads[slot]
            values = F.linear(by_slot[done : done + len(rows)], weight, bias).tolist()
            for row, own in zip(rows, values, strict=True):
                logits[row] = own
            done += len(rows)
        return logits

    def _must_have_span(self, slot: int) -> bool:
        """Whether a slot's rows must lie side by side."""
        del slot
        return True

    def _gathered(self, site: str, kind: str, *, per_position: bool) -> Tensor:
        """Each line's own vector at a site: [T, O]."""
        return torch.index_select(
            self._bank.vectors(f"{site}.{kind}"), 0, self._lines[per_position][kind]
        )

    def _own(self, name: str, *, per_position: bool) -> list[OwnMatrix]:
        """What slots of this batch have of their own there, in the order of their lines."""
        matrices, sparse = self._bank.matrices[name], self._bank.sparse[name]
        found = [
            (own, lines)
            for slot, lines in self._spans[per_position].items()
            if (own := matrices.get(slot, sparse.get(slot))) is not None
        ]
        return sorted(found, key=lambda item: item[1].start)

    def _stretches(
        self, name: str, num_lines: int, own: Sequence[OwnMatrix]
    ) -> Iterator[tuple[Tensor, slice]]:
        """The matrix at `name` that lines see, and the lines: the frozen one where none is own."""
        frozen, done = self._bank.frozen[name], 0
        for matrix, lines in own:
            if lines.start > done:
                yield frozen, slice(done, lines.start)
            if lines.stop > lines.start:
                if isinstance(matrix, SparseWeights):
                    matrix = matrix.merged_with(frozen)
                yield matrix, lines
            done = lines.stop
        if num_lines > done:
            yield frozen, slice(done, num_lines)
