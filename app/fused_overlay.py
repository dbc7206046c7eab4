"""The overlay that mixes deltas, on CPUs: what follows a product is done in one pass over it.

Computes what `app.bank_overlay` does, which serves other devices and is what this one is tested
against. In int8 the products of the layers' frozen matrices are those of whole numbers; what is
multiplied is rounded to 255 steps of the largest value of its line, and everything else stays
float32: biases, LayerNorms, attention, pooler and heads.

Legend: N tokens, P packed rows, T lines of x (tokens or packed rows).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from app.bank import Bank
from app.bank_overlay import BankOverlay
from app.epilogue import Norm, Quantised, finish
from deltas import PackedBatch
from deltas.layout import ACTIVATIONS

_Steps = tuple[Tensor, Tensor] | None


class FusedOverlay(BankOverlay):
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots, on a CPU.
        batch: packed rows; those of a slot in `bank.matrix_slots` lie side by side.
        slots: each row's slot, in the order of the input.
        int8: multiply whole numbers; only for slots without matrices of their own.
    """

    def __init__(
        self, bank: Bank, batch: PackedBatch, slots: Sequence[int], *, int8: bool = False
    ) -> None:
        super().__init__(bank, batch, slots)
        self._matrices = bank.quantised if int8 else {}
        # What was quantised on the way: the latest result, and its whole numbers.
        self._latest: tuple[Tensor, Quantised] | None = None

    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [T, in] by each line's own matrix at `site`, add its bias: [T, out]."""
        product, steps = self._product(site, x, per_row=per_row)
        out = x.new_empty(product.shape) if steps else product
        bias = self._bank.vectors[f"{site}.bias"]
        finish(product, self._lines[per_row], steps=steps, bias=bias, out=out)
        return out

    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        out, quantised = torch.empty_like(x), self._room_for(x)
        lines = self._lines[per_row]
        finish(x, lines, norm=self._norm(site), out=out, quantised=quantised)
        return self._remember(out, quantised)

    def activate(self, site: str, x: Tensor, activation: str, *, per_row: bool = False) -> Tensor:
        """GELU of `linear`; in int8 only as whole numbers."""
        product, steps = self._product(site, x, per_row=per_row)
        quantised = self._room_for(product)
        out = product if quantised is None else None
        finish(
            product,
            self._lines[per_row],
            steps=steps,
            bias=self._bank.vectors[f"{site}.bias"],
            gelu=ACTIVATIONS[activation],
            out=out,
            quantised=quantised,
        )
        if quantised is None:
            return product
        return self._remember(quantised.values, quantised)

    def add_norm(
        self,
        sites: tuple[str, str],
        x: Tensor,
        residual: Tensor,
        dropout: float,
        *,
        per_row: bool = False,
    ) -> Tensor:
        """`linear` at the first site, the residual [T, H] added, `norm` at the second."""
        if dropout:
            raise ValueError("this overlay serves; nothing is dropped")
        product, steps = self._product(sites[0], x, per_row=per_row)
        quantised = self._room_for(product)
        out = torch.empty_like(residual) if steps else product
        finish(
            product,
            self._lines[per_row],
            steps=steps,
            bias=self._bank.vectors[f"{sites[0]}.bias"],
            residual=residual,
            norm=self._norm(sites[1]),
            out=out,
            quantised=quantised,
        )
        return self._remember(out, quantised)

    def _product(self, site: str, x: Tensor, *, per_row: bool) -> tuple[Tensor, _Steps]:
        """Each line of x times its matrix, [T, out], and what else to multiply that by, if any."""
        name = f"{site}.weight"
        matrix = self._matrices.get(name)
        if matrix is None:
            out = x.new_empty(len(x), len(self._bank.frozen[name]))
            self.multiply(name, x, out, per_row=per_row, overwrite=True)
            return out, None
        quantised = self._quantised(x, per_row=per_row)
        product = torch._int_mm(quantised.values, matrix.values.t())
        return product, (quantised.steps, matrix.steps)

    def _quantised(self, x: Tensor, *, per_row: bool) -> Quantised:
        if self._latest is not None and self._latest[0] is x:
            return self._latest[1]
        quantised = self._room_for(x)
        assert quantised is not None
        finish(x.contiguous(), self._lines[per_row], quantised=quantised)
        return quantised

    def _room_for(self, x: Tensor) -> Quantised | None:
        """Where the whole numbers of lines like those of x shall go; None if there are none."""
        if not self._matrices:
            return None
        steps = x.new_empty(len(x), dtype=torch.float32)
        return Quantised(x.new_empty(x.shape, dtype=torch.int8), steps)

    def _remember(self, result: Tensor, quantised: Quantised | None) -> Tensor:
        self._latest = None if quantised is None else (result, quantised)
        return result

    def _norm(self, site: str) -> Norm:
        vectors = self._bank.vectors
        return Norm(vectors[f"{site}.weight"], vectors[f"{site}.bias"], self._bank.eps)
