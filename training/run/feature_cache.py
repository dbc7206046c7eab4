"""What lies below the lowest trained layer: run once for each row, kept, and used in every epoch.

With only the head training that is the whole encoder; with `top:2` all but two layers. Nothing in
it changes during a run, so nothing has to be computed twice. Legend: R rows, N
tokens, P packed rows, H width.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from deltas.backbone.layout import EncoderConfig
from deltas.backbone.tokenizer import TokenizedRow
from deltas.encoder.encoder import Overlay, embed, pool, run_layers
from deltas.encoder.packing import PackedBatch, pack
from deltas.encoder.window_attention import WindowAttention

logger = logging.getLogger(__name__)

_MOST_BYTES = 2 << 30
_TOKENS_AT_ONCE = 4096
_Key = tuple[tuple[int, ...], tuple[int, ...]]


def frozen_depth(names: Collection[str], config: EncoderConfig) -> int:
    """How many steps of the encoder come before anything that trains.

    0 is none or only the embeddings, k the first k layers, one more than there are layers is all of
    it, the pooler included.

    Args:
        names: Hugging Face names of the trained parameters.
        config: of the encoder.
    """
    lowest = config.num_layers + 1
    for name in names:
        layer = re.search(r"\.layer\.(\d+)\.", name)
        step = int(layer[1]) if layer else config.num_layers if ".pooler." in name else 0
        lowest = min(lowest, step)
    return lowest


class FeatureCache:
    """The steps of the encoder below the lowest trained one.

    Args:
        config: of the encoder.
        overlay: the weights; below `steps` they are the backbone's.
        steps: as `frozen_depth` counts them.
        device: where to compute.
    """

    def __init__(
        self, config: EncoderConfig, overlay: Overlay, steps: int, device: torch.device
    ) -> None:
        self.steps = steps
        self._config, self._overlay, self._device = config, overlay, device
        self._kept: dict[_Key, Tensor] = {}

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the encoder trains."""
        return self.steps > self._config.num_layers

    def can_keep(self, rows: Sequence[TokenizedRow], itemsize: int) -> bool:
        """Whether the results of these rows need at most 2 GiB."""
        lines = sum(1 if self._is_per_position else row.num_tokens for row in rows)
        return lines * self._config.hidden_size * itemsize <= _MOST_BYTES

    def keep(self, rows: Sequence[TokenizedRow], itemsize: int) -> None:
        """Compute and keep the results of these rows, unless they need more than 2 GiB.

        All at once and in one order: a row's last bits depend on the batch that it is computed in,
        and a resumed run must find the same ones.
        """
        if not self.steps:
            return
        if not self.can_keep(rows, itemsize):
            logger.info("the frozen layers' results of %d rows are too many to keep", len(rows))
            return
        for part in _parts(rows):
            batch = pack([(row.input_ids, row.token_type_ids) for row in part], self._device)
            results = self._compute(batch)
            for row, places in zip(part, self._lines(part, batch), strict=True):
                self._kept[_key(row)] = results[places].clone()

    def run(self, rows: Sequence[TokenizedRow], batch: PackedBatch) -> Tensor:
        """What the first trained step reads: [N, H], or [P, H] after all layers."""
        found = [self._kept.get(_key(row)) for row in rows]
        kept = [result for result in found if result is not None]
        if len(kept) < len(rows):
            return self._compute(batch)
        lines = torch.cat(kept)
        if self._is_per_position:
            return lines[batch.row_at_position]
        # Padding is seen by nothing else, so that zeros do there.
        hidden = lines.new_zeros(len(batch.input_ids), self._config.hidden_size)
        return hidden.index_copy_(0, torch.cat(self._lines(rows, batch)), lines)

    def pooled(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Pooled outputs [R, H] where nothing of the encoder trains."""
        found = [self._kept.get(_key(row)) for row in rows]
        kept = [result for result in found if result is not None]
        if len(kept) == len(rows):
            return torch.cat(kept)
        return self._compute(
            pack([(row.input_ids, row.token_type_ids) for row in rows], self._device)
        )

    def _lines(self, rows: Sequence[TokenizedRow], batch: PackedBatch) -> list[Tensor]:
        """Where each row's results lie among those of its batch."""
        if self.is_whole:
            return list(torch.arange(len(rows), device=self._device).unsqueeze(1))
        if self._is_per_position:
            return list(batch.position_of_row.unsqueeze(1))
        starts = batch.first_token[batch.position_of_row].tolist()
        return [
            torch.arange(start, start + row.num_tokens, device=self._device)
            for start, row in zip(starts, rows, strict=True)
        ]

    @property
    def _is_per_position(self) -> bool:
        return self.steps >= self._config.num_layers

    @torch.no_grad()
    def _compute(self, batch: PackedBatch) -> Tensor:
        numbers = range(min(self.steps, self._config.num_layers))
        hidden = embed(self._overlay, batch)
        attention = WindowAttention(batch, hidden.dtype)
        hidden = run_layers(self._config, self._overlay, batch, attention, hidden, numbers)
        return pool(self._overlay, batch, hidden) if self.is_whole else hidden


def _parts(rows: Sequence[TokenizedRow]) -> Iterator[list[TokenizedRow]]:
    """Distinct rows in batches of like length and bounded size."""
    part: list[TokenizedRow] = []
    tokens = 0
    for row in sorted({_key(row): row for row in rows}.values(), key=lambda row: row.num_tokens):
        if part and tokens + row.num_tokens > _TOKENS_AT_ONCE:
            yield part
            part, tokens = [], 0
        part.append(row)
        tokens += row.num_tokens
    if part:
        yield part


def _key(row: TokenizedRow) -> _Key:
    return tuple(row.input_ids), tuple(row.token_type_ids)
