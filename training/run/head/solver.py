"""Solves a task's head on fixed features: regularised logistic or ridge regression.

With a frozen encoder the best head is the solution of a convex problem, so it is computed, not
trained. It is the whole run of `--freeze head`, and the start of every other run: fine-tuning from
a random head distorts the features before the head has learnt to read them (LP-FT, Kumar et al.
2022, arXiv:2202.10054). Called by `training.run.prepare`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from training.run.task_model import loss_sum, total_weight

# Strong to weak, so that each solution is a good start for the next one.
_PENALTIES = tuple(10.0 ** (-half / 2) for half in range(-4, 12))
_FOLDS = 3
_MAX_CHOICE_ROWS = 6000  # enough to rank penalties; all rows then solve the head
_MAX_CHOICE_WIDTH = 2048  # wider features are projected to rank penalties
_PROJECTED_WIDTH = 512
_MAX_ITERATIONS = 100
_TOLERANCE = 1e-4
_SCALE_FLOOR = 1e-6
_FREE = 30.0  # times the size of other features
# Passes over the rows, as measured: 440 to 1,220 by L-BFGS on all penalties and folds together, and
# 12 to 40 for the last solution; of ridge regressions one a solution.
_CHOICE_PASSES = {"regression": 36, "other": 700}
_LAST_PASSES = {"regression": 1, "other": 30}
_TIMED_PASSES = 5


# The primary metric of logits float32 [R, C] on labels as in `Split`; higher is better.
Score = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class HeadProblem:
    """Rows of features float32 [R, I], their labels as in `Split`, and how a row's loss counts.

    `weights` are those of `training.run.task_model.balanced_weights`; `smoothing` is the share of
    each label that is spread over all labels. `free` is a direction in feature space, float32 [I],
    along which the head's weight costs nothing.
    """

    kind: str
    num_outputs: int
    features: Tensor
    labels: Tensor
    weights: Tensor | None = None
    smoothing: float = 0.0
    free: Tensor | None = None

    def take(self, rows: Tensor) -> HeadProblem:
        """Return the problem of some rows, int64 indices."""
        return replace(self, features=self.features[rows], labels=self.labels[rows])


@dataclass(frozen=True)
class SolvedHead:
    """A head, weight [C, I] and bias [C], and the penalty that cross-validation chose."""

    weight: Tensor
    bias: Tensor
    penalty: float


def solve_head(
    problem: HeadProblem, seed: int, score: Score | None = None, penalty: float | None = None
) -> SolvedHead:
    """Solve the head with a penalty, by default the one that is best in cross-validation.

    The best penalty has the highest mean score over the folds, and among equal scores the lowest
    mean loss. Without `score` the loss alone decides.

    Minimises the mean loss + penalty / 2 * |W|^2 over standardised features; the bias is free. The
    head that is returned reads the features as they are. Regressions are solved in closed form
    (ridge regression), all others by L-BFGS.
    """
    features = problem.features
    if problem.free is not None:
        features = torch.cat([features, (features @ problem.free).unsqueeze(1)], 1)
    shift, scale = features.mean(0), features.std(0, correction=0)
    scale = torch.where(scale > _SCALE_FLOOR, scale, torch.inf)  # a constant feature gets 0
    if problem.free is not None:
        scale[-1] /= _FREE  # a large feature needs a small weight, which costs next to nothing
    standard = replace(problem, features=features.sub(shift).div_(scale))
    if penalty is None:
        penalty = _choose_penalty(standard, seed, score)
    weight, bias = _solve(standard, penalty)
    weight = weight / scale
    bias = bias - weight @ shift
    if problem.free is not None:
        weight = weight[:, :-1] + weight[:, -1:] * problem.free
    return SolvedHead(weight, bias, penalty)


def solving_seconds(problem: HeadProblem, num_rows: int, *, chooses: bool) -> float:
    """Estimate how long `solve_head` takes on `num_rows` rows like those of a small problem.

    `chooses` says whether it chooses the penalty, too, which takes most of the time. A few passes
    over the small problem are timed, on all of its rows and on some.
    """
    kind = "regression" if problem.kind == "regression" else "other"
    size, width = problem.features.shape
    _pass_seconds(problem)  # the first call prepares kernels
    some, every = _pass_seconds(problem.take(torch.arange(-(-size // 4)))), _pass_seconds(problem)
    slope = max(0.0, every - some) / max(1, size - -(-size // 4))
    passes: list[tuple[float, float]] = [(_LAST_PASSES[kind], num_rows)]
    if chooses:
        folded = min(num_rows, _MAX_CHOICE_ROWS) * (_FOLDS - 1) / _FOLDS
        passes.append((_CHOICE_PASSES[kind] * _choice_width(width) / width, folded))
    return sum(count * max(0.0, every + slope * (rows - size)) for count, rows in passes)


def _pass_seconds(problem: HeadProblem) -> float:
    started = time.perf_counter()
    _solve(problem, 1.0, max_iterations=_TIMED_PASSES)
    passes = 1 if problem.kind == "regression" else _TIMED_PASSES + 1
    return (time.perf_counter() - started) / passes


def _choose_penalty(problem: HeadProblem, seed: int, score: Score | None) -> float:
    """Return the penalty that is best on the folds' held-out rows, the strongest of equal ones.

    The loss alone would choose badly for rare labels: the head with the lowest loss may give every
    row the most frequent label.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(problem.labels), generator=generator)[:_MAX_CHOICE_ROWS]
    problem = problem.take(drawn)
    width = problem.features.shape[1]
    if _choice_width(width) < width:
        problem = _projected(problem, seed)
    folds = list(_folds(problem))
    starts: list[tuple[Tensor, Tensor] | None] = [None] * len(folds)
    results: list[tuple[float, float]] = []  # mean score and negative mean loss, both to maximise
    for penalty in _PENALTIES:
        loss = total = 0.0
        for number, (train, held_out) in enumerate(folds):
            solved = _solve(train, penalty, starts[number])
            starts[number] = solved
            loss += _mean_loss(held_out, solved)
            if score is not None:
                total += score(F.linear(held_out.features, *solved), held_out.labels)
        results.append((total / max(1, len(folds)), -loss))
        if _is_past_the_best(results[-3:]):
            break  # weaker penalties overfit still more
    return _PENALTIES[results.index(max(results))] if folds else 1.0


