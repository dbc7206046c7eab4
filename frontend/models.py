"""The answers of the HTTP API as frozen, validated dataclasses.

Fields that a newer server adds are ignored. A missing field, or one of another type, raises a
`ServerError` that names the field. `frontend.client` asks for the answers.
Tested by `tests/integration/frontend/test_client.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from frontend.errors import ServerError

T = TypeVar("T")
# Characters that would break a line, move a cursor or turn the direction of writing.
_INVISIBLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


@dataclass(frozen=True)
class TaskExample:
    """A row that the author of a task shows, and the answer that they expect."""

    texts: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True)
class TaskAbout:
    """The words of a task's author."""

    description: str = ""
    question: str = ""
    examples: tuple[TaskExample, ...] = ()


@dataclass(frozen=True)
class TaskInfo:
    """One entry of `GET /tasks`; older servers tell nothing about the task."""

    name: Annotated[str, Field(validation_alias="task")]
    kind: str
    labels: tuple[str, ...]
    text_fields: tuple[str, ...]
    max_length: int
    strategies: tuple[str, ...]
    about: TaskAbout | None = None
    changed_at: float | None = None


@dataclass(frozen=True)
class TaskList:
    """The body of `GET /tasks`."""

    tasks: tuple[TaskInfo, ...]


@dataclass(frozen=True)
class BenchmarkRow:
    """One delta: its score, its size, and the facts of its training."""

    task: str
    strategy: str
    version: str
    metric: str
    value: float
    split: str
    split_rows: int
    split_note: str
    metrics: dict[str, Any]
    size_bytes: int
    trainable_parameters: int
    trained_share: float
    train_rows: int
    train_note: str
    learning_rate: float
    epochs: float
    seed: int
    data: str


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
    metric: str = ""
    split_rows: int = 0
    train_rows: int = 0
    size_bytes: int = 0
    machine: str = ""
    seconds: float | None = None
    command: str = ""


@dataclass(frozen=True)
class QualityRow:
    """One method on one set, of `make bench-quality`; without a delta, sizes are None."""

    task: str
    method: str
    metric: str
    mean: float
    spread: float | None
    seeds: int
    split_rows: int
    train_rows: int
    train_note: str
    trainable_parameters: int | None
    size_bytes: int | None
    machine: str
    seconds: float
    command: str


@dataclass(frozen=True)
class EarlierRow:
    """One number of the study that this project comes from, on another backbone."""

    part: str
    task: str
    strategy: str
    learning_rate: float
    train_rows: int | None  # None for all train rows
    mean: float
    spread: float


@dataclass(frozen=True)
class CurveRow:
    """The metric on the selection rows by step: median, lowest and highest of a study's seeds."""

    task: str
    strategy: str
    metric: str
    seeds: int
    learning_rate: float
    step: tuple[int, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """The measured numbers beside the study, with their files; earlier servers send none."""

    quality: tuple[QualityRow, ...] = ()
    quality_source: str = ""
    earlier: tuple[EarlierRow, ...] = ()
    earlier_source: str = ""
    curves: tuple[CurveRow, ...] = ()
    curves_source: str = ""


@dataclass(frozen=True)
class Backbone:
    """The one encoder behind every task."""

    id: str
    fingerprint: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True)
class Benchmark:
    """The body of `GET /benchmark`."""

    backbone: Backbone
    rows: tuple[BenchmarkRow, ...]
    study: tuple[StudyRow, ...] = ()
    measured: Measured = Measured()

    def of(self, task: str, strategy: str | None = None) -> tuple[BenchmarkRow, ...]:
        """Return the rows of a task, and of one strategy if given, in the server's order."""
        rows = self._by_task.get(task, ())
        return tuple(row for row in rows if strategy in (None, row.strategy))

    @cached_property
    def _by_task(self) -> dict[str, list[BenchmarkRow]]:
        found: dict[str, list[BenchmarkRow]] = {}
        for row in self.rows:
            found.setdefault(row.task, []).append(row)
        return found


@dataclass(frozen=True)
class Reliability:
    """Probabilities of a split against the shares that were right, in bins of equal width."""

    error: float  # the expected calibration error
    error_before: float  # of the head before it was calibrated
    counts: tuple[int, ...]
    probability: tuple[float, ...]  # mean of each bin
    share: tuple[float, ...]


@dataclass(frozen=True)
class TrainingCurve:
    """The mean loss of the train rows up to each step, and the step's learning rate."""

    step: tuple[int, ...]
    loss: tuple[float, ...]
    learning_rate: tuple[float, ...]


