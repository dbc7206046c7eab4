"""The packed BERT forward pass, written once: training and serving both run this.

It computes what `transformers.BertModel` computes for each row's pooled output (Devlin et al. 2018,
arXiv:1810.04805), for rows that lie end to end (while serving) or in windows, with padding between
them (in training); `deltas.encoder.packing` lays them, and `deltas.encoder.flat_batch` those that GPUs serve. Which
weights a row sees is the overlay's business: the encoder says only *where* it is (a site name of
`deltas.backbone.layout`), the overlay knows the values there. In the last layer only the first token of each
row is computed, since the head reads nothing else; it costs no accuracy.

Legend: R rows; N tokens and P packed rows of the batch, padding included; H hidden width, A heads,
D = H / A. A *piece* is a row, or padding, where it lies in the batch; end to end attention sees
each as a *stretch*, whose tokens see each other and nobody else (on GPUs a *segment*, which is told
of on the device). The *sight* of a batch says who sees whom, by stretches, by segments or by
windows with masks, and is made once for all layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.backbone.layout import ACTIVATIONS, EncoderConfig
from deltas.encoder.packing import PackedBatch
from deltas.encoder.window_attention import attend, sight


class Overlay(ABC):
    """Weights as the rows of one batch see them.

    `per_row` says that x has one line a packed row [P, ...] rather than one a token [N, ...].
    `activate` and `add_norm` are steps that an overlay may do in one pass over memory.
    """

    @abstractmethod
    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up int64 ids [N] in the table at `site`: [N, H]."""

    @abstractmethod
    def linear(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Multiply x [N or P, in] by the matrix at `site` and add its bias: [N or P, out]."""

    @abstractmethod
    def norm(self, site: str, x: Tensor, *, per_row: bool = False) -> Tensor:
        """Normalise x [N or P, H] with the LayerNorm at `site`."""

    def activate(self, site: str, x: Tensor, activation: str, *, per_row: bool = False) -> Tensor:
        """The activation of `linear`, [N or P, out], for `add_norm` alone.

        Only an overlay's own `add_norm` can read it: in int8 it holds whole numbers, whose factors
        the overlay keeps.
        """
        x = self.linear(site, x, per_row=per_row)
        approximate = ACTIVATIONS[activation]
        if torch.is_inference_mode_enabled():  # nothing needs x again: less memory to touch
            activated: Tensor = torch.ops.aten.gelu_(x, approximate=approximate)
            return activated
        return F.gelu(x, approximate=approximate)

    def add_norm(
        self,
        sites: tuple[str, str],
        x: Tensor,
        residual: Tensor,
        dropout: float,
        *,
        per_row: bool = False,
    ) -> Tensor:
        """`linear` at the first site, the residual [N or P, H] added, `norm` at the second."""
        x = F.dropout(self.linear(sites[0], x, per_row=per_row), dropout)
        return self.norm(sites[1], x.add_(residual), per_row=per_row)


def encode(
    config: EncoderConfig, overlay: Overlay, batch: PackedBatch, dropout: float = 0.0
) -> Tensor:
    """Run the encoder.

    Args:
        config: sizes.
        overlay: the weights, for each row.
        batch: the rows.
        dropout: probability of dropping hidden values and attention weights; 0 outside training.

    Returns:
        [R, H] pooled output of each row, in the order of the input and in the overlay's dtype.
    """
    hidden = embed(overlay, batch, dropout)
    hidden = run_layers(config, overlay, batch, hidden, range(config.num_layers), dropout)
    return pool(overlay, batch, hidden)


def embed(overlay: Overlay, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """What the first layer reads: [N, H]."""
    hidden = overlay.embed("embeddings.word", batch.input_ids)
    hidden = hidden + overlay.embed("embeddings.position", batch.position_ids)
    hidden = hidden + overlay.embed("embeddings.token_type", batch.token_type_ids)
    return F.dropout(overlay.norm("embeddings.norm", hidden), dropout)


def run_layers(
    config: EncoderConfig,
    overlay: Overlay,
    batch: PackedBatch,
    hidden: Tensor,
    numbers: range,
    dropout: float = 0.0,
) -> Tensor:
    """Run consecutive layers on what the one before left, [N, H]; the last one leaves [P, H].

    `attend` is softmax(q k^T / sqrt(D)) v in each of A heads, over what a token may see.
    """
    seen = sight(batch, hidden.dtype)
    last, width, heads = config.num_layers - 1, config.hidden_size, config.num_heads
    for number in numbers:
        residual = hidden
        if number == last:
            residual = hidden[batch.first]  # [P, H]
            query = overlay.linear(f"layer.{last}.query", residual, per_row=True)  # [P, H]
            key_value = overlay.linear(f"layer.{last}.key_value", hidden)  # [N, 2H]
            attended = attend(query, key_value, seen.of_rows, heads, dropout)  # [P, H]
        else:
            mixed = overlay.linear(f"layer.{number}.query_key_value", hidden)  # [N, 3H]
            query, key_value = torch.split(mixed, [width, 2 * width], dim=1)
            attended = attend(query, key_value, seen.of_tokens, heads, dropout)  # [N, H]
        layer, per_row = f"layer.{number}", number == last
        sites = f"{layer}.attention_output", f"{layer}.attention_norm"
        x = overlay.add_norm(sites, attended, residual, dropout, per_row=per_row)
        inner = overlay.activate(f"{layer}.intermediate", x, config.activation, per_row=per_row)
        sites = f"{layer}.output", f"{layer}.output_norm"
        hidden = overlay.add_norm(sites, inner, x, dropout, per_row=per_row)
    return hidden


def pool(overlay: Overlay, batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Pooled output [R, H], in the order of the input, of what the last layer left [P, H]."""
    pooled = torch.tanh(overlay.linear("pooler", hidden, per_row=True))
    return pooled[batch.packed_row]
