"""Tests of the head solver, beside scikit-learn's solutions of the same problems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import matthews_corrcoef
from torch import Tensor

from training.run.head import solver
from training.run.head.solver import HeadProblem, Score, solve_head
from training.run.task_model import balanced_weights


def features_of(rows: int, width: int, seed: int = 0) -> Tensor:
    """Return correlated features with a large offset, as pooled outputs are."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    return mixed / width**0.5 + 3.0


def single_label(
    rows: int = 300, width: int = 6, labels: int = 3, noise: float = 1.0
) -> HeadProblem:
    """Return a problem whose labels depend on the features, and on noise."""
    x = features_of(rows, width)
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(labels, width, generator=generator)
    scores = (x - 3.0) @ true.t() + noise * torch.randn(rows, labels, generator=generator)
    return HeadProblem("single_label", labels, x, scores.argmax(1))


def test_solution_is_scikit_learns_for_the_same_penalty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_PENALTIES", (0.01,))
    problem = single_label()
    solved = solve_head(problem, seed=0)
    x = problem.features
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=1000)
    theirs.fit(standard, problem.labels.numpy())
    ours = torch.softmax(F.linear(x, solved.weight, solved.bias), 1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standard), atol=5e-3)


def test_regression_is_scikit_learns_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver, "_PENALTIES", (0.1,))
    x = features_of(200, 5)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]) + 7.0
    solved = solve_head(HeadProblem("regression", 1, x, y), seed=0)
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    theirs = Ridge(alpha=0.1 * len(x)).fit(standard, y.numpy()).predict(standard)
    ours = F.linear(x, solved.weight, solved.bias)[:, 0].numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_penalty_grows_with_the_noise() -> None:
    clean, noisy = (solve_head(single_label(noise=noise), seed=0) for noise in (0.05, 10.0))
    assert noisy.penalty > 3 * clean.penalty


def test_labels_that_say_nothing_get_a_strong_penalty() -> None:
    problem = HeadProblem("single_label", 2, features_of(200, 20), torch.arange(200) % 2)
    assert solve_head(problem, seed=0).penalty >= 1.0


def test_score_keeps_a_weak_penalty_where_the_loss_would_answer_one_label_only() -> None:
    """A quarter of the rows has the rarer label, and the features hardly tell it."""
    x = features_of(800, 30)
    generator = torch.Generator().manual_seed(2)
    noisy = x[:, 0] + 3.0 * torch.randn(len(x), generator=generator)
    problem = HeadProblem("single_label", 2, x, (noisy > noisy.quantile(0.75)).long())

    def matthews(logits: Tensor, labels: Tensor) -> float:
        return float(matthews_corrcoef(labels.numpy(), logits.argmax(1).numpy()))

    def of_solution(score: Score | None) -> float:
        solved = solve_head(problem, seed=0, score=score)
        return matthews(F.linear(x, solved.weight, solved.bias), problem.labels)

    assert of_solution(None) == 0.0
    assert of_solution(matthews) > 0.05


def test_multi_label_columns_are_independent_problems() -> None:
    x = features_of(400, 5)
    y = torch.stack([(x[:, 0] > 3).float(), (x[:, 1] > 3.5).float()], 1)
    solved = solve_head(HeadProblem("multi_label", 2, x, y), seed=0)
    right = (F.linear(x, solved.weight, solved.bias) >= 0).float() == y
    assert right.float().mean() > 0.95


def test_constant_feature_and_absent_label_do_no_harm() -> None:
    problem = single_label(labels=3)
    x = torch.cat([problem.features, torch.full((300, 1), 5.0)], 1)
    labels = problem.labels.clamp(max=1)  # label 2 has no row
    solved = solve_head(HeadProblem("single_label", 3, x, labels), seed=0)
    assert torch.isfinite(solved.weight).all()
    assert torch.isfinite(solved.bias).all()
    assert (solved.weight[:, -1] == 0).all()
    assert F.linear(x, solved.weight, solved.bias).argmax(1).max() <= 1