@dataclass(frozen=True)
class SelectionCurve:
    """Loss and primary metric of the selection rows; step 0 is the starting head."""

    step: tuple[int, ...]
    loss: tuple[float, ...]
    metric: tuple[float, ...]

    @property
    def best(self) -> int | None:
        """The position of the best state: the highest metric, then the lowest loss."""
        found = range(len(self.step))
        return max(found, key=lambda at: (self.metric[at], -self.loss[at]), default=None)


@dataclass(frozen=True)
class RunHistory:
    """The history of the run that made a delta."""

    train: TrainingCurve
    selection: SelectionCurve


@dataclass(frozen=True)
class DeltaDetails:
    """The body of `GET /deltas/{task}/{strategy}`."""

    version: str
    size_bytes: int
    manifest: dict[str, Any]

    def reliability(self, split: str) -> Reliability | None:
        """Return the reliability on a split; earlier deltas and regressions have none."""
        found = self.manifest.get("metrics", {}).get(split, {}).get("reliability")
        return None if found is None else read_answer(Reliability, found)

    @property
    def history(self) -> RunHistory | None:
        """The history of the run; earlier deltas and solved heads have none."""
        found = self.manifest.get("training", {}).get("history")
        return None if found is None else read_answer(RunHistory, found)


@dataclass(frozen=True)
class Prediction:
    """The answer of one delta to one row."""

    task: str
    strategy: str
    version: str
    kind: str
    labels: tuple[str, ...]  # the winner, or each label given; empty in regression
    scores: dict[str, float]  # probability by label, in the server's order; empty in regression
    value: float | None  # regression only
    truncated: bool = False  # True if the text was longer than the task reads
    is_answered: bool = True  # False if the delta is not sure enough of the winner

    @property
    def score(self) -> float | None:
        """The highest probability; None in regression."""
        return max(self.scores.values(), default=None)


@dataclass(frozen=True)
class FanOut:
    """The body of `POST /predict`."""

    results: tuple[dict[str, Any], ...]

    def predictions(self) -> tuple[Prediction, ...]:
        """Return one prediction for each target, in the order of the targets.

        Raises:
            ServerError: a target has no prediction, several, or one without its answer.
        """
        return tuple(rows[0] for rows in self.of_rows(1))

    def of_rows(self, num_rows: int) -> list[list[Prediction]]:
        """Return one prediction for each row, for each target in the order of the targets.

        Raises:
            ServerError: a target has not as many as rows, or one has no answer.
        """
        return [_of_target(result, num_rows) for result in self.results]


@dataclass(frozen=True)
class ExplainedWord:
    """A word of a row, with its characters in the text of its field."""

    field: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class StrategyExplanation:
    """The score of one strategy, and what it loses without each word."""

    strategy: str
    version: str
    score: float
    lost: tuple[float | None, ...]


@dataclass(frozen=True)
class Explanation:
    """The body of `POST /explain/{task}`."""

    kind: str
    label: str | None  # None in regression
    words: tuple[ExplainedWord, ...]
    results: tuple[StrategyExplanation, ...]
    agreement: float | None


def _of_target(result: Mapping[str, Any], num_rows: int) -> list[Prediction]:
    """Merge a target's entry with each of its predictions."""
    rows = result.get("predictions", ())
    if len(rows) != num_rows:
        raise _unexpected(f"{len(rows)} predictions for {num_rows} rows")
    return [read_answer(Prediction, _flat_row(result, row)) for row in rows]


def _flat_row(head: Mapping[str, Any], prediction: Mapping[str, Any]) -> dict[str, Any]:
    kind, row = head.get("kind"), dict(prediction)
    if kind == "regression":
        return {**head, **row, "labels": (), "scores": {}}
    if kind == "single_label" and "label" in row:
        row["labels"] = (row["label"],)
        row["is_answered"] = row.get("decision", row["label"]) is not None  # older servers: always
    return {**head, **row, "value": None}


def read_answer(model: type[T], body: Mapping[str, Any]) -> T:
    """Validate the decoded body of an answer.

    Raises:
        ServerError: a field is missing or has another type.
    """
    try:
        return TypeAdapter(model).validate_python(body)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        problem = "is missing" if first["type"] == "missing" else f"is wrong: {first['msg']}"
        raise _unexpected(f"{name} {problem}") from error


def visible(value: Any, key: str = "") -> Any:
    """Return a JSON value with escapes in place of control characters and turns of direction.

    Names of text fields stay, since requests repeat them.
    """
    if isinstance(value, str):
        return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
    if isinstance(value, list) and key != "text_fields":
        return [visible(item) for item in value]
    if isinstance(value, Mapping):
        return {visible(name): visible(item, name) for name, item in value.items()}
    return value


def _unexpected(problem: str) -> ServerError:
    return ServerError(
        f"This page doesn't understand the server's answer ({problem}). "
        "Check that the page and the server have the same version."
    )
