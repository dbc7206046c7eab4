"""Examples made for a task from its manifest."""

from __future__ import annotations

import pytest

from app.http.openapi import example_row
from deltas import TaskSpec


def task(*fields: str) -> TaskSpec:
    return TaskSpec(
        name="t", kind="single_label", labels=("a", "b"), text_fields=fields, max_length=8
    )


def test_one_text_is_a_string() -> None:
    assert isinstance(example_row(task("sentence")), str)


@pytest.mark.parametrize(
    ("fields", "marks"),
    [
        (("sentence1", "sentence2"), ".."),
        (("question", "sentence"), "?."),
        (("question1", "question2"), "??"),
    ],
)
def test_two_texts_are_an_object_and_questions_are_asked(
    fields: tuple[str, str], marks: str
) -> None:
    row = example_row(task(*fields))
    assert isinstance(row, dict)
    assert tuple(row) == fields
    assert "".join(text[-1] for text in row.values()) == marks
    assert len(set(row.values())) == 2