def test_balanced_weights_find_the_rare_label() -> None:
    x = features_of(1000, 3)
    generator = torch.Generator().manual_seed(2)
    score = x[:, 0] - 3 + 0.5 * torch.randn(1000, generator=generator)
    labels = (score > score.quantile(0.97)).long()
    weights = balanced_weights("single_label", labels, 2)
    found = []
    for each in (None, weights):
        solved = solve_head(HeadProblem("single_label", 2, x, labels, each), seed=0)
        chosen = F.linear(x, solved.weight, solved.bias).argmax(1)
        found.append(int((chosen[labels == 1] == 1).sum()))
    assert found[1] > 1.5 * found[0]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_few_rows_are_solved_too(kind: str, rows: int) -> None:
    labels = torch.arange(rows) % 2
    given = labels.float().unsqueeze(1) if kind == "multi_label" else labels
    outputs = {"single_label": 2, "multi_label": 1, "regression": 1}[kind]
    if kind == "regression":
        given = given.float()
    solved = solve_head(HeadProblem(kind, outputs, features_of(rows, 4), given), seed=0)
    assert torch.isfinite(solved.weight).all()
    assert solved.weight.shape == (outputs, 4)


@pytest.mark.parametrize("kind", ["regression", "single_label"])
def test_a_free_direction_is_found_under_the_strongest_penalty(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few rows and many features: a penalised head has to give most of the signal up."""
    monkeypatch.setattr(solver, "_PENALTIES", (1.0,))
    x = features_of(60, 40)
    free = torch.cat([torch.zeros(20), torch.ones(20)])
    signal = x @ free
    labels = signal if kind == "regression" else (signal > signal.median()).long()
    outputs = 1 if kind == "regression" else 2
    found = []
    for direction in (None, free):
        solved = solve_head(HeadProblem(kind, outputs, x, labels, free=direction), seed=0)
        assert solved.weight.shape == (outputs, 40)
        answers = F.linear(x, solved.weight, solved.bias)[:, -1]
        found.append(float(torch.corrcoef(torch.stack([answers, signal]))[0, 1]))
    assert found[1] > 0.999 > found[0]


def test_same_seed_gives_the_same_head() -> None:
    first, second = (solve_head(single_label(), seed=3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert first.penalty == second.penalty


def test_a_given_penalty_is_not_chosen_again() -> None:
    chosen = solve_head(single_label(), seed=0)
    again = solve_head(single_label(), seed=1, penalty=chosen.penalty)
    assert again.penalty == chosen.penalty
    assert torch.equal(again.weight, chosen.weight)
    weaker = solve_head(single_label(), seed=0, penalty=chosen.penalty / 1000)
    assert weaker.weight.norm() > chosen.weight.norm()


def test_wide_features_are_projected_to_choose_the_penalty(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Copies of a few features, as neighbouring layers' means nearly are: nothing is lost."""
    narrow = single_label()
    wide = replace(narrow, features=narrow.features.repeat(1, 1 + 2048 // narrow.features.shape[1]))
    widths: list[int] = []
    plain = solver._solve

    def noting(problem: HeadProblem, *rest: Any, **options: Any) -> tuple[Tensor, Tensor]:
        widths.append(problem.features.shape[1])
        return plain(problem, *rest, **options)

    monkeypatch.setattr(solver, "_solve", noting)
    projected = solve_head(wide, seed=0)
    assert (min(widths), widths[-1]) == (512, wide.features.shape[1])
    monkeypatch.setattr(solver, "_MAX_CHOICE_WIDTH", 10**6)
    whole = solve_head(wide, seed=0)
    assert projected.penalty == whole.penalty
    torch.testing.assert_close(projected.weight, whole.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("free", [False, True])
def test_pairs_of_a_small_backbone_are_not_projected(
    monkeypatch: pytest.MonkeyPatch, free: bool
) -> None:
    """Four vectors of 384 values; the free direction adds a column."""
    narrow = single_label()
    wide = replace(narrow, features=narrow.features.repeat(1, 1536 // narrow.features.shape[1]))
    direction = torch.zeros(1536)
    direction[-1] = 1.0
    monkeypatch.setattr(solver, "_projected", None)
    assert solve_head(replace(wide, free=direction if free else None), seed=0).penalty > 0
