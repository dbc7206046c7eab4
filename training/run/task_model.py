"""The model of one training run: a frozen backbone, an overlay of trained entries, and a head.

`ServedModel` computes a trained model as a server does; `training.run.train_delta` judges with it,
and a head that trains alone reads the rows with it.
Also defines the losses. A loss is a sum over rows, divided by the total weight of all rows of the
step, so a step has the same gradient whether its rows are computed in one batch, in several, or
spread over processes. Read `training.run.loop.loop` next, which trains the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.backbone.tokenizer import TokenizedRow
from deltas.delta import DenseEntry, Entry, SparseEntry
from deltas.encoder.bank import Bank, Reading
from deltas.encoder.cpu import CpuForward
from deltas.encoder.encoder import embed, pair_features, run_and_pool
from deltas.encoder.single_overlay import TrainableOverlay
from deltas.encoder.window_attention import WindowAttention
from deltas.manifest import PairEncoding, Pooling, TaskSpec
from training.run.feature_cache import FeatureCache, frozen_depth
from training.strategies.rules import Selection

_HEAD_DEVIATION = 0.02  # BERT's initializer_range


@dataclass(frozen=True)
class Split:
    """Tokenized rows; labels int64 [R], float32 [R] (regression), float32 [R, C] (multi label)."""

    rows: list[TokenizedRow]
    labels: Tensor


class Model(Protocol):
    """A model that has a head and gives rows logits."""

    head: tuple[Tensor, Tensor]  # weight [C, I], bias [C]

    def logits(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return float32 logits [R, C] in the order of the rows."""


