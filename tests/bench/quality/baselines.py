"""Measures baselines on the frozen backbone.

    python -m tests.bench.quality.baselines RUNS OPTIONS

RUNS are written `sklearn@0,cosine@0`, a method and a seed each; the options are those of
`training.fit`. Each run ends with a line of JSON on standard output. Runs share features in memory,
and each is charged the time of all features that it uses.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deltas.backbone.packaged import packaged_folder
from tests.bench.quality.sets import load_rows
from training.data.rows import Rows, TaskData
from training.fit import parse_arguments
from training.run.evaluation import compute_metrics
from training.run.train_delta import _git_commit, _versions

Numbers = NDArray[Any]

_BATCH = 32


@dataclass
class Clock:
    """Seconds of wall and CPU time."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> Clock:
        """Read the clocks of this process."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Clock) -> Clock:
        """Return the time between two readings."""
        return Clock(self.wall - start.wall, self.cpu - start.cpu)

    def plus(self, other: Clock) -> Clock:
        """Return the sum of two times."""
        return Clock(self.wall + other.wall, self.cpu + other.cpu)


class Embedder:
    """Stock transformers with the mean of the last layer's tokens, in float32, rows by length."""

    def __init__(self, folder: Path, max_length: int) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._network = transformers.AutoModel.from_pretrained(folder).eval()
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._max_length = max_length
        self._known: dict[int, tuple[Numbers, Clock]] = {}
        self.saved = Clock()  # time of the vectors that were computed before and used again

    def embed(self, texts: Sequence[tuple[str, ...]]) -> Numbers:
        """Return vectors [R, H] of texts, or of pairs that are read together."""
        key = hash(tuple(texts))
        if key in self._known:
            vectors, spent = self._known[key]
            self.saved = self.saved.plus(spent)
            return vectors
        start = Clock.now()
        vectors = self._compute(texts)
        self._known[key] = vectors, Clock.now().since(start)
        return vectors

    @torch.inference_mode()
    def _compute(self, texts: Sequence[tuple[str, ...]]) -> Numbers:
        order = sorted(range(len(texts)), key=lambda row: sum(map(len, texts[row])))
        parts = []
        for start in range(0, len(order), _BATCH):
            columns = zip(*(texts[row] for row in order[start : start + _BATCH]), strict=True)
            batch = self._tokenizer(
                *map(list, columns),
                padding=True,
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            hidden = self._network(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            parts.append((hidden * mask).sum(1) / mask.sum(1))
        vectors = np.empty((len(texts), parts[0].shape[1]), np.float32)
        vectors[order] = torch.cat(parts).numpy()
        return vectors


def backbone_folder(given: str | None) -> Path:
    """Return the folder of a backbone; None is the packaged one."""
    return packaged_folder() if given is None else Path(given)


Features = Callable[[Rows], Numbers]
Predict = Callable[[Rows], Numbers]


def majority(data: TaskData) -> Predict:
    """Always answer the most frequent label; for regression, the mean."""
    labels = np.array(data.train.labels)
    if data.task.kind == "multi_label":
        answer: Any = np.zeros(labels.shape[1], np.int64)
        answer[labels.sum(axis=0).argmax()] = 1
    elif data.task.kind == "single_label":
        answer = np.bincount(labels).argmax()
    else:
        answer = labels.mean()
    return lambda rows: np.stack([answer] * len(rows))


def sklearn_model(data: TaskData, features: Features) -> Predict:
    """Fit scikit-learn's logistic or ridge regression with its default regularisation."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    model: Any = LogisticRegression(max_iter=1000)
    if data.task.kind == "multi_label":
        model = OneVsRestClassifier(model)
    elif data.task.kind == "regression":
        model = Ridge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a label without rows
        model.fit(features(data.train), np.array(data.train.labels))
    return lambda rows: model.predict(features(rows))


def cosine(data: TaskData, features: Features) -> Predict:
    """Answer the cosine of two texts; for two labels, compare it with the best limit."""
    if data.task.kind == "regression":
        return features
    limit, above = best_limit(features(data.train), np.array(data.train.labels))
    return lambda rows: np.where(features(rows) > limit, above, 1 - above)


def best_limit(values: Numbers, labels: Numbers) -> tuple[float, int]:
    """Return the limit, and the label of values above it, that answer most rows rightly."""
    order = np.argsort(values)
    ones = np.concatenate([[0], np.cumsum(labels[order])])
    below = np.arange(len(labels) + 1)  # rows at or below a limit
    right_if_one_is_above = (below - ones) + (ones[-1] - ones)
    right = np.stack([len(labels) - right_if_one_is_above, right_if_one_is_above])
    # A limit between equal values can't be had.
    ordered = values[order]
    possible = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    above, count = np.unravel_index(np.where(possible, right, -1).argmax(), right.shape)
    limits = np.concatenate([[-np.inf], (ordered[1:] + ordered[:-1]) / 2, [np.inf]])
    return float(limits[count]), int(above)


def predictor(method: str, data: TaskData, embedder: Embedder) -> Predict:
    """Fit a method on all train rows."""

    def columns(rows: Rows) -> list[Numbers]:
        parts = zip(*rows.texts, strict=True)
        return [embedder.embed([(text,) for text in part]) for part in parts]

    def together(rows: Rows) -> Numbers:
        return embedder.embed(rows.texts)

    def apart(rows: Rows) -> Numbers:
        left, right = columns(rows)
        return np.concatenate([left, right, np.abs(left - right), left * right], axis=1)

    def cosines(rows: Rows) -> Numbers:
        left, right = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in columns(rows))
        return np.asarray((left * right).sum(axis=1))

    if method == "majority":
        return majority(data)
    if method == "cosine":
        return cosine(data, cosines)
    return sklearn_model(data, apart if method == "sklearn:apart" else together)


def score(
    data: TaskData, names: Sequence[str], predict: Predict
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the metrics and the number of rows of each dev split."""
    scores, counts = {}, {}
    for split, rows in data.validation.items():
        scores[split] = compute_metrics(names, predict(rows), np.array(rows.labels))
        counts[split] = len(rows)
    return scores, counts


def measure(method: str, data: TaskData, embedder: Embedder, start_cpu: float) -> dict[str, Any]:
    """Fit a method, score it and describe the run."""
    start, saved = Clock.now(), embedder.saved
    predict = predictor(method, data, embedder)
    # A cosine has no unit, so an error of its values means nothing.
    names = [name for name in data.task.metrics if method != "cosine" or name != "mse"]
    scores, counts = score(data, names, predict)
    spent = Clock.now().since(start).plus(embedder.saved.since(saved))
    return {
        **described(data),
        "train_rows": len(data.train),
        "scores": scores,
        "rows": counts,
        "seconds": round(spent.wall, 1),
        "cpu_s": round(start_cpu + spent.cpu, 1),
    }


def described(data: TaskData) -> dict[str, Any]:
    """Return the part of a result that says which rows and which software it is of."""
    return {
        "metric": data.task.primary_metric,
        "digest": data.digest,
        "data_note": data.note,
        "versions": _versions(),
        "git_commit": _git_commit(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the runs of the command line, one line of JSON each."""
    runs, *words = sys.argv[1:] if arguments is None else arguments
    embedder: Embedder | None = None
    for run in runs.split(","):
        method, seed = run.rsplit("@", 1)
        config = parse_arguments([*words, "--seed", seed])
        data = load_rows(config)
        if embedder is None:
            embedder = Embedder(backbone_folder(config.backbone), config.max_length)
            start_cpu = time.process_time()
        found = {"method": method, "seed": int(seed)}
        found |= measure(method, data, embedder, start_cpu)
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
