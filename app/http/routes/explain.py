"""Answers `POST /explain/{task}`: how much of the probability each word of a text carries.

The row and the row without each word are ordinary rows: they go with all strategies through the
pipeline as one request, so limits, deadlines and keys hold as for a prediction.
`app.pipeline.occlusion` makes the rows. Tested by tests/http/test_explain.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from app.errors import InvalidInputError, Problem, TooLargeError
from app.http.context import ServingDep
from app.http.json_route import JsonRoute, StickyKey, TaskName, TimeoutMs, json_response
from app.http.openapi import documented
from app.http.routes.predictions import answer_rows
from app.http.schemas import ROW_SCHEMA, Name, RequestBody
from app.pipeline import read_texts
from app.pipeline.occlusion import (
    WordSpan,
    agreement,
    num_rows_without_words,
    row_words,
    rows_without_words,
)
from app.pipeline.predictions import Prediction, TargetPredictions, ValuePrediction
from app.process.settings import Settings
from deltas import TaskSpec
from deltas.errors import did_you_mean
from deltas.manifest import TaskKind

explanations = APIRouter(
    tags=["predictions"],
    route_class=JsonRoute,
    responses=documented(400, 404, 408, 413, 415, 422, 429, 500, 503, 504),
)


class ExplainRequest(RequestBody):
    """A row to explain."""

    inputs: Annotated[Any, WithJsonSchema(ROW_SCHEMA), Field(description="One row.")]
    strategies: Annotated[
        list[Name] | None,
        Field(
            min_length=1,
            max_length=256,
            description="Strategies to ask; unset asks all of the task.",
        ),
    ] = None
    label: Annotated[
        Name | None,
        Field(
            description="Label to explain; unset takes the one that most "
            "strategies find most probable."
        ),
    ] = None


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class ExplainedWord(_Answer):
    """A word of the row; characters count from 0, and `end` is the one behind the word."""

    field: str
    text: str
    start: int
    end: int


class StrategyExplanation(_Answer):
    """The answer of one strategy to the whole row, and what it loses without each word."""

    strategy: str
    version: str
    score: Annotated[float, Field(description="Probability of the label, or the value.")]
    lost: Annotated[
        list[float | None],
        Field(
            description="Score with the word minus score without it, for each word; null for the "
            "only word of a text, which can't be left out."
        ),
    ]
    prediction: Annotated[Prediction, Field(description="Prediction for the whole row.")]


class ExplainResponse(_Answer):
    """The words of a row, and how much each of them matters to each strategy."""

    task: str
    backbone: Annotated[str, Field(description="Id of the backbone.")]
    kind: TaskKind
    label: Annotated[str | None, Field(description="The explained label; null for regression.")]
    words: list[ExplainedWord]
    results: list[StrategyExplanation]
    agreement: Annotated[
        float | None,
        Field(
            description="Mean rank correlation of `lost` over all pairs of strategies: 1 if they "
            "agree on the order of the words. Null if there is nothing to compare."
        ),
    ]


@explanations.post(
    "/explain/{task}", summary="Explain a prediction by its words", response_model=ExplainResponse
)
async def explain(
    request: Request,
    task: TaskName,
    body: ExplainRequest,
    serving: ServingDep,
    timeout_ms: TimeoutMs = None,
    sticky_key: StickyKey = None,
) -> Response:
    """Leave out each word of a row in turn, and return how much probability goes with it.

    All texts and all strategies are one request of (words + 1) x strategies rows. A word that a
    strategy loses much without carries much of its decision; a negative loss speaks against it.
    """
    store, settings = serving.engine.store, request.app.state.settings
    spec = store.resolve(task).manifest.task
    _check_label(spec, body.label)
    if isinstance(body.inputs, list):
        problem = "must be one row, not a list; send a request for each row"
        raise InvalidInputError([Problem(row=None, field="inputs", problem=problem)])
    (texts,) = read_texts(spec, [body.inputs], settings.max_text_chars)
    strategies = list(dict.fromkeys(body.strategies or store.strategies(task)))
    words = row_words(texts)
    _check_size(settings, texts, num_rows_without_words(texts, words), len(strategies))
    rows, places = rows_without_words(texts, words)
    inputs = [dict(zip(spec.text_fields, row, strict=True)) for row in rows]
    targets = [(task, strategy, None) for strategy in strategies]
    found = await answer_rows(request, serving, inputs, targets, lane=task)
    answers = [answer.part for answer in found]
    label = body.label or _usual_label(answers)
    results = [_explanation(answer, places, label) for answer in answers]
    answer = ExplainResponse(
        task=task,
        backbone=serving.engine.backbone.ref.id,
        kind=spec.kind,
        label=label,
        words=[_word(word, spec, texts) for word in words],
        results=results,
        agreement=agreement([result.lost for result in results]),
    )
    return json_response(answer.model_dump_json())


def _check_size(
    settings: Settings, texts: Sequence[str], num_rows: int, num_strategies: int
) -> None:
    """Refuse too many rows, and rows that are too long together, before they are made.

    The rows of 200,000 characters with a word in two would take 20 GB.

    Raises:
        TooLargeError: the rows are too many, or have more characters than any body.
    """
    most = settings.max_rows_per_request
    if num_rows * num_strategies > most:
        what = "rows in one explanation, which has (words + 1) x strategies"
        setting = "DELTABERT_MAX_ROWS_PER_REQUEST"
        raise TooLargeError(what, num_rows * num_strategies, most, setting)
    num_chars, most = num_rows * sum(map(len, texts)), settings.max_body_bytes
    if num_chars > most:
        what = "characters in one explanation, which has the text once for each word"
        raise TooLargeError(what, num_chars, most, "DELTABERT_MAX_BODY_BYTES")


def _check_label(spec: TaskSpec, label: str | None) -> None:
    """Refuse a label that the task has not.

    Raises:
        InvalidInputError: the label is unknown, or the task has no labels.
    """
    if label is None or label in spec.labels:
        return
    if spec.kind == "regression":
        problem = f"goes with tasks that have labels; {spec.name!r} gives a number, leave it out"
    else:
        hint = did_you_mean(label, spec.labels)
        problem = f"{label[:64]!r} is not a label of {spec.name!r}; see GET /tasks.{hint}"
    raise InvalidInputError([Problem(row=None, field="label", problem=problem)])


def _word(word: WordSpan, spec: TaskSpec, texts: Sequence[str]) -> ExplainedWord:
    text = texts[word.text][word.start : word.end]
    return ExplainedWord(
        field=spec.text_fields[word.text], text=text, start=word.start, end=word.end
    )


def _usual_label(answers: Sequence[TargetPredictions]) -> str | None:
    """Return the label that most strategies find most probable; None for regression."""
    found = [
        max(whole.scores, key=whole.scores.__getitem__)
        for whole in (answer.predictions[0] for answer in answers)
        if not isinstance(whole, ValuePrediction)
    ]
    return max(found, key=found.count, default=None)


def _explanation(
    answer: TargetPredictions, places: Sequence[int | None], label: str | None
) -> StrategyExplanation:
    scores = [_score(prediction, label) for prediction in answer.predictions]
    return StrategyExplanation(
        strategy=answer.strategy,
        version=answer.version,
        score=scores[0],
        lost=[None if place is None else scores[0] - scores[place] for place in places],
        prediction=answer.predictions[0],
    )


def _score(prediction: Prediction, label: str | None) -> float:
    if isinstance(prediction, ValuePrediction):
        return prediction.value
    assert label is not None  # tasks with labels have decided on one
    return prediction.scores[label]
