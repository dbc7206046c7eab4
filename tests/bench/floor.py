"""The floor: the encoder's frozen matrix products alone, on as many lines as a batch has tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import Backbone


class Gemms:
    """All matrix products of a batch and nothing else.

    Args:
        backbone: whose matrices.
        dtype: to compute in.
        whole_last_layer: every token goes through all of the last layer, as in other encoders;
            else only what this encoder computes there.
    """

    def __init__(self, backbone: Backbone, dtype: torch.dtype, *, whole_last_layer: bool) -> None:
        last = f"layer.{backbone.config.num_layers - 1}."
        self._per_token: list[Tensor] = []
        self._per_row: list[Tensor] = []
        for name, weight in backbone.weights.items():
            if weight.ndim != 2 or name.startswith("embeddings."):
                continue
            is_cut = name.startswith(last) and not name.endswith("key_value.weight")
            per_row = name.startswith("pooler") or (is_cut and not whole_last_layer)
            (self._per_row if per_row else self._per_token).append(weight.to(dtype))
        widths = {weight.shape[1] for weight in (*self._per_token, *self._per_row)}
        self._inputs = {width: torch.randn(1 << 15, width).to(dtype) for width in widths}

    def run(self, num_tokens: int, num_rows: int) -> None:
        """Multiply for one batch."""
        for weight in self._per_token:
            F.linear(self._inputs[weight.shape[1]][:num_tokens], weight)
        for weight in self._per_row:
            F.linear(self._inputs[weight.shape[1]][:num_rows], weight)
