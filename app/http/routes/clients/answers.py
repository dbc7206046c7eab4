"""Finds the delta that another protocol names, runs its rows, and orders its labels.

All modules of this folder use it, and none has another way to a prediction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict

from app.errors import MAX_LISTED, ForbiddenError, InvalidInputError, Problem
from app.http.context import Serving
from app.http.routes.predictions import DeltaAnswer, answer_rows, caller_of
from app.keys.paths import split_model
from app.pipeline.predictions import scores_of
from deltas import TaskSpec

VALUE_LABEL = "LABEL_0"  # the name that transformers gives the one output of a regression

Function = Literal["softmax", "sigmoid", "none"]


class LabelScore(BaseModel):
    """A label with its score."""

    model_config = ConfigDict(frozen=True)

    label: str
    score: float


def refuse(field: str | None, problem: str, row: int | None = None) -> NoReturn:
    """Refuse a request for one problem of its body.

    Raises:
        InvalidInputError: always.
    """
    raise InvalidInputError([Problem(row=row, field=field, problem=problem)])


def answer_json(value: Any) -> Response:
    """Answer with values that need no more checks."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, media_type="application/json")


def spec_of(
    request: Request,
    serving: Serving,
    task: str,
    strategy: str | None = None,
    version: str | None = None,
) -> TaskSpec:
    """Return what a delta's rows and labels are, to a key that may use the task.

    Only the path's task is checked before a route runs. A route that looked up another one by
    itself would tell the fields of tasks of other keys, or which tasks there are.

    Raises:
        ForbiddenError: the key does not name the task, whether there is one or not.
        DeltaNotFoundError: there is no such delta.
    """
    caller = caller_of(request)
    if caller is not None:
        caller.check_task(task)
    return serving.engine.store.resolve(task, strategy, version).manifest.task


async def answer_one(
    request: Request,
    serving: Serving,
    inputs: Any,
    task: str,
    strategy: str | None = None,
    version: str | None = None,
) -> DeltaAnswer:
    """Return one delta's answer to the rows of a request."""
    target = task, strategy, version
    (answer,) = await answer_rows(request, serving, inputs, [target], lane=task)
    return answer


def model_of(request: Request, serving: Serving, name: str | None) -> tuple[str, str | None]:
    """Return task and strategy of a model's name; without a name, of the only task there is.

    Raises:
        InvalidInputError: there is no name, and the key may use several tasks.
        ForbiddenError: there is no name, and the key may use no task.
    """
    if name is not None:
        return split_model(name)
    caller = caller_of(request)
    tasks = [task for task in serving.engine.store.tasks if caller is None or caller.may_use(task)]
    if len(tasks) == 1:
        return tasks[0], None
    if not tasks:
        raise ForbiddenError("this key may use none of the served tasks")
    listed = ", ".join(tasks[:MAX_LISTED])
    refuse(
        None,
        f"names no task, and there are {len(tasks):,}; name one of them in the request, or send a "
        f"key for one task alone: {listed}",
    )


def labels_of(task: TaskSpec) -> tuple[str, ...]:
    """Return a name for each output of a task."""
    return task.labels or (VALUE_LABEL,)


def outputs_of(
    task: TaskSpec, logits: Sequence[float], function: Function | None = None
) -> list[float]:
    """Return the scores of a row in the order of the labels.

    Args:
        task: task with its kind and labels.
        logits: outputs of the head; a regression has its value there.
        function: function of the outputs; None takes the one that fits the kind.

    Raises:
        InvalidInputError: the function makes no sense for a regression.
    """
    if task.kind == "regression" and function in ("softmax", "sigmoid"):
        refuse(None, f"asks for the {function} of {task.name!r}, a regression, which has no scores")
    if function == "none" or task.kind == "regression":
        return list(logits)
    if function is None:
        return scores_of(task.kind, logits)
    return scores_of("multi_label" if function == "sigmoid" else "single_label", logits)


def best_first(
    task: TaskSpec,
    logits: Sequence[float],
    function: Function | None = None,
    top_k: int | None = None,
) -> list[dict[str, Any]]:
    """Return the labels of a row with their scores, best first, as JSON."""
    named = zip(labels_of(task), outputs_of(task, logits, function), strict=True)
    ordered = sorted(named, key=lambda pair: pair[1], reverse=True)
    return [{"label": label, "score": score} for label, score in ordered[:top_k]]


def is_distribution(scores: Sequence[float], tolerance: float) -> bool:
    """Tell whether scores sum to one, so that they are the probabilities of one choice."""
    return math.isclose(sum(scores), 1.0, abs_tol=tolerance)
