"""The forward pass on CPUs, with everything that follows a matrix product fused into one pass.

`CpuOverlay` computes the same as `deltas.encoder.bank_overlay`, on the kernels of
`deltas.kernels.epilogue`. With int8, activations are quantised to 255 levels row by row and
multiplied by the int8 matrices of the layers (`deltas.kernels.int8`); biases, LayerNorms,
attention, pooler and heads are computed as without int8. Read `deltas.encoder.encoder` next;
`tests/unit/deltas/encoder/test_bank.py` has the tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from deltas.backbone.layout import ACTIVATIONS, EncoderConfig
from deltas.backbone.tokenizer import TokenizedRow
from deltas.encoder.bank import Bank
from deltas.encoder.bank_overlay import BankOverlay, apply_heads
from deltas.encoder.encoder import encode
from deltas.encoder.packing import PackedBatch, pack, packed_sizes
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
from deltas.kernels.linear import int8_matmul
from deltas.kernels.runtime import load_for_inference


class CpuForward:
    """Forward passes on a CPU, from any number of threads at a time."""

    def __init__(self, config: EncoderConfig, bank: Bank) -> None:
        self._config = config
        self._bank = bank
        load_for_inference()

    def logits(
        self, rows: Sequence[TokenizedRow], slots: Sequence[int], *, int8: bool = False
    ) -> list[list[float]]:
        """Return the logits of each row, in order.

        Args:
            rows: the tokens of each row.
            slots: the bank's slot of each row.
            int8: whether to multiply in int8; only for slots without trained matrices.
        """
        of_sequences = [slot for row, slot in zip(rows, slots, strict=True) for _ in row.sequences]
        return apply_heads(self._bank, of_sequences, self._encode(rows, slots, int8=int8))

    def pooled(self, rows: Sequence[TokenizedRow], slots: Sequence[int]) -> Tensor:
        """Return the pooled outputs, two for a pair that is read separately.

        They are float32 [R, H], or wider as `deltas.encoder.encoder.encode` returns them.
        """
        return self._encode(rows, slots, int8=False)

    def _encode(self, rows: Sequence[TokenizedRow], slots: Sequence[int], *, int8: bool) -> Tensor:
        """Return the pooled outputs; equal sequences that see equal values run once.

        So a text that many heads read costs one pass, whatever their number.
        """
        every_layer = not self._bank.layers_slots.isdisjoint(slots)
        distinct: dict[tuple[int, bool, tuple[int, ...], tuple[int, ...]], int] = {}
        number_of: list[int] = []  # by sequence
        for row, slot in zip(rows, slots, strict=True):
            sees = self._bank.encoder_slot(slot), slot in self._bank.mean_slots
            for ids, types in row.sequences:
                key = (*sees, tuple(ids), tuple(types))
                number_of.append(distinct.setdefault(key, len(distinct)))
        slots = [slot for slot, *_ in distinct]
        sequences = [(ids, types) for *_, ids, types in distinct]
        mean = [is_mean for _, is_mean, *_ in distinct]
        batch = pack(
            sequences,
            keys=self._keys(sequences, slots),
            mean=mean,
            every_layer=every_layer,
            windows=False,
        )
        overlay = CpuOverlay(self._bank, batch, slots, int8=int8)
        pooled = encode(self._config, overlay, batch, RowAttention(batch))
        return pooled if len(distinct) == len(number_of) else pooled[number_of]

    def prepare(self, max_tokens: int, max_rows: int, longest: int) -> int:
        """Have oneDNN compile its products for every size of batch; returns their number.

        OneDNN compiles a bfloat16 product for each new number of rows, in 0.5 to 4 ms, which is
        longer than many products take. Packed batches come in few sizes.
        """
        del max_rows, longest
        if self._bank.dtype != torch.bfloat16:
            return 0
        return self._bank.compile_products(packed_sizes(max_tokens))

    def _keys(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], slots: Sequence[int]
    ) -> list[int]:
        """Return the slot of each sequence that must be its slot's neighbour, and 0 for others."""
        num_tokens: Counter[int] = Counter()
        for (ids, _), slot in zip(sequences, slots, strict=True):
            num_tokens[slot] += len(ids)
        with_span = {slot for slot, num in num_tokens.items() if self._bank.needs_span(slot, num)}
        return [slot if slot in with_span else 0 for slot in slots]


