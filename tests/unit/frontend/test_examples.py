"""The page's own example inputs fit their tasks and are nobody else's text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from frontend.glossary import examples_of, shared_example, value_scale
from training.data.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_each_glue_task_has_a_few_plain_and_hard_ones(name: str) -> None:
    task = TASKS[name]
    examples = examples_of(name, len(task.text_fields))
    assert 4 <= len(examples) <= 6
    assert sum(bool(item.hard) for item in examples) >= 2
    assert sum(not item.hard for item in examples) >= 1
    assert len({item.texts for item in examples}) == len(examples)
    assert len({item.title for item in examples}) == len(examples)
    assert all(text.strip() == text != "" for item in examples for text in item.texts)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_answers_of_the_task(name: str) -> None:
    task = TASKS[name]
    answers = {item.answer for item in examples_of(name, len(task.text_fields))}
    if task.labels:
        assert answers == set(task.labels), "each label should have an example"
        return
    scale = value_scale(name)
    assert scale is not None
    assert task.value_range == (scale.low, scale.high)
    for answer in answers:
        number = re.fullmatch(r"about (\d(\.\d)?)", answer)
        assert number is not None, answer
        assert scale.low <= float(number[1]) <= scale.high


def test_other_tasks_have_no_examples() -> None:
    assert examples_of("mytask", 1) == ()
    assert examples_of("cola", 2) == (), "the same name with other fields is another task"


def test_a_title_says_what_is_hard_and_stays_short() -> None:
    for name, task in TASKS.items():
        for item in examples_of(name, len(task.text_fields)):
            assert len(item.title) <= 120
            if item.hard:
                assert item.title.startswith(item.hard.capitalize() + ": ")


def test_there_is_a_text_for_all_tasks_at_once() -> None:
    for count in {len(task.text_fields) for task in TASKS.values()}:
        assert all(shared_example(count))
    assert shared_example(3) == ("", "", "")


@pytest.mark.slow
def test_no_example_is_glue_text(glue_dir: Path) -> None:
    import pyarrow
    from pyarrow import compute, parquet

    own = [text for count in (1, 2) for text in shared_example(count)]
    for name, task in TASKS.items():
        own += [text for item in examples_of(name, len(task.text_fields)) for text in item.texts]
    assert len(set(own)) > 60
    wanted = pyarrow.array([text.lower().rstrip(" .?") for text in own])
    num_read = 0
    for path in glue_dir.glob("*/*.parquet"):
        table = parquet.read_table(path)
        for column in table.columns:
            if not pyarrow.types.is_string(column.type):
                continue
            texts = compute.utf8_rtrim(compute.utf8_lower(column), " .?")
            num_read += len(texts)
            assert not compute.any(compute.is_in(texts, value_set=wanted)).as_py(), path
    assert num_read > 10_000, "the folder with GLUE rows holds next to nothing"
