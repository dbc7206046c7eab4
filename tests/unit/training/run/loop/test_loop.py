"""The training loop: order of rows, learning rate, dropout, and which state is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from deltas import Backbone, DenseEntry, Entry, TokenizedRow, tokenize_texts
from deltas.backbone.backbone import weights_fingerprint
from training.data.tasks import Task
from training.run import distributed
from training.run.evaluation import decisions, evaluate, predict
from training.run.loop.loop import Progress, train
from training.run.loop.schedule import LoopConfig
from training.run.task_model import Split, TaskModel, task_loss

OPTIONS = LoopConfig(
    steps=12,
    batch_size=4,
    learning_rate=0.05,
    head_learning_rate=0.05,
    warmup=0.1,
    weight_decay=0.0,
    dropout=0.0,
    evals=3,
    seed=7,
)
TASK = Task("mine", "single_label", ("bad", "good"), ("text",), ("accuracy",))
WORDS = ["the", "film", "and", "very", "not"]


def texts_and_labels(count: int, shift: int = 0) -> tuple[list[tuple[str, ...]], Tensor]:
    """Rows whose label is which of two words they hold."""
    texts, labels = [], []
    for number in range(count):
        label = (number * 7 + number // 3) % 2
        word = WORDS[(number + shift) % len(WORDS)]
        texts.append((f"{word} {('bad', 'good')[label]} {WORDS[(number * 3) % 5]}",))
        labels.append(label)
    return texts, torch.tensor(labels)  # type: ignore[return-value]


def split_of(backbone: Backbone, count: int, shift: int = 0) -> Split:
    """Those rows, tokenized."""
    texts, labels = texts_and_labels(count, shift)
    return Split(tokenize_texts(backbone.tokenizer, 16, texts), labels)


def model_of(backbone: Backbone, wanted: str = ".bias", outputs: int = 2) -> TaskModel:
    """Trains all parameters of that ending; the head starts from a fixed seed."""
    entries: dict[str, Entry] = {
        name: DenseEntry(value.clone())
        for name, value in backbone.parameters.items()
        if name.endswith(wanted)
    }
    weight = torch.randn(outputs, 36, generator=torch.Generator().manual_seed(1)) * 0.02
    head = (weight, torch.zeros(outputs))
    return TaskModel(backbone, entries, head, torch.device("cpu"), torch.float32)


def run(backbone: Backbone, path: Path, **changes: Any) -> tuple[TaskModel, list[Progress], Any]:
    """One short run; returns what was trained, its progress and its metrics."""
    model, seen = model_of(backbone), []  # type: ignore[var-annotated]
    splits = split_of(backbone, 40), split_of(backbone, 12, shift=2)
    options = replace(OPTIONS, **changes)
    metrics, *_ = train(model, TASK, splits, options, state_path=path, report=seen.append)
    return model, seen, metrics


def flat(model: TaskModel) -> Tensor:
    """All trained values in one vector."""
    return torch.cat([value.detach().reshape(-1) for value in model.parameters.values()])


def test_it_learns(tiny_backbone: Backbone, tmp_path: Path) -> None:
    before = flat(model_of(tiny_backbone))
    model, seen, metrics = run(tiny_backbone, tmp_path / "s.safetensors", steps=60)
    assert metrics["accuracy"] > 0.9
    assert seen[-1].loss < 0.5 * seen[0].loss
    assert not torch.equal(flat(model), before)
    assert weights_fingerprint(tiny_backbone.parameters) == tiny_backbone.ref.fingerprint


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_seed_is_bit_equal(
    tiny_backbone: Backbone, tmp_path: Path, dropout: float
) -> None:
    """Other code may draw from torch's generator in between."""
    runs = []
    for number in range(2):
        torch.manual_seed(number)
        path = tmp_path / f"{number}.safetensors"
        model, seen, metrics = run(tiny_backbone, path, dropout=dropout)
        runs.append((flat(model), [step.loss for step in seen], metrics))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


def test_a_state_that_the_first_process_does_not_see_is_not_taken_up(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.safetensors"
    fresh = flat(run(tiny_backbone, path)[0])
    assert [progress.step for progress in run(tiny_backbone, path)[1]] == []
    monkeypatch.setattr(distributed, "broadcast_flag", lambda answer: False)
    again, seen, _ = run(tiny_backbone, path)
    assert seen[0].step == 1
    assert torch.equal(flat(again), fresh)


@pytest.mark.parametrize(("dropout", "same"), [(0.0, True), (0.2, False)])
def test_each_process_draws_masks_of_its_own(
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dropout: float,
    same: bool,
) -> None:
    alone = run(tiny_backbone, tmp_path / "0.safetensors", dropout=dropout, steps=3)[0]
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "shard", lambda items: items)
    second = run(tiny_backbone, tmp_path / "1.safetensors", dropout=dropout, steps=3)[0]
    assert torch.equal(flat(alone), flat(second)) is same


def test_another_seed_is_another_run(tiny_backbone: Backbone, tmp_path: Path) -> None:
    first, second = (
        flat(run(tiny_backbone, tmp_path / f"{seed}.safetensors", seed=seed)[0]) for seed in (1, 2)
    )
    assert not torch.equal(first, second)


