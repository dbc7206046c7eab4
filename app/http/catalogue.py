"""Writes the catalogue: the tasks, deltas and benchmark of a server, as finished JSON.

With thousands of deltas, writing it for each request would block the event loop. So it is written
in a thread when it is asked for first, and again after the deltas have changed. Tested by
tests/http/test_catalogue.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from pydantic import BaseModel

from app.engine.cache import DeltaCache
from app.engine.engine import Engine
from app.http.schemas import (
    BackboneInfo,
    Benchmark,
    BenchmarkRow,
    DeltaInfo,
    DeltaQuery,
    RejectedFile,
    SplitResult,
    TaskDelta,
    TaskInfo,
    TaskQuery,
)
from app.keys.keyring import Caller
from deltas import Record, Store
from deltas.manifest import Manifest
from deltas.publish.measured import Measured, measured_path, read_measured
from deltas.publish.study import read_study, study_path

_MAX_PARTS = 64  # of different keys; with 10,000 deltas each may take megabytes
_MAX_REASON = 1000  # characters
_OF_FILES = (None, "refused")  # the statuses that list files


@dataclass(frozen=True)
class Catalogue:
    """Holds what the routes of the same names list by pages, and the names of the tasks."""

    task_names: str
    tasks: TaskListing
    deltas: DeltaListing
    benchmark: TaskListing

    @classmethod
    def of(cls, engine: Engine, may_use: Callable[[str], bool] | None = None) -> Catalogue:
        """Write the catalogue of an engine's store.

        Args:
            engine: engine that serves.
            may_use: tells the tasks to write; None for all tasks and the refused files, whose tasks
                are not known.
        """
        store = engine.store
        records = [
            record
            for record in store.records
            if may_use is None or may_use(record.manifest.task.name)
        ]
        of_task: dict[str, list[Record]] = {}
        for record in records:
            of_task.setdefault(record.manifest.task.name, []).append(record)
        tasks = [_task_info(store, name, found) for name, found in of_task.items()]
        rejected = store.all_rejected if may_use is None else ()
        refused = [(store.shown_name(path), reason) for path, reason in rejected]
        benchmark = _benchmark(engine, records, may_use)
        described = f'"backbone":{benchmark.backbone.model_dump_json()},'
        behind = (
            f',"study":{_json_list(benchmark.study)},'
            f'"measured":{benchmark.measured.model_dump_json()}'
        )
        return cls(
            json.dumps(list(of_task)),
            TaskListing("tasks", "tasks", tasks),
            DeltaListing(records, refused),
            TaskListing("benchmark", "rows", benchmark.rows, described, behind),
        )


class CatalogueViews:
    """The catalogue as each key may see it; a part of it is written when it is first asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parts: dict[tuple[str, ...] | None, Catalogue] = {}
        self._lock = asyncio.Lock()

    def forget(self) -> None:
        """Write all parts anew when they are asked for, because the store has changed."""
        self._parts = {}

    async def of(self, caller: Caller | None) -> Catalogue:
        """Return the tasks of a key; None stands for a server that needs no keys."""
        is_whole = caller is None or caller.may_use_all
        patterns = None if caller is None or is_whole else caller.key.tasks
        may_use = None if caller is None or is_whole else caller.may_use
        async with self._lock:
            parts = self._parts  # a change meanwhile makes another one
            if patterns not in parts:
                part = await asyncio.to_thread(Catalogue.of, self._engine, may_use)
                if len(parts) >= _MAX_PARTS:
                    parts.pop(next(iter(parts)))
                parts[patterns] = part
            return parts[patterns]


class TaskListing:
    """Entries of tasks, as pieces of JSON from which pages are made.

    Args:
        path: name of the route.
        member: name of the list in its answer.
        entries: entries of the list.
        before: members of the answer before the list, with the comma.
        behind: members behind it, likewise.
    """

    def __init__(
        self,
        path: str,
        member: str,
        entries: Iterable[TaskInfo | BenchmarkRow],
        before: str = "",
        behind: str = "",
    ) -> None:
        # Item by item, since one call for thousands would hold the event loop, too.
        self._items = [(entry.task.lower(), entry.model_dump_json()) for entry in entries]
        self._path, self._member = path, member
        self._before, self._behind = before, behind
        self._whole = self._written(self._items, len(self._items), None)

    def page(self, query: TaskQuery, prefix: str) -> str:
        """Write the body of a page; without a query it has everything.

        Args:
            query: filter and page.
            prefix: path prefix of the server.
        """
        if query == TaskQuery():
            return self._whole
        text = (query.q or "").lower()
        items = [item for item in self._items if text in item[0]]
        end = len(items) if query.limit is None else query.offset + query.limit
        following = None
        if end < len(items):
            given = query.model_dump(exclude_none=True) | {"offset": end}
            following = f"{prefix}/{self._path}?{urlencode(given)}"
        return self._written(items[query.offset : end], len(items), following)

    def _written(self, items: Sequence[tuple[str, str]], total: int, following: str | None) -> str:
        entries = ",".join(body for _, body in items)
        return (
            f'{{{self._before}"{self._member}":[{entries}]{self._behind},"total":{total},'
            f'"next":{json.dumps(following)}}}'
        )


