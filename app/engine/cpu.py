"""The overlay that mixes deltas, on CPUs: what follows a product is done in one pass over it.

Computes what `app.engine.bank_overlay` does, which serves other devices and is what this one is tested
against. In int8 the products of the layers' frozen matrices are those of whole numbers; what is
multiplied is rounded to 255 steps (`deltas.kernels.int8`), and everything else is computed as "auto"
would: biases, LayerNorms, attention, pooler and heads.

Legend: N tokens, P packed rows, T lines of x (tokens or packed rows).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from app.engine.bank import Bank
from app.engine.bank_overlay import BankOverlay
from deltas import EncoderConfig, PackedBatch, Size, encode, pack, packed_sizes
from deltas.backbone.layout import ACTIVATIONS
from deltas.encoder.flat_batch import Rows
from deltas.encoder.row_attention import RowAttention
from deltas.kernels.epilogue import (
    NO_UPDATE,
    EpilogueOutput,
    LayerNormParams,
    PerRowVector,
    Product,
    SparseCorrection,
    apply_epilogue,
)
from deltas.kernels.int8 import Int8Rows


class CpuOverlay(BankOverlay):
    """What one packed batch sees of the bank: each row its own slot.

    Args:
        bank: the slots, on a CPU.
        batch: packed rows; those of a slot lie side by side where `bank.needs_span` wants it.
        slots: each row's slot, in the order of the input.
        int8: multiply whole numbers; only for slots without matrices of their own.
    """

    def __init__(
        self, bank: Bank, batch: PackedBatch, slots: Sequence[int], *, int8: bool = False
    ) -> None:
        super().__init__(bank, batch, slots)
        self._matrices = bank.quantised if int8 else {}
        # Which of the slots whose rows lie anywhere each line belongs to, -1 for others.
        numbers = {slot: number for number, slot in enumerate(self._loose)}
        of_row = torch.tensor([numbers.get(slot, -1) for slot in slots])
        self._loose_of = {False: of_row[batch.row_of_token], True: of_row[batch.row_at_position]}
        # What was quantised on the way: the latest result, and its whole numbers.
        self._latest: tuple[Tensor, Int8Rows] | None = None

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        out = super().embed(site, ids)
        sparse = self._bank.sparse[f"{site}.weight"]
        for number, slot in enumerate(self._loose):
            if slot in sparse:
                lines = (self._loose_of[False] == number).nonzero().view(-1)
                sparse[slot].add_to_embedded(out, ids, lines)
        return out

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [T, in] by each line's own matrix at `site`, add its bias: [T, out]."""
        product = self._product(site, x, per_position=per_position)
        out = self._room(product, x.dtype)
        apply_epilogue(
            product,
            EpilogueOutput(out),
            bias=self._vectors(site, "bias", per_position=per_position),
        )
        return out

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [T, H], then scale and shift each line by its slot's LayerNorm."""
        target = EpilogueOutput(torch.empty_like(x), self._whole_room(x))
        apply_epilogue(Product(x), target, norm=self._norm(site, per_position=per_position))
        return self._remember(target)

    def activate(
        self, site: str, x: Tensor, activation: str, *, per_position: bool = False
    ) -> Tensor:
        """GELU of `linear`; in int8 only as whole numbers."""
        product = self._product(site, x, per_position=per_position)
        quantised = self._whole_room(product.values)
        target = EpilogueOutput(product.values if quantised is None else None, quantised)
        bias = self._vectors(site, "bias", per_position=per_position)
        apply_epilogue(product, target, bias=bias, gelu=ACTIVATIONS[activation])
        return self._remember(target)

    def add_norm(
        self,
        sites: tuple[str, str],
        x: Tensor,
        residual: Tensor,
        dropout: float,
        *,
        per_position: bool = False,
    ) -> Tensor:
        """`linear` at the first site, the residual [T, H] added, `norm` at the second."""
        if dropout:
            raise ValueError("this overlay serves; nothing is dropped")
        product = self._product(sites[0], x, per_position=per_position)
        out = self._room(product, residual.dtype)
        target = EpilogueOutput(out, self._whole_room(product.values))
        apply_epilogue(
            product,
            target,
            bias=self._vectors(sites[0], "bias", per_position=per_position),
            residual=residual,
            norm=self._norm(sites[1], per_position=per_position),
        )
        return self._remember(target)

    def _product(self, site: str, x: Tensor, *, per_position: bool) -> Product:
        """Each line of x times its matrix: [T, out]."""
        name = f"{site}.weight"
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._float_product(name, x, per_position=per_position)
        quantised = self._quantised(x)
        values = torch._int_mm(quantised.values, matrix.values.t())
        return Product(values, (quantised, matrix))

    def _float_product(self, name: str, x: Tensor, *, per_position: bool) -> Product:
        """What slots whose rows lie anywhere have of their own is left to the epilogue."""
        if own := self._own(name, per_position=per_position):
            values = x.new_empty(len(x), len(self._bank.frozen[name]))
            for matrix, lines in self._stretches(name, len(x), own):
                torch.mm(x[lines], matrix.t(), out=values[lines])
        else:
            values = self._bank.products[name](x)
        sparse = self._bank.sparse[name]
        if not any(slot in sparse for slot in self._loose):
            return Product(values)
        updates = [sparse[slot].update if slot in sparse else NO_UPDATE for slot in self._loose]
        correction = SparseCorrection(x, updates, self._loose_of[per_position])
        return Product(values, correction=correction)

    def _must_have_span(self, slot: int) -> bool:
        return self._bank.has_whole_matrices(slot)

    def _quantised(self, x: Tensor) -> Int8Rows:
        if self._latest is not None and self._latest[0] is x:
            return self._latest[1]
        quantised = Int8Rows.empty(*x.shape)
        apply_epilogue(Product(x.contiguous()), EpilogueOutput(int8=quantised))
        return quantised

    @staticmethod
    def _room(product: Product, dtype: torch.dtype) -> Tensor:
        """Where a finished product goes: its own memory, unless it holds whole numbers."""
        values = product.values
        return values.new_empty(values.shape, dtype=dtype) if product.factors else values

    def _whole_room(self, x: Tensor) -> Int8Rows | None:
        """Where the whole numbers of lines like those of x shall go; None if there are none."""
        return Int8Rows.empty(*x.shape) if self._matrices else None

    def _remember(self, target: EpilogueOutput) -> Tensor:
        """What was written, as the encoder passes it on; its whole numbers are kept beside it."""
        whole = target.int8
        if whole is None:
            assert target.out is not None
            return target.out
        result = whole.values if target.out is None else target.out
        self._latest = (result, whole)
        return result

    def _vectors(self, site: str, kind: str, *, per_position: bool) -> PerRowVector:
        return PerRowVector(self._bank.vectors(f"{site}.{kind}"), self._lines[per_position][kind])

    def _norm(self, site: str, *, per_position: bool) -> LayerNormParams:
        scale = self._vectors(site, "weight", per_position=per_position)
        return LayerNormParams(
            scale, self._vectors(site, "bias", per_position=per_position), self._bank.eps
        )


class CpuForward:
    """On a CPU."""

    def __init__(self, config: EncoderConfig, bank: Bank) -> None:
        self._config = config
        self._bank = bank

    def run(self, tokens: Rows, slots: Sequence[int], *, int8: bool = False) -> list[list[float]]:
        """Each row's logits."""
        batch = pack(tokens, keys=self._keys(tokens, slots), windows=False)
        overlay = CpuOverlay(self._bank, batch, slots, int8=int8)
        return overlay.head(encode(self._config, overlay, batch, RowAttention(batch)))

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
