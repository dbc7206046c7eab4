"""The shipped deltas: complete, sound, honest, and as good over HTTP as their manifests say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from app.main import create_app
from app.process.settings import Settings
from deltas import Backbone, Record, Store, check_delta, zoo_path
from deltas.store.predictions import predictions_path, read_rows
from training.data.glue import load_task
from training.data.tasks import TASKS
from training.run.evaluation import compute_metrics
from training.zoo import MOST_ROWS, STRATEGIES

SAMPLED = {"mnli", "qqp", "qnli"}
MOST_BYTES = 300_000


@pytest.fixture(scope="module")
def zoo(packaged_backbone: Backbone) -> Store:
    return Store([zoo_path()], backbone=packaged_backbone.ref)


def test_holds_what_is_promised(zoo: Store) -> None:
    keys = {record.manifest.key for record in zoo.records}
    assert keys == {(task, strategy) for task in TASKS for strategy in STRATEGIES}
    assert zoo.rejected == []


def test_every_delta_is_sound(zoo: Store, packaged_backbone: Backbone) -> None:
    for record in zoo.records:
        check_delta(record.load(), packaged_backbone)
        assert record.num_bytes <= MOST_BYTES, record.path


def test_every_manifest_is_honest(zoo: Store) -> None:
    for record in zoo.records:
        manifest, task = record.manifest, TASKS[record.manifest.task.name]
        assert manifest.task.labels == task.labels
        assert manifest.training.data == "folder"
        assert set(manifest.metrics) == {"selection", *task.validation_splits}
        assert ("sample of the GLUE train set" in manifest.training.data_note) == (
            task.name in SAMPLED
        )
        assert manifest.training.git_commit
        rows = manifest.training.train_rows + manifest.training.selection_rows
        if rows != task.canonical_rows["train"]:
            assert f"{rows:,} of " in manifest.training.data_note


def test_predictions_are_of_the_shipped_versions_and_as_good_as_the_manifests_say(
    zoo: Store,
) -> None:
    """Those that are shipped; larger splits give a sample of their rows."""
    found = [record for record in zoo.records if predictions_path(record.path).exists()]
    assert len({record.manifest.task.name for record in found}) >= 6
    assert sum(predictions_path(record.path).stat().st_size for record in found) < 800_000
    for record in found:
        task = TASKS[record.manifest.task.name]
        for split in task.validation_splits:
            rows = read_rows(record, split, 0, MOST_ROWS)
            judged = record.manifest.metrics[split]
            assert len(rows.rows) == min(judged.rows, MOST_ROWS)
            logits = np.array(rows.logits)
            values = logits[:, 0] if task.kind == "regression" else logits.argmax(axis=1)
            scores = compute_metrics([task.primary_metric], values, np.array(rows.gold))
            near = max(0.015, 2 / judged.rows) if judged.rows <= MOST_ROWS else 0.06
            known = judged.values[task.primary_metric]
            assert scores[task.primary_metric] == pytest.approx(known, abs=near), record.path


def _dev_scores(client: TestClient, record: Record, glue_dir: Path) -> dict[str, dict[str, float]]:
    """Metrics of a delta, computed from nothing but HTTP answers to the dev rows."""
    task = TASKS[record.manifest.task.name]
    data = load_task(task.name, str(glue_dir))
    scores = {}
    for split, rows in data.validation.items():
        predictions: list[float] = []
        for start in range(0, len(rows), 512):
            part = rows.texts[start : start + 512]
            inputs = [dict(zip(task.text_fields, texts, strict=True)) for texts in part]
            body = {"inputs": inputs, "strategy": record.manifest.strategy.name}
            response = client.post(f"/predict/{task.name}", json=body)
            assert response.status_code == 200, response.text
            for prediction in response.json()["predictions"]:
                label = prediction.get("label")
                predictions.append(task.labels.index(label) if label else prediction["value"])
        scores[split] = compute_metrics(task.metrics, np.array(predictions), np.array(rows.labels))
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rte", "mrpc", "stsb", "wnli"])
def test_dev_scores_over_http_equal_the_manifest(
    task: str, zoo: Store, packaged_backbone: Backbone, glue_dir: Path
) -> None:
    settings = Settings(precision="fp32", max_rows_per_request=512, deadline_s=300)
    with TestClient(create_app(settings, backbone=packaged_backbone)) as client:
        for strategy in zoo.strategies(task):
            record = zoo.resolve(task, strategy)
            for split, values in _dev_scores(client, record, glue_dir).items():
                claimed = record.manifest.metrics[split]
                # Judged in bfloat16, a few rows may get another label than here.
                rounded = max(0.015, 2 / claimed.rows)
                near = 1e-4 if record.manifest.training.precision == "fp32" else rounded
                assert values == pytest.approx(claimed.values, abs=near), (task, strategy, split)