def test_a_gradient_is_clipped_to_the_given_norm_or_not_at_all(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    plain = torch.optim.AdamW.step

    def spying(self: torch.optim.AdamW, *rest: Any) -> Any:
        grads = [value.grad for group in self.param_groups for value in group["params"]]
        found = [grad.norm() for grad in grads if grad is not None]
        norms.append(float(torch.stack(found).norm()))
        return plain(self, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", spying)
    for number, norm in enumerate((1e-3, 0.0)):
        run(tiny_backbone, tmp_path / str(number), clip_norm=norm, steps=2, evals=1)
    clipped, free = norms[:2], norms[2:]
    assert clipped == pytest.approx([1e-3, 1e-3], rel=1e-3)
    assert min(free) > 0.01


def test_steps_and_evaluations_are_reported(tiny_backbone: Backbone, tmp_path: Path) -> None:
    _, seen, _ = run(tiny_backbone, tmp_path / "s.safetensors", steps=10, evals=4)
    assert [progress.step for progress in seen] == list(range(1, 11))
    assert [p.step for p in seen if p.metric is not None] == [3, 5, 8, 10]


def test_the_best_state_is_kept_and_not_the_last(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each evaluation's values are recorded; the run must return those of the best one."""
    import training.run.loop.loop as loop

    kept: list[tuple[tuple[float, float], Tensor]] = []

    def recording(model: TaskModel, task: Task, split: Split) -> dict[str, float]:
        metrics = evaluate(model, task, split)
        kept.append(((metrics["accuracy"], -metrics["loss"]), flat(model).clone()))
        return metrics

    monkeypatch.setattr(loop, "evaluate", recording)
    # So large a rate that the metric goes up and down.
    model, _, metrics = run(
        tiny_backbone, tmp_path / "s.safetensors", steps=24, evals=24, learning_rate=2.0, warmup=0.0
    )
    assert len(kept) == 24
    best, values = max(kept, key=lambda entry: entry[0])
    assert best != kept[-1][0]
    assert torch.equal(flat(model), values)
    assert (metrics["accuracy"], -metrics["loss"]) == best


def test_dropout_is_on_in_every_step_and_off_in_every_evaluation(
    tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project that this one grew from left it off after the first evaluation."""
    seen: list[tuple[int, float]] = []
    plain = TaskModel.logits

    def spying(self: TaskModel, rows: Sequence[TokenizedRow], dropout: float = 0.0) -> Tensor:
        seen.append((len(rows), dropout))
        return plain(self, rows, dropout)

    monkeypatch.setattr(TaskModel, "logits", spying)
    run(tiny_backbone, tmp_path / "s.safetensors", dropout=0.3, steps=9, evals=3)
    # 40 rows in batches of 4 to train on, 12 to judge on.
    assert seen == [(4, 0.3), (4, 0.3), (4, 0.3), (12, 0.0)] * 3


def test_two_evaluations_give_the_same(tiny_backbone: Backbone) -> None:
    model, split = model_of(tiny_backbone), split_of(tiny_backbone, 30)
    assert evaluate(model, TASK, split) == evaluate(model, TASK, split)


@pytest.mark.parametrize("limit", [1, 20, 4096])
def test_predicting_in_parts_keeps_the_order(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr("training.run.evaluation._BATCH_TOKENS", limit)
    model = model_of(tiny_backbone)
    texts = [(" ".join(WORDS[: 1 + number % 5]),) for number in range(23)]
    rows = tokenize_texts(tiny_backbone.tokenizer, 16, texts)
    together = predict(model, rows)
    with torch.no_grad():
        alone = torch.cat([model.logits([row]) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not together.requires_grad


def test_cached_features_belong_to_their_row(tiny_backbone: Backbone) -> None:
    """With the head alone, pooled outputs are computed once a row: for rows that are gone, too.

    MNLI is judged on two sets, one after the other; the first set's rows are freed in between,
    so the second's may lie at their addresses.
    """
    model = model_of(tiny_backbone, wanted="nothing")
    assert model.entries == {}
    for number in range(200):
        texts = [(f"{WORDS[number % 5]} {number} {place}",) for place in range(3)]
        rows = tokenize_texts(tiny_backbone.tokenizer, 16, texts)
        fresh = model_of(tiny_backbone, wanted="nothing")
        found, expected = predict(model, rows), predict(fresh, rows)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        del rows, fresh


@pytest.mark.parametrize(
    ("kind", "labels", "stock"),
    [
        ("single_label", torch.tensor([0, 2, 1]), F.cross_entropy),
        (
            "multi_label",
            torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0]]),
            torch.nn.BCEWithLogitsLoss(),
        ),
    ],
)
def test_losses_equal_those_of_transformers(kind: str, labels: Tensor, stock: Any) -> None:
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert float(task_loss(kind, logits, labels)) == pytest.approx(float(stock(logits, labels)))


def test_regression_compares_one_value_a_row() -> None:
    """Broadcasting would compare every prediction with every label."""
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    assert float(task_loss("regression", logits, labels)) == 2.0


def test_decisions_by_kind() -> None:
    logits = np.array([[0.1, 2.0, -1.0], [0.0, -0.5, -0.1]], dtype=np.float32)
    assert decisions("single_label", logits).tolist() == [1, 0]
    assert decisions("multi_label", logits).tolist() == [[1, 1, 0], [1, 0, 0]]
    assert decisions("regression", logits[:, :1]).tolist() == pytest.approx([0.1, 0.0])
