"""The forward pass of BERT for a packed batch; training and serving both run it.

It computes the output of each token as `transformers.BertModel` does (Devlin et al. 2018,
arXiv:1810.04805), and pools it: the first token's output through the trained pooler, or the mean
over all tokens of a row, as sentence encoders do (Reimers and Gurevych 2019, arXiv:1908.10084), of
the last layer or of every layer. The last layer computes only the positions, the tokens that
pooling reads; the answers are the same.

The encoder chooses neither weights nor attention. An `Overlay` multiplies by the weights that each
row sees, named by sites of `deltas.backbone.layout`. An `Attention` knows which tokens attend to
which; it is built once for a batch and reused by every layer. `deltas.encoder` names the
implementations of both, and the letters of the shapes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.backbone.layout import ACTIVATIONS, EncoderConfig
from deltas.encoder.packing import PackedBatch
from deltas.kernels.private_apis import gelu_in_place


class Overlay(ABC):
    """Weights as the rows of one batch see them.

    `per_position` says that x has one row for each position [P, ...] instead of one for each token
    [N, ...]; the pooler's x has the first positions only. `activate` and `add_norm` combine steps
    that an overlay may do in one pass over memory.
    """

    @abstractmethod
    def embed(self, site: str, ids: Tensor) -> Tensor:
        """Look up int64 ids [N] in the table at `site`: [N, H]."""

    @abstractmethod
    def linear(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Multiply x [N or P, I] by the matrix at `site` and add the bias: [N or P, O]."""

    @abstractmethod
    def norm(self, site: str, x: Tensor, *, per_position: bool = False) -> Tensor:
        """Normalise x [N or P, H] with the LayerNorm at `site`."""

    def gather(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return the rows of x [N, H] at the indices `tokens`, int64 [P]: [P, H]."""
        return x.index_select(0, tokens)

    def activate(
        self, site: str, x: Tensor, activation: str, *, per_position: bool = False
    ) -> Tensor:
        """Apply the activation to `linear`: [N or P, O].

        Only `add_norm` of the same overlay can read the result: an overlay may return int8 values
        and keep their scales.
        """
        x = self.linear(site, x, per_position=per_position)
        approximate = ACTIVATIONS[activation]
        if torch.is_inference_mode_enabled():  # no backward pass needs x
            return gelu_in_place(x, approximate)
        return F.gelu(x, approximate=approximate)

    def add_norm(
        self,
        sites: tuple[str, str],
        x: Tensor,
        residual: Tensor,
        dropout: float,
        *,
        per_position: bool = False,
    ) -> Tensor:
        """Apply `linear` at the first site, add the residual, apply `norm` at the second site."""
        x = F.dropout(self.linear(sites[0], x, per_position=per_position), dropout)
        return self.norm(sites[1], x.add_(residual), per_position=per_position)


class Attention(ABC):
    """Multi-head attention within the rows of one batch: softmax(q k^T / sqrt(D)) v in each head.

    Keys and values are those of all tokens; the two methods differ in the tokens that ask.
    """

    @abstractmethod
    def tokens(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from every token.

        Args:
            query: [N, H].
            key_value: [N, 2H], key and value of each token side by side.
            num_heads: A.
            dropout: probability of dropping an attention weight.

        Returns:
            [N, H]
        """

    @abstractmethod
    def positions(
        self, query: Tensor, key_value: Tensor, num_heads: int, dropout: float = 0.0
    ) -> Tensor:
        """Attend from the token of each position: query [P, H] gives [P, H]."""


def encode(
    config: EncoderConfig,
    overlay: Overlay,
    batch: PackedBatch,
    attention: Attention,
    dropout: float = 0.0,
) -> Tensor:
    """Run the encoder.

    Args:
        config: sizes of the encoder.
        overlay: the weights that each row sees.
        batch: the packed rows.
        attention: attention within the rows of this batch.
        dropout: probability of dropping hidden values and attention weights; 0 outside training.

    Returns:
        float32 [R, H], pooled output of each row, in the order of the input; of a batch that pools
        every layer, float32 [R, (layers + 1) * H]. Its last H values are those of the last layer,
        which is all that a row with another pooling has.
    """
    hidden = embed(overlay, batch, dropout)
    return run_and_pool(config, overlay, batch, attention, hidden, 0, dropout)


def run_and_pool(
    config: EncoderConfig,
    overlay: Overlay,
    batch: PackedBatch,
    attention: Attention,
    hidden: Tensor,
    first: int,
    dropout: float = 0.0,
) -> Tensor:
    """Run the layers from number `first` on, on hidden values [N, H], and pool as `encode` does.

    A batch that pools every layer needs all of them: `first` is 0.
    """
    numbers = range(first, config.num_layers)
    if not batch.every_layer:
        hidden = run_layers(config, overlay, batch, attention, hidden, numbers, dropout)
        return pool(overlay, batch, hidden)
    means = []
    for number in numbers:
        means.append(_pool_below(batch, hidden))
        only = range(number, number + 1)
        hidden = run_layers(config, overlay, batch, attention, hidden, only, dropout)
    return torch.cat([*means, pool(overlay, batch, hidden)], 1)


def embed(overlay: Overlay, batch: PackedBatch, dropout: float = 0.0) -> Tensor:
    """Return the input of the first layer: [N, H]."""
    hidden = overlay.embed("embeddings.word", batch.input_ids)
    hidden = hidden + overlay.embed("embeddings.position", batch.position_ids)
    hidden = hidden + overlay.embed("embeddings.token_type", batch.token_type_ids)
    return F.dropout(overlay.norm("embeddings.norm", hidden), dropout)


def run_layers(
    config: EncoderConfig,
    overlay: Overlay,
    batch: PackedBatch,
    attention: Attention,
    hidden: Tensor,
    numbers: range,
    dropout: float = 0.0,
) -> Tensor:
    """Run consecutive layers on hidden values [N, H]; the encoder's last layer returns [P, H]."""
    last = config.num_layers - 1
    for number in numbers:
        layer, residual = f"layer.{number}", hidden
        per_position = number == last and batch.num_cls > 0  # else the positions are all tokens
        if per_position:
            residual = overlay.gather(hidden, batch.token_at_position)  # [P, H]
        attended = _attend(config, overlay, attention, hidden, residual, number, dropout)  # [P, H]
        sites = f"{layer}.attention_output", f"{layer}.attention_norm"
        x = overlay.add_norm(sites, attended, residual, dropout, per_position=per_position)
        del attended, residual  # the widest tensor comes next
        site, sites = f"{layer}.intermediate", (f"{layer}.output", f"{layer}.output_norm")
        # Only the call holds the intermediate values, whose memory the next layer takes.
        hidden = overlay.add_norm(
            sites,
            overlay.activate(site, x, config.activation, per_position=per_position),
            x,
            dropout,
            per_position=per_position,
        )
    return hidden


def _attend(
    config: EncoderConfig,
    overlay: Overlay,
    attention: Attention,
    hidden: Tensor,
    asking: Tensor,
    number: int,
    dropout: float,
) -> Tensor:
    """Attend from the tokens `asking` [N or P, H] to all tokens `hidden` [N, H]: [N or P, H]."""
    width, heads = config.hidden_size, config.num_heads
    if number < config.num_layers - 1:
        stacked = overlay.linear(f"layer.{number}.query_key_value", hidden)  # [N, 3H]
        query, key_value = torch.split(stacked, [width, 2 * width], dim=1)
        return attention.tokens(query, key_value, heads, dropout)
    per_position = asking is not hidden
    key_value = overlay.linear(f"layer.{number}.key_value", hidden)  # [N, 2H]
    query = overlay.linear(f"layer.{number}.query", asking, per_position=per_position)
    attend = attention.positions if per_position else attention.tokens
    return attend(query, key_value, heads, dropout)


def pair_features(pooled: Tensor) -> Tensor:
    """Return the features of pairs of neighbouring vectors u, v: [2R, H] gives float32 [R, 4H].

    They are [u, v, |u - v|, u * v] (Conneau et al. 2017, arXiv:1705.02364) of u and v scaled to
    length 1, so that the cosine, which sentence encoders are trained for, is linear in them.
    """
    pairs = pooled.float().reshape(-1, 2, pooled.shape[1])
    u, v = F.normalize(pairs, dim=-1).unbind(1)
    return torch.cat([u, v, (u - v).abs(), u * v], dim=1)


def pool(overlay: Overlay, batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Return the pooled outputs, float32 [R, H], of the last layer's output [P, H].

    Those of rows with cls pooling are tanh(pooler); the others are means over the row's tokens,
    [CLS] and [SEP] included.
    """
    parts = []
    if batch.num_cls:
        x = overlay.linear("pooler", hidden[: batch.num_cls], per_position=True)
        parts.append(torch.tanh(x).float())
    if batch.num_cls < len(hidden):
        parts.append(_means(batch, hidden[batch.num_cls :]))
    return torch.cat(parts).index_select(0, batch.pooled_of_row)


def _pool_below(batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Return the means, float32 [R, H], of the output of a layer below the last one [N, H].

    Rows with cls pooling read none of them and have zeros.
    """
    tokens = batch.token_at_position[batch.num_cls :]
    means = _means(batch, hidden.index_select(0, tokens) if batch.num_cls else hidden)
    unread = means.new_zeros(batch.num_cls, means.shape[1])
    return torch.cat([unread, means]).index_select(0, batch.pooled_of_row)


def _means(batch: PackedBatch, hidden: Tensor) -> Tensor:
    """Return the means, in float32, of the values of each row with mean pooling."""
    index = torch.arange(len(hidden), device=hidden.device)
    # A row's mean reads no other row, as a product with a matrix of shares would: 0 * NaN.
    return F.embedding_bag(
        index, hidden.float(), batch.mean_offsets, mode="mean", include_last_offset=True
    )
