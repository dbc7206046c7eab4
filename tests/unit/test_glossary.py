"""What the page says about tasks, metrics and strategies; names it doesn't know pass unharmed."""

from __future__ import annotations

import pytest

from frontend.glossary import label_words, metric_words, strategy_words, task_words
from training.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_each_glue_task_introduces_itself(name: str) -> None:
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
        ("bitfit+top:1", ""),
        ("something-new", ""),
    ],
)
def test_a_strategy_says_what_it_trains(strategy: str, words: str) -> None:
    assert strategy_words(strategy) == words