def _choice_width(width: int) -> int:
    """Return the number of features that rank penalties, of `width` features."""
    return _PROJECTED_WIDTH if width > _MAX_CHOICE_WIDTH else width


def _projected(problem: HeadProblem, seed: int) -> HeadProblem:
    """Project standardised features onto about the directions in which they vary most.

    They are found by one power iteration on random directions (Halko et al. 2011, arXiv:0909.4061).
    The directions are orthonormal, so a penalty costs the same, and what is left out varies little:
    every penalty makes its weights small.
    """
    x, generator = problem.features, torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], _PROJECTED_WIDTH, generator=generator)
    directions = torch.linalg.qr(x.t() @ (x @ directions)).Q
    return replace(problem, features=x @ directions)


def _is_past_the_best(results: list[tuple[float, float]]) -> bool:
    """Return whether the loss has risen twice, and the score has not."""
    if len(results) < 3:
        return False
    (first, old), (_, middle), (last, new) = results
    return old > middle > new and last <= first


def _folds(problem: HeadProblem) -> Iterator[tuple[HeadProblem, HeadProblem]]:
    """Yield the rows to solve on and the rows to judge by, once for each fold."""
    places = torch.arange(len(problem.labels))
    parts = [part for part in places.tensor_split(_FOLDS) if len(part)]
    if len(parts) < 2:
        return
    for number, part in enumerate(parts):
        others = torch.cat([other for at, other in enumerate(parts) if at != number])
        yield problem.take(others), problem.take(part)


def _mean_loss(problem: HeadProblem, head: tuple[Tensor, Tensor]) -> float:
    logits = F.linear(problem.features, *head)
    total = total_weight(problem.kind, problem.labels, problem.weights)
    return float(loss_sum(problem.kind, logits, problem.labels, weights=problem.weights)) / total


def _solve(
    problem: HeadProblem,
    penalty: float,
    start: tuple[Tensor, Tensor] | None = None,
    max_iterations: int = _MAX_ITERATIONS,
) -> tuple[Tensor, Tensor]:
    """Return weight [C, I] and bias [C] that minimise the penalised mean loss."""
    if problem.kind == "regression":
        return _ridge(problem, penalty)
    width = problem.features.shape[1]
    if start is None:
        start = torch.zeros(problem.num_outputs, width), torch.zeros(problem.num_outputs)
    total = total_weight(problem.kind, problem.labels, problem.weights)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        both = torch.from_numpy(flat).float().view(problem.num_outputs, width + 1)
        head = [part.contiguous().requires_grad_() for part in (both[:, :-1], both[:, -1])]
        logits = F.linear(problem.features, *head)
        rows = problem.labels, 1.0, problem.weights, problem.smoothing
        loss = loss_sum(problem.kind, logits, *rows) / total
        loss = loss + penalty / 2 * head[0].square().sum()
        of_weight, of_bias = torch.autograd.grad(loss, head)
        gradient = torch.cat([of_weight, of_bias.unsqueeze(1)], 1)
        return float(loss.detach()), gradient.double().view(-1).numpy()

    first = torch.cat([start[0], start[1].unsqueeze(1)], 1).double().view(-1).numpy()
    options = {"maxiter": max_iterations, "maxcor": 20, "gtol": _TOLERANCE, "ftol": 1e-7}
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options=options).x
    both = torch.from_numpy(found).float().view(problem.num_outputs, width + 1)
    return both[:, :-1].contiguous(), both[:, -1].contiguous()


def _ridge(problem: HeadProblem, penalty: float) -> tuple[Tensor, Tensor]:
    """Return the closed-form solution of a ridge regression (Hoerl and Kennard 1970)."""
    x, y = problem.features.double(), problem.labels.double()
    centre, mean = x.mean(0), y.mean()
    x = x - centre
    gram = x.t() @ x / len(x) + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.t() @ (y - mean) / len(x))
    return weight.float().unsqueeze(0), (mean - weight @ centre).float().unsqueeze(0)
