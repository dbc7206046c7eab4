"""Validates the answers that the views Trust, Benchmark and Deltas need, and asks for them.

A server of an earlier release lacks some routes; `is_missing` tells that from other errors.
Tested by tests/integration/frontend/test_answers.py against a real server.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from io import BytesIO
from typing import Any
from urllib.parse import quote

from pydantic.dataclasses import dataclass

from frontend.client import Client
from frontend.errors import ServerError
from frontend.models import DeltaDetails, read_answer

_MAX_PAGES = 20  # of predictions: 200,000 rows, or ten million logits
_NO_PREDICTIONS = "no_predictions"
_COLUMNS = ("split", "row", "gold", "logits")
_VERSION_KEY = b"deltabert.version"


@dataclass(frozen=True)
class Predictions:
    """The rows of one split, as a run left them: numbers, labels and logits."""

    version: str | None  # of the delta; None if the file doesn't say
    splits: dict[str, int]
    split: str
    rows: tuple[int, ...]
    gold: tuple[Any, ...]
    logits: tuple[tuple[float, ...], ...]
    next: int | None = None  # set if there are more rows than the page reads


@dataclass(frozen=True)
class ChangeNorm:
    """The change of one part and kind of values in one layer."""

    layer: str
    part: str
    kind: str
    values: int
    norm: float
    frozen_norm: float


@dataclass(frozen=True)
class DeltaNorms:
    """The change of a delta by layer, part and kind, without its head."""

    version: str
    norms: tuple[ChangeNorm, ...]


@dataclass(frozen=True)
class ListedDelta:
    """One served delta of `GET /deltas`."""

    task: str
    strategy: str
    version: str
    is_default: bool
    kind: str
    size_bytes: int
    trainable_parameters: int
    trained_on: str
    loaded: bool


@dataclass(frozen=True)
class RefusedFile:
    """A file that is not served, with the reason."""

    file: str
    reason: str


@dataclass(frozen=True)
class DeltaPage:
    """A page of `GET /deltas`."""

    deltas: tuple[ListedDelta, ...]
    rejected: tuple[RefusedFile, ...]
    total: int
    next: str | None


@dataclass(frozen=True)
class ChangedDelta:
    """The versions of a delta after a change."""

    task: str
    strategy: str
    version: str | None
    previous: str | None
    versions: tuple[str, ...]


def delta_path(task: str, strategy: str, route: str = "") -> str:
    """Return the path of a delta, or of a route below it."""
    path = f"/deltas/{quote(task, safe='')}/{quote(strategy, safe='')}"
    return f"{path}/{route}" if route else path


def list_deltas(client: Client, **query: str | int) -> DeltaPage:
    """Return a page of the served deltas and refused files."""
    return client.get(DeltaPage, "/deltas", query)


def describe(client: Client, task: str, strategy: str, version: str) -> DeltaDetails:
    """Return the details of one version of a delta."""
    return client.get(DeltaDetails, delta_path(task, strategy), {"version": version})


def norms_of(client: Client, task: str, strategy: str, version: str) -> DeltaNorms:
    """Return the change of a delta by layer."""
    return client.get(DeltaNorms, delta_path(task, strategy, "norms"), {"version": version})


def predictions_of(
    client: Client, task: str, strategy: str, version: str, split: str | None
) -> Predictions:
    """Return the predictions of a split, page after page, up to a limit."""
    query: dict[str, str | int] = {"version": version}
    if split:
        query["split"] = split
    path = delta_path(task, strategy, "predictions")
    part = client.get(Predictions, path, query)
    rows, gold, logits = list(part.rows), list(part.gold), list(part.logits)
    for _ in range(_MAX_PAGES - 1):
        if part.next is None:
            break
        part = client.get(Predictions, path, query | {"split": part.split, "offset": part.next})
        rows.extend(part.rows)
        gold.extend(part.gold)
        logits.extend(part.logits)
    return Predictions(
        part.version, part.splits, part.split, tuple(rows), tuple(gold), tuple(logits), part.next
    )


def read_upload(content: bytes, split: str | None) -> Predictions:
    """Read the predictions of a split from an uploaded file.

    Args:
        content: bytes of a predictions.parquet.
        split: name of the split; None takes the first that is not "selection".

    Raises:
        ServerError: it is no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(BytesIO(content), columns=list(_COLUMNS))
        found = [str(name) for name in table["split"].to_pylist()]
        splits = {name: found.count(name) for name in dict.fromkeys(found)}
        default = next((name for name in splits if name != "selection"), "selection")
        chosen = split if split in splits else default
        at = [place for place, name in enumerate(found) if name == chosen]
        part = table.take(at)
        version = (table.schema.metadata or {}).get(_VERSION_KEY)
        columns = {name: part[name].to_pylist() for name in _COLUMNS[1:]}
    except (pa.ArrowException, KeyError, OSError, ValueError) as error:
        raise ServerError(
            "This is not a file of predictions. Choose the <strategy>.predictions.parquet that "
            "training.fit leaves beside a delta."
        ) from error
    body: Mapping[str, Any] = {
        "version": None if version is None else version.decode(errors="replace"),
        "splits": splits,
        "split": chosen,
        "rows": columns["row"],
        "gold": columns["gold"],
        "logits": columns["logits"],
    }
    return read_answer(Predictions, body)


def is_missing(error: ServerError) -> bool:
    """Return True if the server has no such route, because it is of an earlier release."""
    # An earlier server takes "bitfit/norms" for a strategy, which it does not know.
    return error.status == HTTPStatus.NOT_FOUND and error.code != _NO_PREDICTIONS


def has_no_predictions(error: ServerError) -> bool:
    """Return True if a delta's run left no predictions beside it, or those of another version."""
    return error.code == _NO_PREDICTIONS
