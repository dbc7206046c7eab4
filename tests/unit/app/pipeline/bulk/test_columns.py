"""Texts and kept columns of rows: which columns are read, and which rows are refused."""

from __future__ import annotations

import json
import time
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from app.pipeline.bulk.columns import ColumnChoice, ColumnReader
from app.pipeline.bulk.rows import HeaderError, RawRow, RowProblem
from tests.factories import TOY_TASKS

TOY2, TOY3 = TOY_TASKS["toy2"], TOY_TASKS["toy3"]


def reader_of(*tasks: Any, max_chars: int = 100, **choice: Any) -> ColumnReader:
    return ColumnReader(tasks or (TOY2,), ColumnChoice(**choice), max_chars)


def row_of(value: Any) -> RawRow:
    return RawRow(value, None, 0)


@pytest.mark.parametrize("value", ["good", {"text": "good"}, {"sentence": "good", "id": 7}])
def test_a_text_has_one_of_three_forms(value: Any) -> None:
    assert reader_of().read(row_of(value)) == (("good",),)


def test_each_task_reads_its_own_columns() -> None:
    reader = reader_of(TOY3, TOY3)
    assert reader.read(row_of({"premise": "a", "hypothesis": "b", "text": "c"})) == (
        ("a", "b"),
        ("a", "b"),
    )
    named = reader_of(TOY3, texts=("x", "y"))
    assert named.read(row_of({"y": "b", "x": "a", "premise": "no"})) == (("a", "b"),)


@pytest.mark.parametrize(
    ("value", "code", "says"),
    [
        ({"title": "x"}, "invalid_input", "no column 'sentence'; the row has 'title'"),
        ({"text": 1}, "invalid_input", "column 'text' must be a string, not a number"),
        ({"text": " "}, "invalid_input", "column 'text' has no text"),
        ({"text": "a" * 101}, "too_large", "101 characters; 100 are allowed"),
        ({}, "invalid_input", "the row has none"),
    ],
)
def test_a_row_without_a_fitting_text_has_a_problem(value: Any, code: str, says: str) -> None:
    with pytest.raises(RowProblem, match=says) as raised:
        reader_of().read(row_of(value))
    assert raised.value.code == code


def test_a_problem_of_the_reading_stays() -> None:
    problem = RowProblem("malformed_json", "no JSON")
    with pytest.raises(RowProblem, match="no JSON"):
        reader_of().read(RawRow(None, problem, 3))


@pytest.mark.parametrize(
    ("keep", "kept"), [((), ("id",)), (("lang",), ("lang",)), (("*",), ("id", "lang", "text"))]
)
def test_kept_columns(keep: tuple[str, ...], kept: tuple[str, ...]) -> None:
    reader = reader_of(keep=keep)
    reader.begin(["id", "lang", "text"], is_header=True)
    assert reader.kept == kept
    assert reader.keep(row_of({"id": "1"})) == ({"id": "1"} if "id" in kept else {})
    assert reader.keep(row_of("a text")) == {}


def test_a_header_without_the_columns_is_refused() -> None:
    with pytest.raises(HeaderError, match="has no column 'sentence'; it has 'sentense'") as raised:
        reader_of().begin(["sentense"], is_header=True)
    assert "Did you mean 'sentense'?" in str(raised.value)
    with pytest.raises(HeaderError, match="has no column 'lang' and 'premise'"):
        reader_of(TOY3, keep=("lang",)).begin(["text"], is_header=True)
    with pytest.raises(HeaderError, match="name that many columns of texts, not 1"):
        reader_of(TOY3, texts=("a",))


def test_lines_of_json_may_lack_columns_one_by_one() -> None:
    for keep, kept in (((), ("id",)), (("lang",), ("lang",)), (("*",), ("text",))):
        reader = reader_of(keep=keep)
        reader.begin(["text"], is_header=False)
        assert reader.kept == kept


def test_columns_to_keep_have_a_limit() -> None:
    names = [f"c{number}" for number in range(10)]
    reader = ColumnReader((TOY2,), ColumnChoice(keep=("*",)), 100, max_kept=11)
    reader.begin(["text", *names], is_header=True)
    assert len(reader.kept) == 11
    with pytest.raises(HeaderError, match="has 12 columns to keep; at most 11"):
        reader.begin(["text", "id", *names], is_header=True)
    named = ColumnReader((TOY2,), ColumnChoice(keep=("text", "id", *names)), 100, max_kept=11)
    with pytest.raises(HeaderError, match="has 12 columns to keep"):
        named.begin([], is_header=False)


def test_many_columns_that_are_missing_are_told_in_one_line() -> None:
    keep = tuple(f"k{number}" for number in range(8000))
    names = [f"c{number}" for number in range(100_000)]
    began = time.process_time()
    with pytest.raises(HeaderError) as error:
        reader_of(keep=keep).begin([*names, "text"], is_header=True)
    assert time.process_time() - began < 5
    assert "'k19' and 7,980 more; it has 'c0'" in str(error.value)
    assert len(str(error.value)) < 1000


def test_texts_may_be_bytes_as_some_writers_of_parquet_store_them() -> None:
    assert reader_of().read(row_of({"text": "gut ü".encode()})) == (("gut ü",),)
    with pytest.raises(RowProblem, match="must be a string, not bytes"):
        reader_of().read(row_of({"text": b"\xff"}))


def test_kept_values_of_parquet_are_values_of_json() -> None:
    """Else a run over such a file would end with an error at the first row."""
    row = {
        "text": "a",
        "when": datetime(2020, 1, 2, 3, 4, 5),  # noqa: DTZ001 - parquet has times without a zone
        "day": date(2020, 1, 2),
        "took": timedelta(seconds=1),
        "price": Decimal("1.50"),
        "raw": b"\xff",
        "name": b"a",
        "nan": float("nan"),
        "list": [1, None, Decimal("2")],
        "map": [("k", float("inf"))],
        "dict": {"a": date(2020, 1, 2)},
        "yes": True,
    }
    reader = reader_of(keep=("*",))
    reader.begin(row, is_header=True)
    assert json.loads(json.dumps(reader.keep(row_of(row)), allow_nan=False)) == {
        "text": "a",
        "when": "2020-01-02 03:04:05",
        "day": "2020-01-02",
        "took": "0:00:01",
        "price": "1.50",
        "raw": "/w==",
        "name": "a",
        "nan": None,
        "list": [1, None, "2"],
        "map": [["k", None]],
        "dict": {"a": "2020-01-02"},
        "yes": True,
    }


def test_several_columns_without_a_name_are_not_kept() -> None:
    several, one = reader_of(keep=("*",)), reader_of(keep=("*",))
    several.begin(("text", "", ""), is_header=True)
    assert several.kept == ("text",)
    one.begin(("", "text"), is_header=True)
    assert one.kept == ("", "text"), "pandas writes the index so"
