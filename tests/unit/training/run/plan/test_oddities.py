"""Sentences about odd rows: each is said where it is true, and not about sound rows."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import pytest

from tests.unit.training.run.plan.test_facts import facts_of, row_of, rows_of, task_of
from training.data.rows import Rows
from training.data.tasks import Task
from training.run.plan.facts import count_facts
from training.run.plan.oddities import _is_typo, find_oddities

WORDS = ("the", "film", "actor", "was", "and", "very", "long", "short", "in", "with", "music", "it")


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Return different sentences."""
    draw = random.Random(seed)
    return [f"{' '.join(draw.choices(WORDS, k=8))} s{seed} n{n}" for n in range(count)]


def told(task: Task, train: Rows, validation: Rows | None = None) -> list[str]:
    """Return the oddities of train rows; the selection rows are sound."""
    some = train.take(range(0, len(train), 9))
    selection = Rows([(text,) for text in texts_of(len(some), 99)], some.labels)
    splits = {"train": train, "selection": selection}
    if validation is not None:
        splits["validation"] = validation
    return find_oddities(facts_of(task, **splits), splits)


def labelled(counts: dict[str, int]) -> tuple[Task, Rows]:
    """Return a single-label task and shuffled rows with so many of each label."""
    labels = [code for code, count in enumerate(counts.values()) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return task_of("single_label", *counts), rows_of(texts_of(len(labels)), labels)


def only(sentences: Iterable[str]) -> str:
    """Return the one sentence that there is."""
    (sentence,) = sentences
    return sentence


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("single_label", [n % 2 if n % 7 else 0 for n in range(300)]),
        ("multi_label", [[n % 2, (n // 2) % 2] for n in range(300)]),
        ("regression", [((n * 37) % 50) / 10 for n in range(300)]),
    ],
)
def test_sound_rows_are_not_odd(kind: str, labels: list[Any]) -> None:
    names = () if kind == "regression" else ("first class", "second class")
    rows = rows_of(texts_of(300), labels)
    assert told(task_of(kind, *names), rows, rows_of(texts_of(300, 1), labels)) == []


def test_ids_as_labels() -> None:
    task, rows = labelled({f"id{n}": 2 for n in range(40)})
    sentence = only(told(task, rows))
    assert sentence.startswith("40 labels for 89 rows look like ids")
    assert "--label-column" in sentence


def test_rare_labels_are_named() -> None:
    task, rows = labelled({"often": 100, "also often": 90, "seldom": 3})
    sentence = only(told(task, rows))
    assert sentence.startswith("1 of 3 labels has fewer than 8 train rows (the fewest: 3)")
    assert "'seldom'" in sentence


def test_imbalance_names_the_flag() -> None:
    task, rows = labelled({"no": 1000, "yes": 10})
    sentence = only(told(task, rows))
    assert sentence.startswith("label 'no' has 1,000 train rows and 'yes' has 10, 100 times fewer")
    assert "--class-weights balanced" in sentence
    assert told(*labelled({"no": 500, "yes": 12})) == []


def test_a_misspelled_label() -> None:
    task, rows = labelled({"positive": 200, "negative": 200, "postive": 9})
    sentence = only(told(task, rows))
    assert sentence.startswith("label 'postive' (9 rows) looks like a misspelling of 'positive'")


@pytest.mark.parametrize(
    "counts",
    [
        {"size 10": 200, "size 11": 9},  # digits differ
        {"cat": 200, "car": 9},  # short
        {"positive": 200, "postive": 150},  # as frequent as the other
    ],
)
def test_labels_that_differ_for_good_reasons_are_not_misspelled(counts: dict[str, int]) -> None:
    assert told(*labelled(counts)) == []


@pytest.mark.parametrize(
    ("one", "other", "is_typo"),
    [
        ("positive", "postive", True),
        ("postive", "positive", True),
        ("positive", "positvie", True),
        ("positive", "pozitive", True),
        ("positive", "positives", True),
        ("positive", "positive", False),
        ("positive", "negative", False),
        ("positive", "posit", False),
        ("ab", "ba", True),
    ],
)
def test_one_letter_makes_a_misspelling(one: str, other: str, is_typo: bool) -> None:
    assert _is_typo(one, other) is is_typo


def test_integers_read_as_names_have_a_second_reading() -> None:
    task, rows = labelled({str(grade): 40 for grade in range(1, 6)})
    sentence = only(told(task, rows))
    assert sentence.startswith("the labels are 5 integers from 1 to 5, read as names")
    assert "--kind regression" in sentence
    assert told(*labelled({"0": 40, "1": 40})) == []


def test_several_labels_of_which_each_row_has_one() -> None:
    rows = rows_of(texts_of(60), [[1, 0], [0, 1]] * 30)
    assert "--kind single_label" in only(told(task_of("multi_label", "x", "y"), rows))


def test_a_label_of_all_rows() -> None:
    rows = rows_of(texts_of(60), [[1, n % 2] for n in range(60)])
    assert only(told(task_of("multi_label", "x", "y"), rows)).startswith("every train row has 'x'")


def test_rows_without_any_label() -> None:
    rows = rows_of(texts_of(60), [[int(n % 3 == 0), int(n % 6 == 0)] for n in range(60)])
    sentence = only(told(task_of("multi_label", "x", "y"), rows))
    assert sentence.startswith("67 % of the train rows have no label at all")


def test_two_numbers_may_be_two_classes() -> None:
    rows = rows_of(texts_of(60), [0.0, 1.0] * 30)
    assert "--kind single_label" in only(told(task_of("regression"), rows))


def test_a_number_far_from_the_others_is_named_with_its_row() -> None:
    numbers = [((n * 37) % 50) / 10 for n in range(300)]
    numbers[41] = 9999.0
    sentence = only(told(task_of("regression"), rows_of(texts_of(300), numbers)))
    assert sentence.startswith("row 42 has the number 9999, far from the others")


def test_validation_rows_that_are_trained_on() -> None:
    task, rows = labelled({"no": 300, "yes": 300})
    new = rows_of(texts_of(120, 3), [n % 2 for n in range(120)])
    labels = [int(label) for part in (rows.take(range(80)), new) for label in part.labels]  # type: ignore[arg-type]
    mixed = Rows(rows.texts[:80] + new.texts, labels)
    sentence = only(told(task, rows, mixed))
    assert sentence.startswith("40 % of the validation rows (80 of 200) have a text that is also")


def test_contradicting_rows_are_shown_with_an_example() -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    other = next(n for n in range(1, 200) if rows.labels[n] != rows.labels[0])
    rows.texts[other] = rows.texts[0]
    sentence = only(told(task, rows))
    assert f"(rows 1 and {other + 1}: " in sentence
    assert sentence.startswith("2 rows have a text that occurs with another label, too")


def test_repeated_rows() -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    twice = rows.take([*range(200), *range(50)])
    assert "% of the rows to learn from repeat" in only(told(task, twice))


def test_empty_texts() -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    rows.texts[7] = (" ",)
    assert only(told(task, rows)).startswith("1 train rows have an empty text")


@pytest.mark.parametrize(("limit", "advice"), [(128, "--max-length"), (512, "split the texts")])
def test_cut_rows(limit: int, advice: str) -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    splits = {"train": rows, "selection": rows_of(["x"], [0])}
    lengths = {split: [row_of(limit + 1, limit)] * len(part) for split, part in splits.items()}
    sentence = only(find_oddities(count_facts(task, splits, lengths, limit), splits))
    assert sentence.startswith(f"100 % of the train rows are longer than {limit} tokens")
    assert advice in sentence


def test_words_that_the_vocabulary_does_not_know() -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    splits = {"train": rows, "selection": rows_of(["x"], [0])}
    lengths = {split: [row_of(32)] * len(part) for split, part in splits.items()}
    sentence = only(find_oddities(count_facts(task, splits, lengths, 128), splits))
    assert sentence.startswith("the texts need 3.0 tokens a word")
    assert "--backbone" in sentence


def test_few_validation_rows() -> None:
    task, rows = labelled({"no": 100, "yes": 100})
    validation = rows_of(texts_of(30, 3), [n % 2 for n in range(30)])
    sentence = only(told(task, rows, validation))
    assert sentence.startswith("30 validation rows are few")
    assert "up to 18 percentage points" in sentence


def test_validation_rows_that_are_labelled_otherwise() -> None:
    task, rows = labelled({"no": 100, "yes": 300})
    validation = rows_of(texts_of(250, 3), [0] * 225 + [1] * 25)
    sentence = only(told(task, rows, validation))
    assert "label 'yes' has 75 % of the train rows and 10 % of the validation rows" in sentence


def test_sorted_labels() -> None:
    task = task_of("single_label", "no", "yes")
    rows = rows_of(texts_of(300), [0] * 150 + [1] * 150)
    assert only(told(task, rows)).startswith("the train rows are sorted by label ('no' first)")


def test_few_numbers_with_fractions_have_a_second_reading() -> None:
    rows = rows_of(texts_of(90), [1.1, 1.2, 2.5] * 30)
    sentence = only(told(task_of("regression"), rows))
    assert sentence.startswith("only 3 different numbers occur: 1.1, 1.2, 2.5; if they name cla")
    assert "--kind single_label" in sentence


def test_validation_numbers_on_another_scale() -> None:
    train = rows_of(texts_of(300), [((n * 37) % 50) / 10 for n in range(300)])
    percents = rows_of(texts_of(300, 1), [float((n * 37) % 100) for n in range(300)])
    sentence = only(told(task_of("regression"), train, percents))
    assert sentence == (
        "the numbers of the validation rows are from 0 to 99, half of them outside of those of the "
        "train rows, 0 to 4.9; write both on the same scale"
    )


def test_many_labels_of_few_rows_are_not_sorted() -> None:
    task, rows = labelled({f"day {n}": 1 + n % 2 for n in range(200)})
    sentences = told(task, rows, rows.take(range(0, 300, 4)))
    assert not any("sorted by label" in sentence for sentence in sentences)
    assert not any("drawn otherwise" in sentence for sentence in sentences)
