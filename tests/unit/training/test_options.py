"""Options of a training run: what they may be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from training.options import DEFAULT_OUT, FitConfig, default_epochs

OWN = {"train_file": "rows.csv", "text_columns": "text", "label_column": "y", "name": "mine"}
HUB = {"dataset": "a/b", "text_columns": "text", "label_column": "y", "name": "mine"}


def test_a_task_is_enough() -> None:
    config = FitConfig(task="rte")
    assert (config.freeze, config.seed, config.reinit, config.out) == (
        "bitfit",
        0,
        "none",
        DEFAULT_OUT,
    )
    assert Path("runs/deltas") == DEFAULT_OUT


def test_rows_of_a_custom_task_are_enough() -> None:
    assert FitConfig.model_validate(OWN).train_file == Path("rows.csv")
    assert FitConfig.model_validate(HUB).train_split_name == "train"
    assert FitConfig.model_validate(HUB | {"train_split": "all"}).train_split_name == "all"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("train_rows", 1),
        ("epochs", 0),
        ("epochs", -1),
        ("epochs", "nan"),
        ("epochs", "inf"),
        ("lr", 0),
        ("lr", "nan"),
        ("lr", "inf"),
        ("head_lr", "inf"),
        ("head_lr", -1),
        ("head_lr", "equal"),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("batch_order", "sorted"),
        ("clip_norm", -1),
        ("clip_norm", "inf"),
        ("warmup", -0.1),
        ("warmup", 1.1),
        ("warmup", "nan"),
        ("weight_decay", -1),
        ("weight_decay", "inf"),
        ("weight_decay", "nan"),
        ("dropout", 1),
        ("dropout", "nan"),
        ("selection_share", 0),
        ("selection_share", 1),
        ("selection_share", "nan"),
        ("max_selection_rows", 0),
        ("evals", 0),
        ("seed", -1),
        ("max_length", 7),
        ("precision", "fp16"),
        ("device", "tpu"),
        ("reinit", "some"),
        ("surprise", 1),
    ],
)
def test_values_out_of_range(name: str, bad: object) -> None:
    with pytest.raises(ValidationError) as caught:
        FitConfig.model_validate({"task": "rte", name: bad})
    assert {problem["loc"][0] for problem in caught.value.errors()} == {name}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give either --task for a GLUE task, or --train-file"),
        ({"task": "rte"} | OWN, "give either --task"),
        ({"train_file": "x.csv"}, "--train-file needs --text-columns, --label-column, --name"),
        ({k: v for k, v in OWN.items() if k != "name"}, "--train-file needs --name"),
        ({"task": "rte", "name": "x"}, "--name goes with --train-file"),
        ({"task": "rte", "label_column": "x"}, "--label-column goes with --train-file"),
        ({"task": "rte", "validation_file": "x"}, "--validation-file goes with --train-file"),
        ({"task": "rte", "kind": "regression"}, "--kind goes with --train-file"),
        (OWN | {"data": "hub"}, "--data is the source of GLUE tasks"),
        ({}, "or --train-file or --dataset for your own rows"),
        (OWN | HUB, "give either --task"),
        ({"task": "rte"} | HUB, "give either --task"),
        ({"dataset": ""}, "give either --task"),
        ({"dataset": "a/b"}, "--dataset needs --text-columns, --label-column, --name"),
        (HUB | {"data": "hub"}, "GLUE tasks; it does not go with --dataset"),
        (HUB | {"validation_file": "x"}, "--validation-file goes with --train-file"),
        (OWN | {"train_split": "x"}, "--train-split goes with --dataset"),
        ({"task": "rte", "validation_split": "x"}, "--validation-split goes with --dataset"),
        ({"task": "rte", "kind": "regression"}, "--kind goes with --train-file or --dataset"),
        (HUB | {"validation_split": "train"}, "train is the split to train on; name another"),
        (HUB | {"train_split": "a", "validation_split": "a"}, "a is the split to train on"),
    ],
)
def test_options_that_do_not_go_together(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        FitConfig.model_validate(given)


@pytest.mark.parametrize(
    ("rows", "tokens_a_row", "epochs"),
    [
        (1, 20, 20),
        (1000, 20, 20),  # small tasks settle
        (5000, 30, 6),
        (2490, 70, 5.164),
        (8551, 4, 11.695),  # the steps of short rows cost time, too
        (10**6, 30, 0.03),
    ],
)
def test_epochs_follow_the_number_of_tokens(rows: int, tokens_a_row: int, epochs: float) -> None:
    assert default_epochs(rows, rows * tokens_a_row) == epochs
    assert default_epochs(rows, rows * tokens_a_row, head_only=True) == 40


def test_every_option_is_explained() -> None:
    for name, field in FitConfig.model_fields.items():
        assert field.description, name
        assert len(field.description) < 100
