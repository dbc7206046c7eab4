"""The HTTP API's answers as frozen dataclasses, checked while parsing.

Fields that a newer server adds are ignored; one that is missing or of another type is an error
that names it. `frontend.client` asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from frontend.errors import ServerError

T = TypeVar("T")


@dataclass(frozen=True)
class TaskInfo:
    """One entry of `GET /tasks`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text_fields: tuple[str, ...]
    max_length: int
    strategies: tuple[str, ...]
    default_strategy: str

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> TaskInfo:
        """From an entry of `tasks`."""
        return cls(
            name=_get(item, "task", str),
            kind=_get(item, "kind", str),
            labels=tuple(_get(item, "labels", list)),
            text_fields=tuple(_get(item, "text_fields", list)),
            max_length=_get(item, "max_length", int),
            strategies=tuple(_get(item, "strategies", list)),
            default_strategy=_get(item, "default_strategy", str),
        )


@dataclass(frozen=True)
class BenchmarkRow:
    """One delta and what its manifest says about it."""

    task: str
    strategy: str
    version: str
    metric: str
    value: float
    split: str
    split_rows: int
    split_note: str
    metrics: Mapping[str, Any]
    size_bytes: int
    trainable_parameters: int
    trained_share: float
    train_rows: int
    train_note: str
    learning_rate: float
    epochs: float
    seed: int
    data: str

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> BenchmarkRow:
        """From an entry of `rows`."""
        return cls(
            task=_get(item, "task", str),
            strategy=_get(item, "strategy", str),
            version=_get(item, "version", str),
            metric=_get(item, "metric", str),
            value=float(_get(item, "value", float)),
            split=_get(item, "split", str),
            split_rows=_get(item, "split_rows", int),
            split_note=_get(item, "split_note", str),
            metrics=_get(item, "metrics", dict),
            size_bytes=_get(item, "size_bytes", int),
            trainable_parameters=_get(item, "trainable_parameters", int),
            trained_share=float(_get(item, "trained_share", float)),
            train_rows=_get(item, "train_rows", int),
            train_note=_get(item, "train_note", str),
            learning_rate=float(_get(item, "learning_rate", float)),
            epochs=float(_get(item, "epochs", float)),
            seed=_get(item, "seed", int),
            data=_get(item, "data", str),
        )


@dataclass(frozen=True)
class StudyRow:
    """One strategy on one task in the study: mean and spread (None for one seed) over seeds."""

    part: str
    task: str
    strategy: str
    mean: float
    spread: float | None
    seeds: int
    trained_share: float

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> StudyRow:
        """From an entry of `study`."""
        return cls(
            part=_get(item, "part", str),
            task=_get(item, "task", str),
            strategy=_get(item, "strategy", str),
            mean=float(_get(item, "mean", float)),
            spread=None if item.get("spread") is None else float(_get(item, "spread", float)),
            seeds=_get(item, "seeds", int),
            trained_share=float(_get(item, "trained_share", float)),
        )


@dataclass(frozen=True)
class Backbone:
    """The one encoder behind every task."""

    id: str
    fingerprint: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """`GET /benchmark`."""

    backbone: Backbone
    rows: tuple[BenchmarkRow, ...]
    study: tuple[StudyRow, ...] = ()

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Benchmark:
        """From the whole body."""
        backbone = _get(body, "backbone", dict)
        return cls(
            backbone=Backbone(
                id=_get(backbone, "id", str),
                fingerprint=_get(backbone, "fingerprint", str),
                parameters=_get(backbone, "parameters", int),
                size_bytes=_get(backbone, "size_bytes", int),
            ),
            rows=tuple(parse_list(body, "rows", BenchmarkRow.parse)),
            study=tuple(parse_list(body, "study", StudyRow.parse)),
        )

    def of(self, task: str, strategy: str | None = None) -> tuple[BenchmarkRow, ...]:
        """The rows of a task, in the server's order; of one strategy where given."""
        return tuple(
            row for row in self.rows if row.task == task and strategy in (None, row.strategy)
        )


@dataclass(frozen=True)
class Prediction:
    """What one delta says about one row.

    Attributes:
        labels: the winner, or in multi-label each label over one half; empty in regression.
        scores: by label, in the server's order; empty in regression.
        value: regression only.
        truncated: the text was longer than the task reads.
    """

    task: str
    strategy: str
    version: str
    kind: str
    labels: tuple[str, ...]
    scores: Mapping[str, float]
    value: float | None
    truncated: bool

    @property
    def score(self) -> float | None:
        """The highest probability; None in regression."""
        return max(self.scores.values(), default=None)

    @classmethod
    def parse(cls, item: Mapping[str, Any]) -> Prediction:
        """From an entry of `results`, which carries one prediction because one row was sent."""
        predictions = _get(item, "predictions", list)
        if len(predictions) != 1:
            raise _unexpected(f"{len(predictions)} predictions for 1 row")
        row = predictions[0]
        kind = _get(item, "kind", str)
        is_regression = kind == "regression"
        found = [_get(row, "label", str)] if kind == "single_label" else row.get("labels", [])
        return cls(
            task=_get(item, "task", str),
            strategy=_get(item, "strategy", str),
            version=_get(item, "version", str),
            kind=kind,
            labels=() if is_regression else tuple(found),
            scores={}
            if is_regression
            else {k: float(v) for k, v in _get(row, "scores", dict).items()},
            value=float(_get(row, "value", float)) if is_regression else None,
            truncated=bool(row.get("truncated", False)),
        )


@dataclass(frozen=True)
class DeltaDetails:
    """`GET /deltas/{task}/{strategy}`."""

    version: str
    size_bytes: int
    is_default: bool
    manifest: Mapping[str, Any]

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> DeltaDetails:
        """From the whole body."""
        return cls(
            version=_get(body, "version", str),
            size_bytes=_get(body, "size_bytes", int),
            is_default=_get(body, "is_default", bool),
            manifest=_get(body, "manifest", dict),
        )


def parse_list(
    body: Mapping[str, Any], name: str, parse: Callable[[Mapping[str, Any]], T]
) -> Sequence[T]:
    """Each object of the list `name`."""
    items = _get(body, name, list)
    for item in items:
        if not isinstance(item, Mapping):
            raise _unexpected(f"{name} holds {type(item).__name__}, not objects")
    return [parse(item) for item in items]


def _get(item: Any, name: str, kind: type) -> Any:
    """The field `name`, checked to be a `kind` (an int passes for a float)."""
    if not isinstance(item, Mapping) or name not in item:
        raise _unexpected(f"{name} is missing")
    value = item[name]
    if not isinstance(value, (int, float) if kind is float else kind):
        raise _unexpected(f"{name} is {type(value).__name__}, not {kind.__name__}")
    return value


def _unexpected(what: str) -> ServerError:
    return ServerError(
        f"The server's answer isn't one this page understands ({what}). "
        "Are the page and the server of the same version?"
    )
