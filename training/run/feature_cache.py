"""Caches the outputs of the frozen layers below the lowest trained one.

They are a fixed function of the row, so they are computed once per row instead of in every epoch.
If only the head trains, that is the whole encoder; with `top:2` all but two layers. The model that
reads the cache is `training.run.task_model`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from deltas.backbone.layout import EncoderConfig
from deltas.backbone.tokenizer import TokenizedRow
from deltas.encoder.encoder import Overlay, embed, encode, run_layers
from deltas.encoder.packing import PackedBatch, pack
from deltas.encoder.window_attention import WindowAttention
from deltas.manifest import Pooling
from training.run.loop.schedule import length_batches

logger = logging.getLogger(__name__)

_MAX_BYTES = 2 << 30
_BATCH_TOKENS = 4096
_Key = tuple[tuple[int, ...], tuple[int, ...]]


def frozen_depth(names: Collection[str], config: EncoderConfig) -> int:
    """Return how deep the encoder is frozen below its lowest trained parameter.

    That is k if the embeddings and the first k layers are frozen (0 also if the embeddings train),
    and the number of layers + 1 if the pooler is frozen, too.
    """
    lowest = config.num_layers + 1
    for name in names:
        layer = re.search(r"\.layer\.(\d+)\.", name)
        depth = int(layer[1]) if layer else config.num_layers if ".pooler." in name else 0
        lowest = min(lowest, depth)
    return lowest


class RowEncoder(Protocol):
    """A frozen encoder that computes rows as a whole."""

    def features(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the head's input, float32 [R, I], in the order of the rows."""


class FeatureCache:
    """Outputs of the frozen lower part of the encoder, by row.

    `depth` is of `frozen_depth`. It is 0 if something trains and pooling reads every layer, whose
    outputs would take several times the memory. If nothing trains, `encoder` computes the rows, or
    the overlay without one.
    """

    def __init__(
        self,
        config: EncoderConfig,
        overlay: Overlay,
        depth: int,
        device: torch.device,
        dtype: torch.dtype,
        pooling: Pooling,
        encoder: RowEncoder | None = None,
    ) -> None:
        self._dtype, self._pooling, self._encoder = dtype, pooling, encoder
        self._config, self._overlay, self._device = config, overlay, device
        self.depth = depth if pooling != "layers" or depth > config.num_layers else 0
        self._features: dict[_Key, Tensor] = {}

    @property
    def is_whole_encoder(self) -> bool:
        """True if nothing of the encoder trains."""
        return self.depth > self._config.num_layers

    def fits(self, rows: Sequence[TokenizedRow]) -> bool:
        """Return whether the features of these rows need at most 2 GiB."""
        vectors = sum(1 if self._is_per_position else row.num_tokens for row in rows)
        if self._pooling == "layers":
            vectors *= self._config.num_layers + 1
        itemsize = torch.float32.itemsize if self.is_whole_encoder else self._dtype.itemsize
        return vectors * self._config.hidden_size * itemsize <= _MAX_BYTES

    def fill(self, rows: Sequence[TokenizedRow]) -> None:
        """Compute and keep the features of these rows, unless they need more than 2 GiB.

        The rows are computed together and always in the same order. A row's last bits depend on
        the batch around it, and a resumed run must find the same bits.
        """
        if not self.depth:
            return
        if not self.fits(rows):
            logger.info("the frozen layers' outputs of %d rows are too large to keep", len(rows))
            return
        new = {key: row for row in rows if (key := _key(row)) not in self._features}
        distinct = list(new.values())
        for positions in length_batches(distinct, _BATCH_TOKENS):
            part = [distinct[position] for position in positions]
            if self.is_whole_encoder:
                found = tuple(self._encode(part).unsqueeze(1))
            else:
                batch = self.pack(part)
                features = self._compute(batch)
                found = tuple(features[index] for index in self._feature_index(part, batch))
            for row, feature in zip(part, found, strict=True):
                self._features[_key(row)] = feature.clone()

    def clear(self) -> None:
        """Forget all features."""
        self._features.clear()

    def hidden(self, rows: Sequence[TokenizedRow], batch: PackedBatch) -> Tensor:
        """Return the input of the first trained layer: [N, H], or [P, H] after all layers."""
        cached = self._cached(rows)
        if cached is None:
            return self._compute(batch)
        if self._is_per_position:
            return cached[batch.row_at_position]
        # No row reads the padding between rows, so zeros do there.
        hidden = cached.new_zeros(len(batch.input_ids), self._config.hidden_size)
        return hidden.index_copy_(0, torch.cat(self._feature_index(rows, batch)), cached)

    def pooled(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the pooled outputs of an encoder of which nothing trains, as `encode` does."""
        cached = self._cached(rows)
        return self._encode(rows) if cached is None else cached

    def pack(self, rows: Sequence[TokenizedRow]) -> PackedBatch:
        """Lay out a batch for the pooling of the task."""
        tokens = [(row.input_ids, row.token_type_ids) for row in rows]
        mean, every_layer = self._pooling != "cls", self._pooling == "layers"
        return pack(tokens, self._device, mean=mean, every_layer=every_layer)

    def _cached(self, rows: Sequence[TokenizedRow]) -> Tensor | None:
        """Return the rows' features, or None if one of the rows is not in the cache."""
        found = [self._features.get(_key(row)) for row in rows]
        features = [feature for feature in found if feature is not None]
        return torch.cat(features) if len(features) == len(rows) else None

    def _feature_index(self, rows: Sequence[TokenizedRow], batch: PackedBatch) -> list[Tensor]:
        """Return for each row the positions of its features in the output of its batch."""
        if self._is_per_position:
            return list(batch.pooled_of_row.unsqueeze(1))
        starts = batch.first_token_of_row.tolist()
        return [
            torch.arange(start, start + row.num_tokens, device=self._device)
            for start, row in zip(starts, rows, strict=True)
        ]

    @property
    def _is_per_position(self) -> bool:
        return self.depth >= self._config.num_layers

    @torch.no_grad()
    def _encode(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the output of the whole encoder: [R, I]."""
        if self._encoder is not None:
            return self._encoder.features(rows)
        batch = self.pack(rows)
        return encode(self._config, self._overlay, batch, WindowAttention(batch, self._dtype))

    @torch.no_grad()
    def _compute(self, batch: PackedBatch) -> Tensor:
        """Return the output of the frozen layers: [N, H], or [P, H] after all of them."""
        hidden = embed(self._overlay, batch)
        attention = WindowAttention(batch, hidden.dtype)
        numbers = range(self.depth)
        return run_layers(self._config, self._overlay, batch, attention, hidden, numbers)


def _key(row: TokenizedRow) -> _Key:
    return tuple(row.input_ids), tuple(row.token_type_ids)
