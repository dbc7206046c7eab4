"""Scores computed from the answers over HTTP equal those that the training run wrote down."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from deltas import Manifest, read_delta
from training import fit
from training.options import flag_of
from training.run.evaluation import METRICS, compute_metrics
from training.run.output import read_predictions

WORDS = {"red": "good film", "green": "bad plot", "blue": "very long", "grey": "x y"}
Rows = list[tuple[str, str]]


def draw(count: int, seed: int, *, several: bool) -> Rows:
    """Draw texts with their labels; a tenth of the labels is wrong."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        chosen = rng.sample(list(WORDS), rng.randint(1, 2) if several else 1)
        text = " ".join(
            [*(WORDS[name] for name in chosen), *rng.choices(["not", "so", "and"], k=3)]
        )
        labels = chosen if rng.random() > 0.1 else [rng.choice(list(WORDS))]
        rows.append((text, "|".join(labels)))
    return rows


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.fixture
def serve(
    start: Callable[..., TestClient], tiny_backbone_dir: Path, tmp_path: Path
) -> Callable[..., tuple[Manifest, list[dict[str, Any]], Rows]]:
    """A function (several, **flags) -> manifest, predictions over HTTP, validation rows."""

    def run(*, several: bool, **flags: Any) -> tuple[Manifest, list[dict[str, Any]], Rows]:
        """Train and serve in the same precision."""
        rows = draw(240, 2, several=several)
        given = {
            "train_file": write(tmp_path / "train.csv", draw(400, 1, several=several)),
            "validation_file": write(tmp_path / "dev.csv", rows),
            "text_columns": "text",
            "label_column": "label",
            "name": "mine",
            "backbone": tiny_backbone_dir,
            "max_length": 24,
            "epochs": 1,
            "precision": "fp32",
            "out": tmp_path / "out",
        } | flags
        pairs = given.items()
        words = [str(word) for name, value in pairs for word in (flag_of(name), value)]
        assert fit.main(words) == 0
        (path,) = (tmp_path / "out").rglob("*.safetensors")
        client = start(deltas=(tmp_path / "out",), precision=given["precision"])
        texts = [text for text, _ in rows]
        answers = []
        for first in range(0, len(texts), 50):  # other batches than those of the run
            body = {"inputs": texts[first : first + 50]}
            answers += client.post("/predict/mine", json=body).json()["predictions"]
        return read_delta(path).manifest, answers, rows

    return run


@pytest.mark.parametrize("freeze", ["head", "bitfit", "top:1"])
def test_logits_in_bfloat16(serve: Callable[..., Any], freeze: str, tmp_path: Path) -> None:
    """The run judges the delta by the server's own pass, so rounding turns no row."""
    manifest, answers, _ = serve(several=False, precision="bf16", freeze=freeze)
    (path,) = (tmp_path / "out").rglob("*.predictions.parquet")
    _, gold, logits = read_predictions(path, "validation")
    scores = torch.softmax(logits, dim=1)
    found = [[answer["scores"][label] for label in manifest.task.labels] for answer in answers]
    torch.testing.assert_close(torch.tensor(found), scores, atol=2e-6, rtol=0)
    codes = [manifest.task.labels.index(answer["label"]) for answer in answers]
    assert codes == logits.argmax(1).tolist()
    values = compute_metrics(["accuracy"], np.array(codes), np.array(gold))
    assert manifest.metrics["validation"].values["accuracy"] == values["accuracy"]


@pytest.mark.parametrize("flags", [{}, {"coverage": 0.8}, {"target": "precision=0.8"}])
def test_single_label(serve: Callable[..., Any], flags: dict[str, Any]) -> None:
    manifest, answers, rows = serve(several=False, **flags)
    codes = {label: code for code, label in enumerate(manifest.task.labels)}
    wanted = np.array([codes[label] for _, label in rows])
    given = np.array([codes[answer["label"]] for answer in answers])
    values = manifest.metrics["validation"].values
    names = [name for name in values if name in METRICS]
    found = compute_metrics(names, given, wanted)
    answered = np.array([answer["decision"] is not None for answer in answers])
    if flags:
        found["coverage"] = answered.mean()
        found["answered_accuracy"] = (given == wanted)[answered].mean()
        assert 0 < answered.sum() < len(answers)
    else:
        assert answered.all()
    assert values == pytest.approx(found, abs=1e-9)
    reliability = manifest.metrics["validation"].reliability
    assert reliability is not None
    bins = np.minimum((np.array([a["score"] for a in answers]) * 15).astype(int), 14)
    assert np.bincount(bins, minlength=15).tolist() == list(reliability.counts)


@pytest.mark.parametrize("flags", [{}, {"target": "f1"}, {"target": "precision=0.7"}])
def test_multi_label(serve: Callable[..., Any], flags: dict[str, Any]) -> None:
    manifest, answers, rows = serve(several=True, **flags)
    labels = manifest.task.labels

    def matrix(chosen: list[Any]) -> Any:
        return np.array([[int(label in row) for label in labels] for row in chosen])

    wanted = matrix([label.split("|") for _, label in rows])
    values = manifest.metrics["validation"].values
    names = [name for name in values if name in METRICS]
    found = compute_metrics(names, matrix([answer["decision"] for answer in answers]), wanted)
    half = [[name for name in labels if answer["scores"][name] >= 0.5] for answer in answers]
    for name, value in compute_metrics(names, matrix(half), wanted).items():
        found[f"{name}_at_half"] = value
    assert values == pytest.approx(found, abs=1e-9)
    assert [answer["labels"] for answer in answers] == [answer["decision"] for answer in answers]
