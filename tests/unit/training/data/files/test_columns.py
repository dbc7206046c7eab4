"""Wanted columns are found by their names, and values of parquet become plain ones."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from training.data.files.columns import Columns, find_columns, plain
from training.errors import DataError

PATH = Path("rows/a.csv")


def refused(wanted: list[str], names: list[str], path: Path | str = PATH) -> str:
    with pytest.raises(DataError) as caught:
        find_columns(path, wanted, names)
    return str(caught.value)


def test_columns_are_found_in_the_wanted_order() -> None:
    assert find_columns(PATH, ["text", "label"], ["label", "id", "text"]) == [2, 0]


def test_a_missing_column_gets_near_matches() -> None:
    assert refused(["text"], ["Text", "y"]) == (
        "rows/a.csv, column 'text': no such column; the file has Text, y. Did you mean 'Text'?"
    )
    assert "the split has Text, y" in refused(["text"], ["Text", "y"], "data set a, split train")


def test_a_column_that_occurs_twice_is_refused() -> None:
    assert "the file has this column 2 times; rename one" in refused(["text"], ["text", "text"])
    found = refused(["text"], ["text ", "label", "text"])
    assert "has this column 2 times, spelled 'text ', 'text'; rename one" in found
    assert find_columns(PATH, ["label"], ["text ", "label", "text"]) == [1]


@pytest.mark.parametrize("spelled", ["text ", " text", "text\u00a0", "te\u200bxt", "\ttext\ufeff"])
def test_invisible_differences_of_names_do_not_matter(spelled: str) -> None:
    assert find_columns(PATH, ["text"], [spelled]) == [0]
    assert find_columns(PATH, [spelled], ["text"]) == [0]
    assert find_columns(PATH, [spelled], [spelled]) == [0]


def test_a_line_break_in_a_name_is_a_blank() -> None:
    assert find_columns(PATH, ["the text"], ["the\n text"]) == [0]


def test_rows_that_are_left_keep_their_numbers() -> None:
    columns = Columns("data set a, split train", 4, {"y": [5, 6, 7, 8]}, files=(("b", 1), ("c", 3)))
    some = columns.take([1, 3, 4])
    assert (some.num_rows, some.values, some.numbers) == (3, {"y": [5, 7, 8]}, (1, 3, 4))
    assert some.where("y", 2) == "data set a, split train, file c, row 2, column 'y'"
    assert str(some.error("y", "is wrong", 1)) == (
        "data set a, split train, file b, row 1, column 'y': is wrong"
    )
    assert some.take([2, 3]).number(2) == 4


def test_a_name_with_a_comma_is_named_in_quotes() -> None:
    assert find_columns(PATH, ["text, short"], ["text, short"]) == [0]
    found = refused(["text", "short"], ["text, short", "label"])
    assert "A name that contains a comma goes into double quotes: '\"text, short\"'" in found


def test_columns_have_a_name_and_a_noun() -> None:
    of_file, of_split = Columns(PATH, 0, {}), Columns("data set a, split train", 0, {})
    assert (of_file.name, of_file.noun) == ("a.csv", "file")
    assert (of_split.name, of_split.noun) == ("data set a, split train", "split")
    error = of_file.error("y", "is wrong", row=2)
    assert str(error) == "rows/a.csv, row 2, column 'y': is wrong"


@pytest.mark.parametrize(
    ("value", "made"),
    [
        (Decimal("0.25"), 0.25),
        (b"caf\xc3\xa9", "caf\u00e9"),
        (b"\xff", b"\xff"),
        (None, None),
        ([1], [1]),
    ],
)
def test_values_of_parquet_become_plain(value: Any, made: Any) -> None:
    assert plain(value) == made