class CpuOverlay(BankOverlay):
    """Weights of the bank as the rows of one packed batch see them, on a CPU.

    Args:
        bank: the slots, on a CPU.
        batch: packed rows; a slot's rows are neighbours if `bank.needs_span` demands it.
        slots: slot of each row, in the order of the input.
        int8: whether to multiply in int8; only for slots without trained matrices.
    """

    def __init__(
        self, bank: Bank, batch: PackedBatch, slots: Sequence[int], *, int8: bool = False
    ) -> None:
        super().__init__(bank, batch, slots)
        self._int8_matrices = bank.int8_matrices if int8 else {}
        # By `per_position`: index of each token's or position's scattered slot, -1 if it has none.
        indices = {slot: index for index, slot in enumerate(self._scattered)}
        of_row = torch.tensor([indices.get(slot, -1) for slot in slots])
        self._scattered_of = {
            False: of_row[batch.row_of_token],
            True: of_row[batch.row_at_position],
        }
        # The latest result, and rows gathered from it: each with its int8 form, for the products
        # that read it next.
        self._latest: list[tuple[Tensor, Int8Rows]] = []

    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up ids [N] in the table at `site`, each in its row's slot: [N, H]."""
        out = super().embed(site, ids)
        sparse = self._bank.sparse[f"{site}.weight"]
        for index, slot in enumerate(self._scattered):
            if slot in sparse:
                tokens = (self._scattered_of[False] == index).nonzero().view(-1)
                sparse[slot].add_to_embedded(out, ids, tokens)
        return out

    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [N or P, I] by each slot's matrix at `site` and add its bias: [N or P, O]."""
        product = self._product(site, x, per_position=per_position)
        out = _output_of(product, x.dtype)
        apply_epilogue(
            product,
            EpilogueOutput(out),
            bias=self._vectors(site, "bias", len(x), per_position=per_position),
        )
        return out

    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [N or P, H], then scale and shift it by each slot's LayerNorm."""
        output = EpilogueOutput(torch.empty_like(x), self._int8_like(x))
        apply_epilogue(Product(x), output, norm=self._norm(site, len(x), per_position=per_position))
        return self._remember(output)

    def gather(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the rows of x [N, H] at the indices `tokens`, int64 [P], with their int8 form.

        Rows are quantised from float32. If gathered rows were quantised again, from bfloat16, a
        row's numbers would depend on whether its batch is one that gathers.
        """
        gathered = super().gather(x, tokens)
        if (int8_rows := self._known_int8(x)) is not None:
            self._latest.append((gathered, int8_rows.gather(tokens)))
        return gathered

    def activate(
        self, site: str, x: Tensor, activation: str, *, per_position: bool = False
    ) -> Tensor:
        """Apply GELU to the result of `linear`; with int8 only the int8 form is written."""
        product = self._product(site, x, per_position=per_position)
        int8_rows = self._int8_like(product.values)
        output = EpilogueOutput(product.values if int8_rows is None else None, int8_rows)
        bias = self._vectors(site, "bias", len(x), per_position=per_position)
        apply_epilogue(product, output, bias=bias, gelu=ACTIVATIONS[activation])
        return self._remember(output)

    def add_norm(
        self,
        sites: tuple[str, str],
        x: Tensor,
        residual: Tensor,
        dropout: float,
        *,
        per_position: bool = False,
    ) -> Tensor:
        """Apply `linear` at the first site, add the residual, apply `norm` at the second."""
        if dropout:
            raise ValueError("this overlay is for inference and cannot drop values")
        product = self._product(sites[0], x, per_position=per_position)
        output = EpilogueOutput(
            _output_of(product, residual.dtype), self._int8_like(product.values)
        )
        apply_epilogue(
            product,
            output,
            bias=self._vectors(sites[0], "bias", len(x), per_position=per_position),
            residual=residual,
            norm=self._norm(sites[1], len(x), per_position=per_position),
        )
        return self._remember(output)

    def _product(self, site: str, x: Tensor, *, per_position: bool) -> Product:
        """Multiply x by each slot's matrix: [N or P, O]."""
        name = f"{site}.weight"
        matrix = self._int8_matrices.get(name)
        if matrix is None:
            return self._float_product(name, x, per_position=per_position)
        int8_rows = self._to_int8(x)
        values = int8_matmul(int8_rows.values, matrix.values.t())
        return Product(values, (int8_rows, matrix))

    def _float_product(self, name: str, x: Tensor, *, per_position: bool) -> Product:
        """Multiply without the sparse values of scattered slots, which the epilogue adds."""
        if trained := self._trained(name, per_position=per_position):
            values = x.new_empty(len(x), len(self._bank.frozen[name]))
            for matrix, rows in self._matrices(name, len(x), trained):
                torch.mm(x[rows], matrix.t(), out=values[rows])
        else:
            values = self._bank.products[name](x)
        sparse = self._bank.sparse[name]
        if not any(slot in sparse for slot in self._scattered):
            return Product(values)
        updates = [sparse[slot].update if slot in sparse else NO_UPDATE for slot in self._scattered]
        correction = SparseCorrection(x, updates, self._scattered_of[per_position][: len(x)])
        return Product(values, correction=correction)

    def _must_have_span(self, slot: int) -> bool:
        return self._bank.has_whole_matrices(slot)

    def _to_int8(self, x: Tensor) -> Int8Rows:
        if (known := self._known_int8(x)) is not None:
            return known
        int8_rows = Int8Rows.empty(*x.shape)
        apply_epilogue(Product(x.contiguous()), EpilogueOutput(int8=int8_rows))
        return int8_rows

    def _known_int8(self, x: Tensor) -> Int8Rows | None:
        """Return the int8 form of x if x is a latest result, else None."""
        return next((int8_rows for result, int8_rows in self._latest if result is x), None)

    def _int8_like(self, x: Tensor) -> Int8Rows | None:
        """Allocate int8 rows of the shape of x; None if this pass is without int8."""
        return Int8Rows.empty(*x.shape) if self._int8_matrices else None

    def _remember(self, output: EpilogueOutput) -> Tensor:
        """Return the tensor for the encoder, and keep its int8 form."""
        int8_rows = output.int8
        if int8_rows is None:
            assert output.out is not None
            return output.out
        result = int8_rows.values if output.out is None else output.out
        self._latest = [(result, int8_rows)]
        return result

    def _vectors(self, site: str, kind: str, count: int, *, per_position: bool) -> PerRowVector:
        row_of = self._vector_rows[per_position][kind][:count]
        return PerRowVector(self._bank.vectors(f"{site}.{kind}"), row_of)

    def _norm(self, site: str, count: int, *, per_position: bool) -> LayerNormParams:
        scale = self._vectors(site, "weight", count, per_position=per_position)
        shift = self._vectors(site, "bias", count, per_position=per_position)
        return LayerNormParams(scale, shift, self._bank.eps)


def _output_of(product: Product, dtype: torch.dtype) -> Tensor:
    """Return the memory for a finished product: its own, unless it holds int32 sums."""
    values = product.values
    return values.new_empty(values.shape, dtype=dtype) if product.factors else values
