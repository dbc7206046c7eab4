"""What is served: tasks, deltas with their manifests, and the benchmark table made of them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.routes.responses import documented
from app.schemas import (
    BackboneInfo,
    Benchmark,
    BenchmarkRow,
    DeltaDetails,
    DeltaInfo,
    DeltaList,
    RejectedFile,
    SplitResult,
    TaskInfo,
    TaskList,
)
from app.serving import ServingDep
from deltas import Record, SplitMetrics, TrainingFacts
from deltas.benchmark import read_study, study_path

router = APIRouter(tags=["catalogue"], responses=documented(500, 503))

Name = Annotated[str, Path(max_length=256)]


@router.get("/tasks", summary="List the tasks")
async def list_tasks(serving: ServingDep) -> TaskList:
    """Every task with its labels, its text fields and its strategies."""
    store = serving.engine.store
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


@router.get("/deltas", summary="List the deltas")
async def list_deltas(serving: ServingDep) -> DeltaList:
    """Every delta that is served, and every file that could not be, with the reason."""
    store = serving.engine.store
    rejected = [
        RejectedFile(file=store.shown_name(path), reason=reason) for path, reason in store.rejected
    ]
    return DeltaList(deltas=[_delta_info(record) for record in store.records], rejected=rejected)


@router.get(
    "/deltas/{task}/{strategy:path}",
    summary="Describe one delta",
    responses=documented(404, 422),
)
async def describe_delta(
    task: Name,
    strategy: Name,
    serving: ServingDep,
    version: Annotated[
        str | None, Query(description="Unset: the one that answers by default.", max_length=256)
    ] = None,
) -> DeltaDetails:
    """A delta's manifest: what it is for, how it was trained, and how well it does."""
    record = serving.engine.store.resolve(task, strategy, version)
    return DeltaDetails(
        version=record.version,
        size_bytes=record.num_bytes,
        is_default=record.is_default,
        manifest=record.manifest.model_dump(mode="json"),
    )


@router.get("/benchmark", summary="Compare the deltas")
async def benchmark(serving: ServingDep) -> Benchmark:
    """Metric, size and trained share of every delta, and the study over several seeds."""
    backbone = serving.engine.backbone
    rows = [_benchmark_row(record) for record in serving.engine.store.records]
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
        trained_share=manifest.trainable_parameters / manifest.total_parameters,
        train_rows=training.train_rows,
        train_note=training.data_note,
        learning_rate=training.learning_rate,
        epochs=training.epochs,
        seed=training.seed,
        data=training.data,
    )
