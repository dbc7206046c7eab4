"""Writes the catalogue: the tasks, deltas and benchmark of a server, as finished JSON.

The catalogue never changes while a server runs. With thousands of deltas, writing it for each
request would block the event loop. Tested by tests/http/test_catalogue.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.engine import Engine
from app.http.schemas import (
    BackboneInfo,
    Benchmark,
    BenchmarkRow,
    DeltaInfo,
    DeltaList,
    RejectedFile,
    SplitResult,
    TaskDelta,
    TaskInfo,
    TaskList,
)
from deltas import Record, Store
from deltas.manifest import Manifest
from deltas.publish.study import read_study, study_path


@dataclass(frozen=True)
class Catalogue:
    """JSON bodies, named like the routes that answer with them, and the names of the tasks."""

    task_names: str
    tasks: str
    deltas: str
    benchmark: str

    @classmethod
    def of(cls, engine: Engine) -> Catalogue:
        """Write the catalogue of an engine's store."""
        store = engine.store
        rejected = [
            RejectedFile(file=store.shown_name(path), reason=why) for path, why in store.rejected
        ]
        deltas = [_delta_info(record) for record in store.records]
        of_task: dict[str, list[Record]] = {name: [] for name in store.tasks}
        for record in store.records:
            of_task[record.manifest.task.name].append(record)
        tasks = [_task_info(store, name, records) for name, records in of_task.items()]
        return cls(
            json.dumps(store.tasks),
            TaskList(tasks=tasks).model_dump_json(),
            DeltaList(deltas=deltas, rejected=rejected).model_dump_json(),
            _benchmark(engine).model_dump_json(),
        )


def _task_info(store: Store, name: str, records: Sequence[Record]) -> TaskInfo:
    spec = store.resolve(name).manifest.task
    return TaskInfo(
        task=name,
        kind=spec.kind,
        labels=list(spec.labels),
        text_fields=list(spec.text_fields),
        max_length=spec.max_length,
        strategies=store.strategies(name),
        default_strategy=store.default_strategy(name),
        deltas=[
            TaskDelta(
                strategy=record.manifest.strategy.served_as,
                version=record.version,
                is_default=record.is_default,
                calibration=record.manifest.calibration,
                decision=record.manifest.decision,
            )
            for record in records
        ],
    )


def _delta_info(record: Record) -> DeltaInfo:
    manifest, training = record.manifest, record.manifest.training
    source = training.data_set.spelled if training.data_set else training.data
    return DeltaInfo(
        task=manifest.task.name,
        strategy=manifest.strategy.served_as,
        version=record.version,
        is_default=record.is_default,
        kind=manifest.task.kind,
        labels=list(manifest.task.labels),
        size_bytes=record.num_bytes,
        trainable_parameters=manifest.trainable_parameters,
        total_parameters=manifest.total_parameters,
        calibration=manifest.calibration,
        decision=manifest.decision,
        trained_on=training.data_note or source,
        metrics=_splits(manifest),
    )


def _benchmark(engine: Engine) -> Benchmark:
    backbone = engine.backbone
    rows = [_benchmark_row(record) for record in engine.store.records]
    return Benchmark(
        backbone=BackboneInfo(
            id=backbone.ref.id,
            fingerprint=backbone.ref.fingerprint,
            parameters=backbone.num_parameters,
            size_bytes=backbone.num_bytes,
        ),
        rows=[row for row in rows if row is not None],
        study=[row for row in read_study(study_path()) if row.backbone == backbone.ref.id],
    )


def _benchmark_row(record: Record) -> BenchmarkRow | None:
    """Return None if the manifest has no value of the primary metric, so nothing to compare."""
    manifest, training = record.manifest, record.manifest.training
    split = manifest.validation_split or "selection"
    result = manifest.metrics.get(split)
    if result is None or manifest.primary_metric not in result.values:
        return None
    return BenchmarkRow(
        task=manifest.task.name,
        strategy=manifest.strategy.served_as,
        version=record.version,
        metric=manifest.primary_metric,
        value=result.values[manifest.primary_metric],
        split=split,
        split_rows=result.rows,
        split_note=result.note,
        metrics=_splits(manifest),
        size_bytes=record.num_bytes,
        trainable_parameters=manifest.trainable_parameters,
        trained_share=manifest.trained_share,
        train_rows=training.train_rows,
        train_note=training.data_note,
        learning_rate=training.learning_rate,
        epochs=training.epochs,
        seed=training.seed,
        data=training.data,
    )


def _splits(manifest: Manifest) -> dict[str, SplitResult]:
    return {split: SplitResult(**dict(found)) for split, found in manifest.metrics.items()}
