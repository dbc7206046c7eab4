"""Numbers and verdicts as the page writes them.

What the page says about tasks, metrics and strategies; names it doesn't know pass unharmed.
"""

from __future__ import annotations

import pytest

from frontend.glossary import (
    Scale,
    counted,
    disagreement,
    human_bytes,
    label_words,
    literal,
    metric_words,
    milliseconds,
    percent,
    probability,
    strategy_words,
    task_words,
)
from frontend.models import Prediction
from training.data.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_each_glue_task_has_words(name: str) -> None:
    words = task_words(name)
    assert words.title.lower().replace("-", "") == name
    assert words.question.endswith("?")
    assert words.heading == f"{words.title} · {words.topic}"
    assert all(metric_words(metric) for metric in TASKS[name].metrics)


def test_an_unknown_task_has_its_plain_name() -> None:
    assert task_words("my-task").heading == "my-task"
    assert task_words("my-task").question == ""


def test_metrics_and_labels_are_read_aloud() -> None:
    assert metric_words("matthews") == "Matthews correlation"
    assert metric_words("top_5_accuracy") == "Top 5 accuracy"
    assert label_words("not_entailment") == "not entailment"


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("bitfit", "all biases and the head"),
        ("bitfit:intermediate,query", "the biases of intermediate, query and the head"),
        ("random:0.001", "a random 0.1 % of all parameters and the head"),
        ("random:lots", "a random share of all parameters and the head"),
        ("top:2", "the uppermost layers and the head"),
        ("fisher:0.001", "the values with the largest Fisher information and the head"),
        (
            "gem:0.001",
            "the values with the largest gradient in proportion to their size, and the head",
        ),
        ("bitfit+top:1", ""),
        ("something-new", ""),
    ],
)
def test_a_strategy_says_what_it_trains(strategy: str, words: str) -> None:
    assert strategy_words(strategy) == words


def test_text_from_outside_is_not_read_as_markdown() -> None:
    assert literal("![x](http://a/b.png) :red[y] $z$") == (
        r"\!\[x\]\(http\://a/b.png\) \:red\[y\] \$z\$"
    )


SCALE = Scale(0.0, 5.0, "unrelated", "same meaning")


def prediction(labels: tuple[str, ...] = (), value: float | None = None) -> Prediction:
    kind = "regression" if value is not None else "single_label"
    scores = dict.fromkeys(labels, 0.9)
    return Prediction("task", "bitfit", "0" * 16, kind, labels, scores, value, truncated=False)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KB"),
        (4_240, "4.2 KB"),
        (102_400, "102 KB"),
        (999_999, "1.0 MB"),
        (90_868_376, "91 MB"),
        (2_100_000_000, "2.1 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (1e-9, "<0.001 %"),
        (0.0000339, "0.0034 %"),
        (0.00112, "0.11 %"),
        (0.034, "3.4 %"),
        (0.0996, "10 %"),
        (0.42, "42 %"),
        (1, "100 %"),
    ],
)
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (0.0001, "<1 %"), (0.005, "0 %"), (0.5, "50 %"), (0.9999, ">99 %"), (1, "100 %")],
)
def test_probability(value: float, text: str) -> None:
    assert probability(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.4, "0 ms"), (41.6, "42 ms"), (1_234, "1.2 s")])
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds(value) == text


def test_equal_labels_agree() -> None:
    assert disagreement([prediction(("a",)), prediction(("a",))], None) == ""
    assert disagreement([prediction(("a", "b")), prediction(("b", "a"))], None) == ""
    assert disagreement([prediction(("a",))], None) == ""
    assert disagreement([], None) == ""


def test_different_labels_disagree_and_are_counted() -> None:
    found = [prediction((label,)) for label in "abaaca"]
    assert disagreement(found, None) == "Strategies disagree 4 : 1 : 1"
    assert disagreement([prediction(()), prediction(("a",))], None) == "Strategies disagree 1 : 1"


def test_values_disagree_when_far_apart_on_their_scale() -> None:
    near = [prediction(value=2.0), prediction(value=2.5)]
    far = [prediction(value=2.0), prediction(value=2.51), prediction(value=2.2)]
    assert disagreement(near, SCALE) == ""
    assert disagreement(far, SCALE) == "Strategies differ by 0.51"
    assert disagreement(far, None) == "", "without a scale nothing is far apart"


def test_numbers_have_the_right_noun() -> None:
    assert [counted(number, "task") for number in (0, 1, 2, 1000)] == [
        *("0 tasks", "1 task", "2 tasks", "1,000 tasks")
    ]
