"""The output of rows: columns of each kind of task, errors in their places, names that clash."""

from __future__ import annotations

import csv
import json
from typing import Any

import pytest

from app.pipeline.bulk.output import AnswerColumns, AnsweredRow, format_of
from app.pipeline.bulk.rows import HeaderError, RowProblem
from app.pipeline.pipeline import RowLogits
from app.pipeline.predictions import Prediction, to_predictions
from tests.factories import TOY_TASKS

KINDS = {"toy2": [0.25, 1.5], "toyreg": [0.123456789], "toymulti": [1.0, -1.0, 2.0, -2.0]}


def answer(name: str, top_k: int | None = None) -> Prediction:
    (made,) = to_predictions(TOY_TASKS[name], [RowLogits(KINDS[name], truncated=False)], top_k)
    return made


def columns_of(*names: str, kept: tuple[str, ...] = (), with_scores: bool = False) -> AnswerColumns:
    return AnswerColumns(names, [TOY_TASKS[name] for name in names], kept, with_scores=with_scores)


def cells(columns: AnswerColumns, *rows: AnsweredRow) -> list[dict[str, Any]]:
    made = format_of("csv", columns)
    return list(csv.DictReader((made.begin() + made.rows(rows)).decode().splitlines()))


def objects(columns: AnswerColumns, *rows: AnsweredRow) -> list[dict[str, Any]]:
    made = format_of("jsonl", columns)
    return [json.loads(line) for line in (made.begin() + made.rows(rows)).splitlines()]


def test_each_kind_of_task_has_its_columns() -> None:
    (row,) = objects(columns_of("toy2"), AnsweredRow(3, {}, [answer("toy2")]))
    assert row == {
        **{"row": 3, "label": "good", "decision": "good"},
        **{"score": 0.7773, "truncated": False},
    } | {"score": round(answer("toy2").score, 6)}  # type: ignore[union-attr]
    (row,) = objects(columns_of("toyreg"), AnsweredRow(0, {}, [answer("toyreg")]))
    assert row == {"row": 0, "value": 0.123457, "decision": 0.123457, "truncated": False}
    (row,) = cells(columns_of("toymulti"), AnsweredRow(0, {}, [answer("toymulti")]))
    assert row["labels"] == '["a", "c"]'


def test_scores_are_given_if_asked() -> None:
    columns = columns_of("toy2", with_scores=True)
    (row,) = cells(columns, AnsweredRow(0, {}, [answer("toy2", 1)]))
    assert json.loads(row["scores"]) == {"good": float(row["score"])}


def test_several_tasks_and_clashing_columns_have_the_task_in_front() -> None:
    both = columns_of("toy2", "toyreg")
    assert both.names[:4] == ("toy2.label", "toy2.decision", "toy2.score", "toy2.truncated")
    (row,) = objects(both, AnsweredRow(0, {}, [answer("toy2"), answer("toyreg")]))
    assert row["toyreg.value"] == 0.123457
    assert "toy2.label" in columns_of("toy2", kept=("label",)).names
    for name in ("row", "error", "toy2.score"):
        with pytest.raises(HeaderError, match=name):
            columns_of("toy2", kept=("label", name))


def test_a_row_with_a_problem_has_its_kept_columns_and_its_error() -> None:
    columns = columns_of("toy2", kept=("id",))
    row = AnsweredRow(1, {"id": "x,\n"}, (), RowProblem("too_large", "a text, too long"))
    assert objects(columns, row) == [
        {"row": 1, "id": "x,\n", "error": {"code": "too_large", "message": "a text, too long"}}
    ]
    made = format_of("csv", columns).rows([row]).decode()
    assert next(csv.reader([made])) == ["x,\n", "", "", "", "", "too_large: a text, too long"]


def test_an_error_that_ends_the_output_belongs_to_no_row() -> None:
    problem = RowProblem("not_ready", "the server is shutting down")
    line = json.loads(format_of("jsonl", columns_of("toy2")).failure(problem))
    assert line == {"row": None, "error": {"code": "not_ready", "message": str(problem)}}
    row = format_of("csv", columns_of("toy2", kept=("id",))).failure(problem).decode()
    assert row == ",,,,,not_ready: the server is shutting down\n"


def test_a_kept_text_that_is_no_unicode_is_written() -> None:
    columns = columns_of("toy2", kept=("id",))
    row = AnsweredRow(0, {"id": "\ud800"}, [answer("toy2")])
    assert objects(columns, row)[0]["id"] == "\ud800"
    assert cells(columns, row)[0]["id"] == "?"
