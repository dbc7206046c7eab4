"""Preparation of a run: the rows that `fisher` uses, and the default number of epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from deltas import Backbone, DenseEntry, tokenize_texts
from deltas.manifest import Pooling, TaskAbout
from training.data.tasks import Task
from training.errors import ConfigError
from training.options import FitConfig
from training.run import feature_cache, prepare
from training.run.evaluation import pooled_scale
from training.run.task_model import Split, TaskModel, initial_head, task_loss
from training.strategies.rules import RULES

NAME = "bert.pooler.dense.bias"


def model_of(backbone: Backbone) -> TaskModel:
    entry = DenseEntry(backbone.parameters[NAME].clone())
    head = initial_head(2, backbone.config.hidden_size, 0)
    return TaskModel(backbone, {NAME: entry}, head, torch.device("cpu"), torch.float32)


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
    plain = prepare.task_loss  # type: ignore[attr-defined]

    def spying(kind: str, logits: Tensor, given: Tensor, *rest: Any) -> Tensor:
        seen.extend(given.tolist())
        return plain(kind, logits, given, *rest)

    monkeypatch.setattr(prepare, "task_loss", spying)
    return seen


def test_fisher_sees_all_labels_of_a_sorted_file(
    tiny_backbone: Backbone, labels: list[int]
) -> None:
    model, split = model_of(tiny_backbone), sorted_split(tiny_backbone, 600, 300)
    first = prepare.fisher_scores(model, "single_label", split, 3)
    assert len(labels) == 256
    assert 50 < sum(labels) < 120  # a third of them, not none
    again, other = (prepare.fisher_scores(model, "single_label", split, seed) for seed in (3, 4))
    assert torch.equal(first[NAME], again[NAME])
    assert not torch.equal(first[NAME], other[NAME])


def test_fisher_takes_all_rows_of_a_small_file(tiny_backbone: Backbone, labels: list[int]) -> None:
    model, split = model_of(tiny_backbone), sorted_split(tiny_backbone, 4, 3)
    scores = [prepare.fisher_scores(model, "single_label", split, seed) for seed in (0, 1)]
    assert labels == [0, 0, 0, 0, 1, 1, 1] * 2
    assert torch.equal(scores[0][NAME], scores[1][NAME])


def test_gem_is_the_gradient_of_the_whole_loss_by_the_weight(tiny_backbone: Backbone) -> None:
    """One backward pass over all rows gives the same as the sum over rows."""
    split = sorted_split(tiny_backbone, 5, 4)
    model = model_of(tiny_backbone)
    found = prepare.gem_scores(model, "single_label", split, 0)[NAME]
    loss = task_loss("single_label", model.logits(split.rows), split.labels) * len(split.rows)
    (gradient,) = torch.autograd.grad(loss, [model.entries[NAME].values])
    expected = gradient.abs() / tiny_backbone.parameters[NAME].abs()
    assert torch.allclose(found, expected, rtol=1e-3)
    assert found.requires_grad is False


def test_the_head_has_its_own_rate_or_the_same(tiny_backbone: Backbone) -> None:
    model = model_of(tiny_backbone)
    parts = sorted_split(tiny_backbone, 6, 6), sorted_split(tiny_backbone, 2, 2)

    def rates(**options: object) -> tuple[float, float]:
        config = FitConfig.model_validate({"task": "rte", "lr": 0.25} | options)
        loop = prepare.loop_config(config, model, parts)
        return loop.learning_rate, loop.head_learning_rate

    assert rates(head_lr="same") == (0.25, 0.25)
    assert rates(head_lr="0.5") == (0.25, 0.5)
    assert rates(head_lr="same", freeze="layernorm", lr=None)[1] == RULES["layernorm"].default_lr
    scale = pooled_scale(model, parts[0].rows)
    assert rates()[1] == pytest.approx(1e-3 / scale, rel=0.01)


@pytest.mark.parametrize(("fits", "epochs"), [(True, 40), (False, 20)])
def test_a_head_alone_has_more_epochs_if_its_features_are_cached(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, fits: bool, epochs: int
) -> None:
    """If they don't fit, each of its epochs costs as much as any other's."""
    monkeypatch.setattr(feature_cache, "_MAX_BYTES", 2**31 if fits else 0)
    head = initial_head(2, tiny_backbone.config.hidden_size, 0)
    alone = TaskModel(tiny_backbone, {}, head, torch.device("cpu"), torch.float32)
    parts = sorted_split(tiny_backbone, 6, 6), sorted_split(tiny_backbone, 2, 2)
    for options, model, expected in (
        ({}, alone, epochs),
        ({"epochs": 3}, alone, 3),
        ({"freeze": "bitfit"}, model_of(tiny_backbone), 20),
    ):
        config = FitConfig.model_validate(
            {"task": "rte", "freeze": "head", "head_start": "random", "batch_size": 4} | options
        )
        assert prepare.loop_config(config, model, parts).steps == 3 * expected


def test_a_solved_head_alone_is_trained_only_if_epochs_are_given(tiny_backbone: Backbone) -> None:
    head = initial_head(2, tiny_backbone.config.hidden_size, 0)
    alone = TaskModel(tiny_backbone, {}, head, torch.device("cpu"), torch.float32)
    parts = sorted_split(tiny_backbone, 6, 6), sorted_split(tiny_backbone, 2, 2)
    for epochs, steps in ((None, 0), (2.0, 6)):
        config = FitConfig(task="rte", freeze="head", batch_size=4, epochs=epochs)
        loop = prepare.loop_config(config, alone, parts)
        assert (loop.steps, loop.head_start) == (steps, "solved")


@pytest.mark.parametrize(
    ("made_for", "fields", "options", "expected"),
    [
        ("mean", 1, {"freeze": "head"}, ("layers", "joint")),
        ("mean", 1, {"freeze": "bitfit"}, ("mean", "joint")),
        ("mean", 1, {"freeze": "bitfit", "pooling": "layers"}, ("layers", "joint")),
        ("mean", 1, {"freeze": "head", "pooling": "mean"}, ("mean", "joint")),
        ("mean", 2, {"freeze": "head"}, ("mean", "separate")),
        ("mean", 2, {"freeze": "head", "pairs": "joint"}, ("cls", "joint")),
        ("mean", 2, {"freeze": "head", "pairs": "joint", "pooling": "layers"}, ("layers", "joint")),
        ("cls", 1, {"freeze": "head"}, ("cls", "joint")),
        ("cls", 2, {"freeze": "head"}, ("cls", "joint")),
    ],
)
def test_a_task_is_read_as_the_backbone_is_made_for(
    tiny_backbone: Backbone,
    made_for: Pooling,
    fields: int,
    options: dict[str, Any],
    expected: tuple[str, str],
) -> None:
    task = Task("mine", "single_label", ("good", "bad"), ("a", "b")[:fields], ("accuracy",))
    config = FitConfig.model_validate({"task": "rte", "max_length": 32} | options)
    spec = prepare.task_spec(config, task, 100, replace(tiny_backbone, pooling=made_for), None)
    assert (spec.pooling, spec.pairs) == expected


def test_every_layer_is_read_only_if_the_features_of_all_rows_fit(tiny_backbone: Backbone) -> None:
    """Three layers of 36 values take 432 bytes a row."""
    task = Task("mine", "single_label", ("good", "bad"), ("a",), ("accuracy",))
    config = FitConfig.model_validate({"task": "rte", "max_length": 32, "freeze": "head"})
    encoder = replace(tiny_backbone, pooling="mean")
    most = 2**31 // 432
    found = [
        prepare.task_spec(config, task, rows, encoder, None).pooling for rows in (most, most + 1)
    ]
    assert found == ["layers", "mean"]
    asked = config.model_copy(update={"pooling": "layers"})
    assert prepare.task_spec(asked, task, most + 1, encoder, None).pooling == "layers"


@pytest.mark.parametrize("options", [{"pairs": "separate"}, {}], ids=str)
def test_texts_that_are_read_separately_have_no_pooling_of_every_layer(
    tiny_backbone: Backbone, options: dict[str, Any]
) -> None:
    task = Task("mine", "single_label", ("good", "bad"), ("a", "b"), ("accuracy",))
    config = FitConfig.model_validate(
        {"task": "rte", "max_length": 32, "pooling": "layers"} | options
    )
    with pytest.raises(ConfigError, match=r"--pooling layers: .* give --pairs joint"):
        prepare.task_spec(config, task, 100, replace(tiny_backbone, pooling="mean"), None)


def about(*examples: str, **options: Any) -> TaskAbout | None:
    task = Task("mine", "single_label", ("good", "bad"), ("text",), ("accuracy",))
    given = {"train_file": "x.csv", "text_columns": "t", "label_column": "l", "name": "mine"}
    config = FitConfig.model_validate(given | {"example": examples or None} | options)
    return prepare.task_about(config, task)


def test_the_words_of_a_tasks_author() -> None:
    assert about() is None, "manifests of runs without them stay as they were"
    found = about("a => b film => bad", "no answer", question="Is it good?")
    assert found is not None
    assert found.question == "Is it good?"
    assert [(item.texts, item.answer) for item in found.examples] == [
        (("a => b film",), "bad"),
        (("no answer",), ""),
    ]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("one || two => good", "'TEXT => LABEL'"),
        (" => good", "'TEXT => LABEL'"),
        ("a film => godo", "'godo' is not a label. Labels: good, bad"),
    ],
)
def test_an_example_that_does_not_fit(example: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        about(example)
    assert said in str(caught.value)
