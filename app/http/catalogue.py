"""The catalogue: what is served, as bodies of responses that are written once.

Nothing of it changes while a server runs, and with thousands of deltas to write it takes so long
that the event loop would answer nobody meanwhile.
"""

from __future__ import annotations

import json
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
    TaskInfo,
    TaskList,
)
from deltas import Record, SplitMetrics, Store, TrainingFacts
from deltas.publish.study import read_study, study_path


@dataclass(frozen=True)
class Catalogue:
    """JSON, named like the routes that answer with it.

    Attributes:
        task_names: the list in the first answer for those who try the address.
    """

    task_names: str
    tasks: str
    deltas: str
    benchmark: str

    @classmethod
    def of(cls, engine: Engine) -> Catalogue:
        """What an engine serves."""
        store = engine.store
        return cls(
            json.dumps(store.tasks),
            _tasks(store).model_dump_json(),
            _deltas(store).model_dump_json(),
            _benchmark(engine).model_dump_json(),
        )


def _tasks(store: Store) -> TaskList:
    tasks = []
    for name in store.tasks:
        spec = store.resolve(name).manifest.task
        tasks.append(
            TaskInfo(
                task=name,
                kind=spec.kind,
                labels=list(spec.labels),
                text_fields=list(spec.text_fields),
                max_length=spec.max_length,
                strategies=store.strategies(name),
                default_strategy=store.default_strategy(name),
            )
        )
    return TaskList(tasks=tasks)


def _deltas(store: Store) -> DeltaList:
    rejected = [
        RejectedFile(file=store.shown_name(path), reason=reason) for path, reason in store.rejected
    ]
    return DeltaList(deltas=[_delta_info(record) for record in store.records], rejected=rejected)


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


def _splits(metrics: dict[str, SplitMetrics]) -> dict[str, SplitResult]:
    return {split: SplitResult(**dict(found)) for split, found in metrics.items()}


def _delta_info(record: Record) -> DeltaInfo:
    manifest = record.manifest
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
        trained_on=_trained_on(manifest.training),
        metrics=_splits(manifest.metrics),
    )


def _trained_on(training: TrainingFacts) -> str:
    source = training.data_set.spelled if training.data_set else training.data
    return training.data_note or source


def _benchmark_row(record: Record) -> BenchmarkRow | None:
    """None for a delta whose manifest has no value of its primary metric: nothing to compare."""
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
        metrics=_splits(manifest.metrics),
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
