"""The floor: the encoder's frozen matrix products alone, on as many lines as a batch has tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from app.engine.cuda import Recorder
from deltas import Backbone

_MOST_LINES = 1 << 15


class Gemms:
    """All matrix products of a batch and, with `traffic`, one pass over each result; nothing else.

    That pass stands for the least that biases, GELU, residuals and LayerNorm cost after a library's
    product: its result is read and written once more, and nothing is computed. It is a floor for
    encoders that are made like this one, not for all: a product written by hand could add biases
    before its result leaves the chip, and attention writes a third of what it reads.

    Args:
        backbone: whose matrices.
        dtype: to compute in.
        device: to compute on.
        whole_last_layer: every token goes through all of the last layer, as in other encoders;
            else only what this encoder computes there.
        traffic: read and write each result once.
        record: what records a batch's products, to be replayed from then on, as the engine's passes
            are on a GPU: started one by one they might wait for Python, and be no floor.
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
        self._inputs = {
            width: torch.randn(_MOST_LINES, width).to(device, dtype) for width in widths
        }

    def run(self, num_tokens: int, num_rows: int) -> None:
        """Multiply for one batch; on a GPU that is only begun."""
        if self._record is None:
            self._multiply(num_tokens, num_rows)
            return
        size = (num_tokens, num_rows)
        if size not in self._recorded:
            self._recorded[size] = self._record(partial(self._multiply, *size))
        replay, _ = self._recorded[size]
        replay()

    def _multiply(self, num_tokens: int, num_rows: int) -> Tensor:
        """All products, one after the other; returns the last one's result."""
        for weights, num_lines in ((self._per_token, num_tokens), (self._per_row, num_rows)):
            for weight in weights:
                result = F.linear(self._inputs[weight.shape[1]][:num_lines], weight)
                if self._traffic:
                    result.mul_(1)
        return result
