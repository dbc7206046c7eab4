"""What a run starts from: the rows that `fisher` looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from deltas import Backbone, DenseEntry, tokenize_texts
from training import start
from training.trainee import Split, Trainee, initial_head

NAME = "bert.pooler.dense.bias"


def trainee_of(backbone: Backbone) -> Trainee:
    entry = DenseEntry(backbone.parameters[NAME].clone())
    head = initial_head(2, backbone.config.hidden_size, 0)
    return Trainee(backbone, {NAME: entry}, head, torch.device("cpu"), torch.float32)


def sorted_split(backbone: Backbone, bad: int, good: int) -> Split:
    """All rows of one label, then all of the other, as many files are."""
    texts = [(f"the film {n}",) for n in range(bad + good)]
    return Split(
        tokenize_texts(backbone.tokenizer, 16, texts), torch.tensor([0] * bad + [1] * good)
    )


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The labels that scores were computed of, in order."""
    seen: list[int] = []
    plain = start.task_loss  # type: ignore[attr-defined]

    def spying(kind: str, logits: Tensor, given: Tensor, *rest: Any) -> Tensor:
        seen.extend(given.tolist())
        return plain(kind, logits, given, *rest)

    monkeypatch.setattr(start, "task_loss", spying)
    return seen


def test_fisher_sees_all_labels_of_a_sorted_file(
    tiny_backbone: Backbone, labels: list[int]
) -> None:
    trainee, split = trainee_of(tiny_backbone), sorted_split(tiny_backbone, 600, 300)
    first = start.fisher_scores(trainee, "single_label", split, 3)
    assert len(labels) == 256
    assert 50 < sum(labels) < 120  # a third of them, not none
    again, other = (start.fisher_scores(trainee, "single_label", split, seed) for seed in (3, 4))
    assert torch.equal(first[NAME], again[NAME])
    assert not torch.equal(first[NAME], other[NAME])


def test_fisher_takes_all_rows_of_a_small_file(tiny_backbone: Backbone, labels: list[int]) -> None:
    trainee, split = trainee_of(tiny_backbone), sorted_split(tiny_backbone, 4, 3)
    scores = [start.fisher_scores(trainee, "single_label", split, seed) for seed in (0, 1)]
    assert labels == [0, 0, 0, 0, 1, 1, 1] * 2
    assert torch.equal(scores[0][NAME], scores[1][NAME])
