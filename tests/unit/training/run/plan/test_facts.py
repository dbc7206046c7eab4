"""Counts of a run's rows: labels, repeats, contradictions, lengths, the one constant answer."""

from __future__ import annotations

from typing import Any

import pytest

from deltas import TokenizedRow
from training.data.rows import Rows, hold_out
from training.data.tasks import Task
from training.run.plan.facts import RunFacts, count_facts, count_repeats, label_text, sampled

METRICS = {
    "single_label": ("accuracy", "macro_f1"),
    "multi_label": ("micro_f1", "macro_f1"),
    "regression": ("pearson", "mse"),
}


def task_of(kind: Any, *labels: str, fields: tuple[str, ...] = ("text",)) -> Task:
    """Return a task of this kind."""
    return Task("mine", kind, labels, fields, METRICS[kind])


def rows_of(texts: list[str], labels: list[Any]) -> Rows:
    """Return rows of one text each."""
    return Rows([(text,) for text in texts], labels)


def row_of(tokens: int, limit: int = 128) -> TokenizedRow:
    """Return a row of that many tokens, cut at the limit."""
    kept = min(tokens, limit)
    return TokenizedRow([1] * kept, [0] * kept, tokens > limit)


def facts_of(task: Task, **splits: Rows) -> RunFacts:
    """Return the facts of rows whose words are one token each."""
    lengths = {
        split: [row_of(1 + sum(len(text.split()) + 1 for text in texts)) for texts in rows.texts]
        for split, rows in splits.items()
    }
    return count_facts(task, splits, lengths, 128)


SENTIMENT = task_of("single_label", "bad", "good")


def test_splits_and_labels_are_counted_most_frequent_first() -> None:
    train = rows_of(["a", "b", "c"], [1, 0, 1])
    facts = facts_of(SENTIMENT, train=train, selection=rows_of(["d"], [0]))
    assert facts.rows == {"train": 3, "selection": 1}
    assert list(facts.labels.items()) == [("good", 2), ("bad", 1)]
    assert facts.value_range is None


def test_labels_of_several_are_counted_one_by_one() -> None:
    task = task_of("multi_label", "x", "y", "z")
    train = rows_of(["a", "b"], [[1, 0, 1], [0, 0, 1]])
    facts = facts_of(task, train=train, selection=train)
    assert facts.labels == {"z": 2, "x": 1, "y": 0}
    assert label_text(task, [1, 0, 1]) == "x|z"
    assert label_text(task, [0, 0, 0]) == "none"


def test_a_regression_has_a_range_and_no_labels() -> None:
    train = rows_of(["a", "b", "c"], [0.5, -1.25, 4.0])
    facts = facts_of(task_of("regression"), train=train, selection=train)
    assert facts.labels == {}
    assert facts.value_range == (-1.25, 4.0)


def test_repeats_ignore_case_and_white_space() -> None:
    splits = {
        "train": rows_of(["a b", "A  b ", "c"], [0, 0, 1]),
        "selection": rows_of(["C"], [1]),
        "validation": rows_of(["a b", "new", "new"], [0, 1, 1]),
    }
    found = count_repeats(SENTIMENT, splits)
    assert found.repeated == 2
    assert (found.contradicting, found.example) == (0, None)
    assert found.shared == {"selection": 1, "validation": 1}


def test_pairs_are_equal_if_both_texts_are() -> None:
    task = task_of("single_label", "no", "yes", fields=("a", "b"))
    train = Rows([("x y", "z"), ("x", "y z"), ("x y", "Z")], [0, 1, 1])
    found = count_repeats(task, {"train": train})
    assert (found.repeated, found.contradicting) == (1, 2)
    assert found.example is not None
    assert found.example.rows == (1, 3)
    assert found.example.labels == ("no", "yes")


def test_contradictions_count_all_rows_of_the_text_that_are_learnt_from() -> None:
    splits = {
        "train": rows_of(["a", "a", "b"], [0, 0, 1]),
        "selection": rows_of(["a"], [1]),
        "validation": rows_of(["b"], [0]),
    }
    found = count_repeats(SENTIMENT, splits)
    assert (found.repeated, found.contradicting) == (2, 3)


def test_examples_name_the_rows_of_the_file() -> None:
    """Rows that were held out leave gaps, and the numbers are those of the file still."""
    whole = rows_of([f"text {n // 2}" for n in range(40)], [n % 2 for n in range(40)])
    kept, held = hold_out(whole, "single_label", 0.3, 0)
    assert len(held) > 4
    for rows in (kept, held):
        for position in range(len(rows)):
            number = rows.number(position)
            assert rows.texts[position] == whole.texts[number - 1]
            assert rows.labels[position] == whole.labels[number - 1]
    example = count_repeats(SENTIMENT, {"train": kept}).example
    assert example is not None
    first, second = example.rows
    assert whole.texts[first - 1] == whole.texts[second - 1]


def test_lengths_and_cut_rows() -> None:
    train = rows_of(["w " * n for n in range(1, 101)], [n % 2 for n in range(100)])
    tokenized = {
        "train": [row_of(n, 80) for n in range(1, 101)],
        "selection": [row_of(90, 80), row_of(3, 80)],
    }
    splits = {"train": train, "selection": rows_of(["a", "b"], [0, 1])}
    tokens = count_facts(SENTIMENT, splits, tokenized, 80).tokens
    assert tokens.percentiles == {50: 51, 90: 80, 99: 80}
    assert (tokens.longest, tokens.limit) == (80, 80)
    assert tokens.cut == {"train": 0.2, "selection": 0.5}


def test_tokens_of_a_word_leave_special_tokens_and_cut_rows_out() -> None:
    train = rows_of(["one two", "a " * 500], [0, 1])
    tokenized = {"train": [row_of(2 + 6), row_of(500)], "selection": [row_of(3)]}
    splits = {"train": train, "selection": rows_of(["a"], [0])}
    assert count_facts(SENTIMENT, splits, tokenized, 128).tokens.per_word == 3.0


def test_the_constant_answer_is_the_most_frequent_label() -> None:
    train = rows_of(["a", "b", "c"], [1, 1, 0])
    others = rows_of(["d", "e", "f", "g"], [1, 0, 0, 1])
    baseline = facts_of(SENTIMENT, train=train, selection=others, validation=others).baseline
    assert baseline.answer == "good"
    assert set(baseline.metrics) == {"selection", "validation"}
    assert baseline.metrics["validation"]["accuracy"] == 0.5


def test_the_constant_answer_of_a_regression_is_the_mean() -> None:
    train = rows_of(["a", "b"], [1.0, 2.0])
    others = rows_of(["d", "e"], [0.5, 3.5])
    baseline = facts_of(task_of("regression"), train=train, selection=others).baseline
    assert baseline.answer == "1.5"
    assert baseline.metrics["selection"] == {"pearson": 0.0, "mse": 2.5}


def test_the_constant_answer_of_several_labels_is_the_most_frequent_one() -> None:
    task = task_of("multi_label", "x", "y")
    train = rows_of(["a", "b", "c"], [[1, 1], [0, 1], [0, 0]])
    baseline = facts_of(task, train=train, selection=train).baseline
    assert baseline.answer == "y"
    assert baseline.metrics["selection"]["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))


@pytest.mark.parametrize("count", [0, 1, 7, 2000, 2001, 5000])
def test_a_sample_is_spread_and_bounded(count: int) -> None:
    positions = list(sampled(count))
    assert min(count, 1001) <= len(positions) <= 2000
    assert positions == sorted(set(positions))
    assert not positions or positions[-1] >= count - 3
