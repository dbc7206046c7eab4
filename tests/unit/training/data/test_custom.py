"""Descriptions of custom tasks are checked, and columns become a task.

Files are tested in `test_custom_files.py`, data sets in `test_hub_dataset.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from training.data.custom import CustomTask, custom_data
from training.data.files.columns import Columns
from training.errors import ConfigError, DataError


def custom(**changes: Any) -> CustomTask:
    options: dict[str, Any] = {"text_columns": ("text",), "label_column": "y", "name": "mine"}
    return CustomTask(**(options | changes))


@pytest.mark.parametrize("name", ["", "A", "../x", "a b", "-a", "ä", "a" * 129, "a\n", "a/b", ".."])
def test_a_name_must_be_fit_for_files_and_urls(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--name .* are allowed, starting with a letter or digit"
    ):
        custom(name=name)


def test_the_names_of_glue_are_taken() -> None:
    with pytest.raises(ConfigError, match=r"'rte' is a GLUE task; choose another, .* 'my-rte'"):
        custom(name="rte")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text_columns": ()}, "give one column, or two joined by a comma"),
        ({"text_columns": ("a", "b", "c")}, "'a,b,c': give one column, or two"),
        ({"text_columns": ("a", "")}, "'a,': give one column, or two"),
        ({"text_columns": ("a", "a")}, "a, a, y are not distinct"),
        ({"text_columns": ("y",)}, "y, y are not distinct"),
        ({"kind": "classification"}, "allowed are single_label, multi_label, regression"),
    ],
)
def test_contradictory_options_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        custom(**changes)
    assert problem in str(caught.value)


def columns(where: str, labels: list[Any], texts: list[Any] | None = None) -> Columns:
    return Columns(
        where,
        len(labels),
        {"text": texts or [f"{where} {n}" for n in range(len(labels))], "y": labels},
    )


def test_messages_about_a_split_name_the_split() -> None:
    """The messages of files, with the name of the split where the file's would be."""
    train = columns("data set a, split train", ["x", "y"] * 10)
    with pytest.raises(DataError) as caught:
        custom_data(custom(), train, columns("data set a, split dev", ["x", "z"]), "hub")
    assert str(caught.value).startswith(
        "data set a, split dev, row 2, column 'y': label 'z' does not occur in the train split"
    )
    data = custom_data(custom(), train, None, "hub")
    assert data.source == "hub"
    assert data.validation_notes == {
        "validation": "4 rows held out of data set a, split train (seed 0)"
    }
    twice = custom_data(custom(), train, train, "hub")
    assert "20 of 20 validation rows are in the train split too" in str(twice.validation_notes)
    with pytest.raises(DataError, match=r"too few .*, or give --validation-split"):
        custom_data(custom(), columns("data set a, split train", ["x", "y"]), None, "hub")


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(DataError) as caught:
        custom_data(custom(), columns("s", ["x", "y"], ["a", b"\xff" * 9999]), None, "hub")
    assert len(str(caught.value)) < 250
