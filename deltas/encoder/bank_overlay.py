"""The mixed-task overlay: each row of a packed batch sees the values of its own slot.

Works on any device. It is the reference for `deltas.encoder.cpu`, which computes the same with
fewer passes over memory. `deltas.encoder.encoder` calls it; its tests are those of
`tests/unit/deltas/encoder/test_bank.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.encoder.bank import PARAMETER_KINDS, Bank
from deltas.encoder.encoder import Overlay
from deltas.encoder.packing import PackedBatch
from deltas.encoder.sparse import SparseWeights

# A trained matrix or its sparse update, and the rows of x that see it.
TrainedMatrix = tuple[Tensor | SparseWeights, slice]


class BankOverlay(Overlay):
    """Weights of the bank as the rows of one packed batch see them.

    Args:
        bank: the slots.
        batch: packed rows; rows of a slot in `bank.matrix_slots` are neighbours.
        slots: slot of each row, in the order of the input.
        vector_rows: int64 [2, R], each row's rows in the vector tables, by kind, if they are on the
            device already; then `slots` may leave out slots that train only vectors.

    Raises:
        ValueError: rows that must be neighbours are not.
    """

    def __init__(
        self,
        bank: Bank,
        batch: PackedBatch,
        slots: Sequence[int],
        vector_rows: Tensor | None = None,
    ) -> None:
        self._bank = bank
        if vector_rows is None:
            vector_rows = torch.tensor(bank.vector_rows(slots), device=bank.device)
        # By `per_position` and kind: the row in the vector table of each token or position.
        self._vector_rows = {
            per_position: dict(zip(PARAMETER_KINDS, vector_rows[:, rows], strict=True))
            for per_position, rows in ((False, batch.row_of_token), (True, batch.row_at_position))
        }
        with_matrices = sorted(bank.matrix_slots.intersection(slots))
        # Slots with sparse values whose rows may lie anywhere in the batch.
        self._scattered = [slot for slot in with_matrices if slot not in batch.key_spans]
        if wrong := [slot for slot in self._scattered if self._must_have_span(slot)]:
            raise ValueError(f"rows of slots {wrong} are not neighbours; pack them with keys")
        spans = {slot: batch.key_spans[slot] for slot in with_matrices if slot in batch.key_spans}
        self._spans = {
            False: {slot: span.tokens for slot, span in spans.items()},
            True: {slot: span.positions for slot, span in spans.items()},
        }

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        name = f"{site}.weight"
        out = F.embedding(ids, self._bank.frozen[name])
        for table, tokens in self._trained(name, per_position=False):
            if isinstance(table, Tensor):
                out[tokens] = F.embedding(ids[tokens], table)
            else:
                indices = torch.arange(tokens.start, tokens.stop, device=ids.device)
                table.add_to_embedded(out, ids, indices)
        return out

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [N or P, I] by each slot's matrix at `site` and add its bias: [N or P, O]."""
        # The GEMM accumulates onto the gathered biases: no broadcast, no second pass.
        out = self._gathered(site, "bias", len(x), per_position=per_position)
        name = f"{site}.weight"
        for matrix, rows in self._matrices(
            name, len(x), self._trained(name, per_position=per_position)
        ):
            out[rows].addmm_(x[rows], matrix.t())
        return out

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [N or P, H], then scale and shift it by each slot's LayerNorm."""
        out = F.layer_norm(x, (x.shape[-1],), None, None, self._bank.eps)
        scale = self._gathered(site, "weight", len(x), per_position=per_position)
        return self._gathered(site, "bias", len(x), per_position=per_position).addcmul_(out, scale)

    def _must_have_span(self, slot: int) -> bool:
        del slot
        return True

    def _gathered(self, site: str, kind: str, count: int, *, per_position: bool) -> Tensor:
        """Gather the vectors at a site for the first tokens or positions: [count, O]."""
        table = self._bank.vectors(f"{site}.{kind}")
        return torch.index_select(table, 0, self._vector_rows[per_position][kind][:count])

    def _trained(self, name: str, *, per_position: bool) -> list[TrainedMatrix]:
        """List the trained matrices of the batch's slots, in the order of their rows."""
        matrices, sparse = self._bank.matrices[name], self._bank.sparse[name]
        found = [
            (matrix, rows)
            for slot, rows in self._spans[per_position].items()
            if (matrix := matrices.get(slot, sparse.get(slot))) is not None
        ]
        return sorted(found, key=lambda item: item[1].start)

    def _matrices(
        self, name: str, num_rows: int, trained: Sequence[TrainedMatrix]
    ) -> Iterator[tuple[Tensor, slice]]:
        """Yield consecutive ranges of rows, each with its trained matrix or the frozen one."""
        frozen, done = self._bank.frozen[name], 0
        for matrix, rows in trained:
            start, stop = min(rows.start, num_rows), min(rows.stop, num_rows)
            if start > done:
                yield frozen, slice(done, start)
            if stop > start:
                if isinstance(matrix, SparseWeights):
                    matrix = matrix.merged_with(frozen)
                yield matrix, slice(start, stop)
            done = stop
        if num_rows > done:
            yield frozen, slice(done, num_rows)


def apply_heads(bank: Bank, slots: Sequence[int], pooled: Tensor) -> list[list[float]]:
    """Return the logits of each row; their number depends on the task.

    Args:
        bank: the slots.
        slots: slot of each pooled output. If a slot reads pairs, two neighbouring outputs have
            logits together.
        pooled: [R, H], or wider as `deltas.encoder.encoder.encode` returns it.
    """
    rows_of_slot: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        rows_of_slot.setdefault(slot, []).append(row)
    by_slot = pooled[[row for rows in rows_of_slot.values() for row in rows]].float()
    logits: list[list[float]] = [[]] * len(pooled)
    done = 0
    for slot, rows in rows_of_slot.items():
        weight, bias = bank.heads[slot]
        x = by_slot[done : done + len(rows)]
        done += len(rows)
        if slot in bank.pair_slots:
            rows = rows[::2]
        values = F.linear(bank.head_input(slot, x), weight, bias).tolist()
        for row, row_logits in zip(rows, values, strict=True):
            logits[row] = row_logits
    return [row_logits for row_logits in logits if row_logits]
