"""A lower bound for a batch's time: the encoder's frozen matrix products alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.cuda.graphs import Recorder
from deltas import Backbone

_MAX_ROWS = 1 << 15


class Gemms:
    """Computes only a batch's matrix products and, with `traffic`, one pass over each result.

    The pass is a lower bound for biases, GELU, residuals and LayerNorm after a library's
    product: the result is read and written once more, and nothing is computed. It is a floor for
    encoders like this one, not for all: a hand-written product could add biases
    before its result leaves the chip, and attention writes a third of what it reads.

    Args:
        backbone: source of the matrices.
        dtype: dtype of the matrices and their inputs.
        device: device of the products.
        whole_last_layer: compute the last layer for every token, as other encoders do;
            otherwise only for the tokens that this encoder needs.
        traffic: read and write each result once.
        record: records a batch's products to be replayed from then on, as the engine's passes
            are on a GPU; launched one by one they would wait for Python.
    """

    def __init__(
        self,
        backbone: Backbone,
        dtype: torch.dtype,
        device: str = "cpu",
        *,
        whole_last_layer: bool,
        traffic: bool = False,
        record: Recorder | None = None,
    ) -> None:
        last = f"layer.{backbone.config.num_layers - 1}."
        self._traffic = traffic
        self._record = record
        self._recorded: dict[tuple[int, int], tuple[Callable[[], None], Tensor]] = {}
        self._per_token: list[Tensor] = []
        self._per_row: list[Tensor] = []
        for name, weight in backbone.weights.items():
            if weight.ndim != 2 or name.startswith("embeddings."):
                continue
            is_cut = name.startswith(last) and not name.endswith("key_value.weight")
            per_row = name.startswith("pooler") or (is_cut and not whole_last_layer)
            (self._per_row if per_row else self._per_token).append(weight.to(device, dtype))
        widths = {weight.shape[1] for weight in (*self._per_token, *self._per_row)}
        self._inputs = {width: torch.randn(_MAX_ROWS, width).to(device, dtype) for width in widths}

    def run(self, num_tokens: int, num_rows: int) -> None:
        """Multiply for one batch, on a GPU without waiting for the results."""
        if self._record is None:
            self._multiply(num_tokens, num_rows)
            return
        size = (num_tokens, num_rows)
        if size not in self._recorded:
            self._recorded[size] = self._record(partial(self._multiply, *size))
        replay, _ = self._recorded[size]
        replay()

    def _multiply(self, num_tokens: int, num_rows: int) -> Tensor:
        """Compute all products in order; returns the last one."""
        for weights, size in ((self._per_token, num_tokens), (self._per_row, num_rows)):
            for weight in weights:
                result = F.linear(self._inputs[weight.shape[1]][:size], weight)
                if self._traffic:
                    result.mul_(1)
        return result