class TaskModel:
    """Frozen backbone + overlay + head for one task.

    The head of a regression is trained on standardised labels, whatever their range. `logits`
    returns the labels' original units: head(pooled) * scale + shift. `output` is scale and shift,
    the labels' standard deviation and mean.

    The entries' values and the head, weight [C, H] and bias [C], require gradients from now on.
    `dtype` is the precision of the frozen computation. `pooling` and `pairs` are
    those of the task (`deltas.manifest.TaskSpec`).
    """

    def __init__(
        self,
        backbone: Backbone,
        entries: dict[str, Entry],
        head: tuple[Tensor, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        output: tuple[float, float] = (1.0, 0.0),
        *,
        pooling: Pooling = "cls",
        pairs: PairEncoding = "joint",
    ) -> None:
        weight, bias = (part.to(device).requires_grad_() for part in head)
        self.entries, self.head = entries, (weight, bias)
        for entry in entries.values():
            entry.values.requires_grad_()
        self.scale, self.shift = output
        self._config = backbone.config
        self.device, self.dtype = device, dtype
        self._is_separate = pairs == "separate"
        self._overlay = TrainableOverlay(backbone, entries, device, dtype)
        depth = frozen_depth(entries, backbone.config)
        encoder = None
        if depth > backbone.config.num_layers and device.type == "cpu":
            # The cache keeps single sequences, those of separate pairs, too.
            encoder = ServedModel(backbone, {}, head, dtype, pooling=pooling, pairs="joint")
        self.cache = FeatureCache(
            backbone.config, self._overlay, depth, device, dtype, pooling, encoder
        )

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All trained tensors by name: the entries' values and the head."""
        named = {name: entry.values for name, entry in self.entries.items()}
        return named | dict(zip(("classifier.weight", "classifier.bias"), self.head, strict=True))

    def logits(self, rows: Sequence[TokenizedRow], dropout: float = 0.0) -> Tensor:
        """Return float32 logits [R, C] in the order of the rows."""
        features = F.dropout(self.features(rows, dropout), dropout)
        return F.linear(features, *self.head) * self.scale + self.shift

    @torch.no_grad()
    def fold(self) -> None:
        """Fold scale and shift into the head, which gives the final answers from now on."""
        weight, bias = self.head
        weight *= self.scale
        bias *= self.scale
        bias += self.shift
        self.scale, self.shift = 1.0, 0.0

    def keep_features(self, rows: Sequence[TokenizedRow]) -> None:
        """Keep the outputs of the frozen layers for these rows, if they fit into memory."""
        self.cache.fill(self._sequences(rows))

    def can_keep_features(self, rows: Sequence[TokenizedRow]) -> bool:
        """Return whether there are frozen layers and their outputs for these rows fit."""
        return self.cache.depth > 0 and self.cache.fits(self._sequences(rows))

    def can_keep_pooled(self, rows: Sequence[TokenizedRow]) -> bool:
        """Return whether nothing of the encoder trains and its outputs fit into memory."""
        return self.cache.is_whole_encoder and self.can_keep_features(rows)

    @property
    def cosine_direction(self) -> Tensor | None:
        """The weight, float32 [4H], that turns features of a pair into its cosine; else None."""
        if not self._is_separate:
            return None
        weight = torch.zeros(4, self._config.hidden_size)
        weight[3] = 1.0  # u * v, whose sum is the cosine of vectors of unit length
        return weight.view(-1)

    def features(self, rows: Sequence[TokenizedRow], dropout: float = 0.0) -> Tensor:
        """Return the head's input, float32 [R, I].

        Dropout acts only in layers that train; the layers below are a fixed function of the row.
        """
        pooled = self._pooled(self._sequences(rows), dropout)
        return pair_features(pooled) if self._is_separate else pooled

    def _sequences(self, rows: Sequence[TokenizedRow]) -> Sequence[TokenizedRow]:
        """Return each sequence that the encoder reads by itself as a row."""
        if not self._is_separate:
            return rows
        sequences = (sequence for row in rows for sequence in row.sequences)
        return [TokenizedRow(*sequence, truncated=False) for sequence in sequences]

    def _pooled(self, rows: Sequence[TokenizedRow], dropout: float) -> Tensor:
        if self.cache.is_whole_encoder:
            return self.cache.pooled(rows).float()
        batch = self.cache.pack(rows)
        self._overlay.refresh()
        depth = self.cache.depth
        hidden = self.cache.hidden(rows, batch) if depth else embed(self._overlay, batch, dropout)
        attention = WindowAttention(batch, hidden.dtype)
        return run_and_pool(self._config, self._overlay, batch, attention, hidden, depth, dropout)


class ServedModel:
    """A trained model whose features and logits have the bits that a server on this CPU computes.

    The pass of a training rounds at other places, as gradients need; in bfloat16 it gives a few
    rows in a thousand, near a tie, another label than the server (decision 0102). It is also
    slower, since it keeps what gradients need.

    Args:
        backbone: the frozen weights.
        entries: the trained values, on the CPU.
        head: weight and bias; not copied, so that a calibration of the head counts.
        dtype: precision of the frozen computation.
        pooling: pooling of the task.
        pairs: the way of reading pairs, joint or separate.
    """

    def __init__(
        self,
        backbone: Backbone,
        entries: Mapping[str, Entry],
        head: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        *,
        pooling: Pooling,
        pairs: PairEncoding,
    ) -> None:
        self.head = head
        bank = Bank(backbone, torch.device("cpu"), dtype)
        weight, bias = (part.detach() for part in head)
        staged = bank.stage_values(entries, (weight, bias), Reading.of(pooling, pairs))
        (self._slot,) = bank.add([staged])
        self._bank = bank
        self._forward = CpuForward(backbone.config, bank)

    @torch.no_grad()
    def features(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return the head's input, float32 [R, I], in the order of the rows."""
        pooled = self._forward.pooled(rows, [self._slot] * len(rows))
        return self._bank.head_input(self._slot, pooled)

    @torch.no_grad()
    def logits(self, rows: Sequence[TokenizedRow]) -> Tensor:
        """Return float32 logits [R, C] in the order of the rows."""
        return F.linear(self.features(rows), *self.head)


def finished_model(
    model: TaskModel, backbone: Backbone, entries: Mapping[str, Entry], spec: TaskSpec
) -> Model:
    """Return a trained model as a server computes it.

    On a GPU that is the model itself, and on a CPU, too, if only its head trains.
    """
    if model.device.type != "cpu" or model.cache.is_whole_encoder:
        return model
    return ServedModel(
        backbone, entries, model.head, model.dtype, pooling=spec.pooling, pairs=spec.pairs
    )


def initial_entries(
    backbone: Backbone, selection: Selection, device: torch.device
) -> dict[str, Entry]:
    """Return entries to train, filled with the backbone's values at the selected positions."""
    entries: dict[str, Entry] = {}
    for name, indices in selection.items():
        value = backbone.parameters[name]
        if indices is None:
            entries[name] = DenseEntry(value.clone().to(device))
        else:
            values = value.reshape(-1)[indices].to(device)
            entries[name] = SparseEntry(indices.to(device), values, tuple(value.shape))
    return entries


def initial_head(outputs: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a head from the seed: a weight [C, H], and a bias [C] of zeros."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, width, generator=generator) * _HEAD_DEVIATION
    return weight, torch.zeros(outputs)


def balanced_weights(kind: str, labels: Tensor, num_labels: int) -> Tensor:
    """Return weights, float32 [C], with which each label of a train set counts alike.

    Single label: R / (C x rows of the label). Multi label: rows without the label / rows with it,
    the weight of the label's presence.
    """
    if kind == "multi_label":
        present = labels.sum(0)
        return ((len(labels) - present) / present.clamp(min=1)).clamp(min=1e-3).float()
    counts = torch.bincount(labels, minlength=num_labels)
    return (len(labels) / (num_labels * counts.clamp(min=1))).float()


def total_weight(kind: str, labels: Tensor, weights: Tensor | None = None) -> float:
    """Return the divisor that turns the summed loss of these rows into their mean loss."""
    if kind == "single_label" and weights is not None:
        return float(weights[labels].sum())
    return float(labels.numel())


def loss_sum(
    kind: str,
    logits: Tensor,
    labels: Tensor,
    scale: float = 1.0,
    weights: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Return the summed loss of rows: cross entropy, binary cross entropies, or squared error.

    `scale` is the unit of squared errors; it makes a learning rate suit labels of any range.
    `smoothing` is the share of each label that is spread over all labels (Szegedy et al. 2016,
    arXiv:1512.00567). For the weights, float32 [C], see `balanced_weights`.
    """
    if kind == "single_label":
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing)
    if kind == "multi_label":
        wanted = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(
            logits, wanted, reduction="sum", pos_weight=weights
        )
    return F.mse_loss(logits[:, 0] / scale, labels / scale, reduction="sum")


def task_loss(kind: str, logits: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
    """Return the mean loss of rows that all count alike, see `loss_sum`."""
    return loss_sum(kind, logits, labels, scale) / total_weight(kind, labels)
