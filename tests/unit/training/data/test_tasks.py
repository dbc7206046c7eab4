"""The task table agrees with real GLUE rows, and with the rest of the project."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deltas import TaskSpec
from training.data.tasks import TASKS, find_task
from training.errors import TaskError
from training.run.evaluation import METRICS

GLUE_ORDER = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]

# Texts can't be in this repository, counts can: how often each code occurs in published dev sets.
# A permuted label table would show up as permuted counts.
DEV_COUNTS = {
    "cola": {"unacceptable": 322, "acceptable": 721},
    "sst2": {"negative": 428, "positive": 444},
    "mrpc": {"not_equivalent": 129, "equivalent": 279},
    "mnli": {"entailment": 3479, "neutral": 3123, "contradiction": 3213},
    "qnli": {"entailment": 2702, "not_entailment": 2761},
    "rte": {"entailment": 146, "not_entailment": 131},
    "wnli": {"not_entailment": 40, "entailment": 31},
}


def test_the_nine_tasks_of_glue() -> None:
    assert list(TASKS) == GLUE_ORDER


@pytest.mark.parametrize("name", GLUE_ORDER)
def test_a_task_makes_a_valid_spec(name: str) -> None:
    task = TASKS[name]
    spec = TaskSpec(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        text_fields=task.text_fields,
        max_length=128,
    )
    assert spec.num_outputs == max(1, len(task.labels))
    assert set(task.metrics) <= set(METRICS)
    assert task.primary_metric == task.metrics[0]
    assert set(task.canonical_rows) == {task.train_split, *task.validation_splits}


def test_metrics_are_those_of_glue() -> None:
    assert TASKS["cola"].metrics == ("matthews",)
    assert TASKS["stsb"].metrics == ("pearson", "spearman")
    assert TASKS["mrpc"].metrics == TASKS["qqp"].metrics == ("accuracy", "f1")
    for name in ("sst2", "mnli", "qnli", "rte", "wnli"):
        assert TASKS[name].metrics == ("accuracy",)


def test_mnli_is_evaluated_on_both_validation_sets() -> None:
    assert TASKS["mnli"].validation_splits == ("validation_matched", "validation_mismatched")


def test_f1_counts_the_positive_class_of_mrpc_and_qqp() -> None:
    assert TASKS["mrpc"].labels[1] == "equivalent"
    assert TASKS["qqp"].labels[1] == "duplicate"


def test_an_unknown_task_is_an_error_with_near_matches() -> None:
    with pytest.raises(TaskError, match=r"unknown task 'sst-2'. Did you mean 'sst2'") as caught:
        find_task("sst-2")
    assert caught.value.suggestions[0] == "sst2"
    assert caught.value.available == GLUE_ORDER
    assert "--train-file" in str(caught.value)


def test_a_name_like_no_task_gets_the_list_only() -> None:
    with pytest.raises(TaskError, match="Available: cola, sst2") as caught:
        find_task("zzzzzz")
    assert caught.value.suggestions == []


@pytest.mark.parametrize("name", GLUE_ORDER)
def test_columns_are_those_of_the_real_files(name: str, glue_dir: Path) -> None:
    task = TASKS[name]
    for split in (task.train_split, *task.validation_splits):
        names = pq.read_schema(glue_dir / name / f"{split}.parquet").names
        assert names == [*task.text_fields, "label", "idx"]


@pytest.mark.parametrize("name", sorted(DEV_COUNTS))
def test_label_codes_are_those_of_the_real_files(name: str, glue_dir: Path) -> None:
    task = TASKS[name]
    table = pq.read_table(glue_dir / name / f"{task.validation_splits[0]}.parquet")
    assert table.num_rows == task.canonical_rows[task.validation_splits[0]]
    codes = table["label"].to_pylist()
    counts = {label: codes.count(code) for code, label in enumerate(task.labels)}
    assert counts == DEV_COUNTS[name]


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("mrpc", "equivalent"),
        ("qqp", "duplicate"),
        ("rte", "entailment"),
        ("qnli", "entailment"),
        ("mnli", "entailment"),
    ],
)
def test_the_label_that_means_alike_has_most_words_in_common(
    name: str, same: str, glue_dir: Path
) -> None:
    """Counts can't tell two labels apart that occur equally often; what the texts share can."""
    task = TASKS[name]
    table = pq.read_table(glue_dir / name / f"{task.validation_splits[0]}.parquet")
    first, second = (table[field].to_pylist() for field in task.text_fields)
    shared: dict[str, list[float]] = {label: [] for label in task.labels}
    for one, two, code in zip(first, second, table["label"].to_pylist(), strict=True):
        words, others = set(one.lower().split()), set(two.lower().split())
        shared[task.labels[code]].append(
            len(words & others) / max(1, min(map(len, (words, others))))
        )
    means = {label: sum(values) / len(values) for label, values in shared.items()}
    assert max(means, key=means.__getitem__) == same


def test_regression_labels_stay_in_their_range(glue_dir: Path) -> None:
    values = pq.read_table(glue_dir / "stsb" / "train.parquet")["label"].to_pylist()
    assert TASKS["stsb"].value_range == (min(values), max(values)) == (0.0, 5.0)