class DeltaListing:
    """The served deltas and the refused files, as pieces of JSON from which pages are made.

    Args:
        records: the served deltas.
        refused: names and reasons of the refused files.
    """

    def __init__(self, records: Iterable[Record], refused: Iterable[tuple[str, str]]) -> None:
        served = [_Item.of_record(record) for record in records]
        self._items = [*served, *(_Item.of_file(name, reason) for name, reason in refused)]

    def page(self, query: DeltaQuery, cache: DeltaCache, prefix: str) -> str:
        """Write the body of a page.

        Args:
            query: filters and page.
            cache: resident deltas.
            prefix: path prefix of the server.
        """
        items = self._items
        if query.has_filters:
            items = [item for item in items if item.passes(query, cache)]
        end = query.offset + query.limit
        part = items[query.offset : end]
        following = None
        if end < len(items):
            given = query.model_dump(exclude_none=True) | {"offset": end}
            following = f"{prefix}/deltas?{urlencode(given)}"
        deltas = ",".join(
            f'{item.body[:-1]},"loaded":{json.dumps(item.record in cache)}}}'
            for item in part
            if item.record is not None
        )
        files = ",".join(item.body for item in part if item.record is None)
        return (
            f'{{"deltas":[{deltas}],"rejected":[{files}],"total":{len(items)},'
            f'"next":{json.dumps(following)}}}'
        )


@dataclass(frozen=True)
class _Item:
    """A delta, or a refused file, which has no record.

    Attributes:
        name: name in which a query's text is searched, without capitals.
        body: JSON object.
        record: the delta.
    """

    name: str
    body: str
    record: Record | None = None

    @classmethod
    def of_record(cls, record: Record) -> _Item:
        task, strategy, version = record.key
        body = _delta_info(record).model_dump_json(exclude={"loaded"})
        return cls(f"{task}/{strategy}@{version}".lower(), body, record)

    @classmethod
    def of_file(cls, name: str, reason: str) -> _Item:
        shown = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]} ..."
        return cls(name.lower(), RejectedFile(file=name, reason=shown).model_dump_json())

    def passes(self, query: DeltaQuery, cache: DeltaCache) -> bool:
        """Tell whether the item is one that the query asks for."""
        if query.q is not None and query.q.lower() not in self.name:
            return False
        if self.record is None:
            return query.task is None and query.strategy is None and query.status in _OF_FILES
        task, strategy, _ = self.record.key  # computed once, unlike the manifest's
        return (
            query.task in (None, task)
            and query.strategy in (None, strategy)
            and query.status != "refused"
            and (query.status != "loaded" or self.record in cache)
        )


def _json_list(items: Iterable[BaseModel]) -> str:
    """Write a list item by item; one call for thousands would hold the event loop, too."""
    return f"[{','.join(item.model_dump_json() for item in items)}]"


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
        about=next((record.manifest.about for record in records if record.manifest.about), None),
        changed_at=max(filter(None, map(_changed_at, records)), default=None),
    )


def _changed_at(record: Record) -> float | None:
    try:
        return record.path.stat().st_mtime
    except OSError:  # its file was removed behind the server's back
        return None


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
        loaded=False,  # `DeltaListing.page` knows
    )


def _benchmark(
    engine: Engine, records: Sequence[Record], may_use: Callable[[str], bool] | None
) -> Benchmark:
    backbone = engine.backbone
    rows = [_benchmark_row(record) for record in records]
    return Benchmark(
        backbone=BackboneInfo(
            id=backbone.ref.id,
            fingerprint=backbone.ref.fingerprint,
            parameters=backbone.num_parameters,
            size_bytes=backbone.num_bytes,
        ),
        rows=[row for row in rows if row is not None],
        study=[
            row
            for row in read_study(study_path())
            if row.backbone == backbone.ref.id and (may_use is None or may_use(row.task))
        ],
        measured=_measured(backbone.ref.id, may_use),
    )


def _measured(backbone: str, may_use: Callable[[str], bool] | None) -> Measured:
    """Return the shipped numbers of other methods, if they are of this backbone."""
    found = read_measured(measured_path())
    if found.backbone != backbone:
        return Measured()
    if may_use is None:
        return found
    lists = {
        name: [row for row in getattr(found, name) if may_use(row.task)]
        for name in ("quality", "earlier", "curves")
    }
    return found.model_copy(update=lists)


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
