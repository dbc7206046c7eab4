"""The files of a run: two runs for one delta, files from elsewhere, predictions without texts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deltas import Backbone, read_delta, write_delta
from deltas.store.predictions import predictions_path
from tests.factories import TOY_TASKS, make_delta
from training.data.rows import Rows
from training.errors import ConfigError, DataError, TrainingError
from training.run.output import (
    PredictedSplit,
    read_predictions,
    reserve,
    write_predictions,
    write_result,
)


@pytest.mark.parametrize(
    ("labels", "outputs"), [([1, 0, 1], 2), ([0.5, 1.0, -2.0], 1), ([[1, 0], [0, 0], [1, 1]], 2)]
)
def test_predictions_are_read_back_and_hold_no_text(
    tmp_path: Path, labels: list[object], outputs: int
) -> None:
    rows = Rows([("secret one",), ("secret two",), ("secret three",)], labels)  # type: ignore[arg-type]
    logits = torch.randn(3, outputs, generator=torch.Generator().manual_seed(0))
    held = rows.take([2, 0])
    path = predictions_path(tmp_path / "random-0.001.safetensors")
    assert path.name == "random-0.001.predictions.parquet"
    parts = [PredictedSplit("selection", held, logits[:2]), PredictedSplit("dev", rows, logits)]
    write_predictions(path, parts)
    numbers, gold, found = read_predictions(path, "selection")
    assert (numbers, gold) == ([3, 1], [labels[2], labels[0]])
    assert torch.equal(found, logits[:2])
    assert read_predictions(path, "dev")[0] == [1, 2, 3]
    assert pq.read_schema(path).names == ["split", "row", "gold", "logits"]
    assert b"secret" not in path.read_bytes()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _other_columns(path: Path) -> None:
    pq.write_table(pa.table({"split": ["dev"], "row": [1]}), path)


def _ragged(path: Path) -> None:
    facts = {"split": ["dev"] * 2, "row": [1, 2], "gold": [0, 1], "logits": [[1.0], [1.0, 2.0]]}
    pq.write_table(pa.table(facts), path)


def _without_a_number(path: Path) -> None:
    facts = {"split": ["dev"], "row": [None], "gold": [0], "logits": [[1.0]]}
    pq.write_table(pa.table(facts), path)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "no sound file"),
        (_cut, "no sound file"),
        (lambda path: path.write_bytes(b"x"), "no sound file"),
        (_other_columns, "no sound file .*gold"),
        (_ragged, "no sound file"),
        (_without_a_number, "rows have a number|row needs a number"),
        (lambda path: None, "no predictions of a split 'dev'"),
    ],
    ids=["gone", "cut", "other", "columns", "ragged", "null", "split"],
)
def test_a_file_that_holds_no_predictions_is_a_data_error(
    tmp_path: Path, spoil: Callable[[Path], object], problem: str
) -> None:
    """Each of them was an error of a library, most of which named no file."""
    path = tmp_path / "bitfit.predictions.parquet"
    write_predictions(path, [PredictedSplit("test", Rows([("a",)], [0]), torch.zeros(1, 2))])
    spoil(path)
    with pytest.raises(DataError, match=problem) as caught:
        read_predictions(path, "dev")
    assert caught.value.path == path


def test_the_second_run_for_a_file_is_told_before_it_trains(tmp_path: Path) -> None:
    """Both used to train, and the result of one was lost without a word."""
    path = tmp_path / "task" / "bitfit.safetensors"
    told: list[str] = []

    def second() -> None:
        try:
            with reserve(path, overwrite=True):
                told.append("trained")
        except ConfigError as error:
            told.append(str(error))

    with reserve(path, overwrite=False):
        other = threading.Thread(target=second)
        other.start()
        other.join()
    assert told == [f"another run is at work on {path}; wait for it, or give another --out"]
    with reserve(path, overwrite=False):
        pass
    assert list(path.parent.iterdir()) == []


def test_a_file_that_came_since_the_run_was_prepared_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bitfit.safetensors"
    path.write_bytes(b"other")
    with (
        pytest.raises(ConfigError, match="exists; give --overwrite"),
        reserve(path, overwrite=False),
    ):
        pytest.fail("trained")
    assert path.read_bytes() == b"other"
    with reserve(path, overwrite=True):
        pass


def test_a_file_that_comes_during_the_run_costs_no_result(
    tmp_path: Path, tiny_backbone: Backbone
) -> None:
    path = tmp_path / "bitfit.safetensors"
    first, second = (make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", seed) for seed in (1, 2))
    theirs = write_delta(first, path)
    with pytest.raises(TrainingError, match="by another program during the run; the result is in"):
        write_result(second, path, overwrite=False)
    (beside,) = set(tmp_path.iterdir()) - {path}
    assert read_delta(path).version == theirs.version
    assert read_delta(beside).version == write_result(second, path, overwrite=True).version
    assert read_delta(path).version == read_delta(beside).version
