"""The zoo's trainer: a finished run stands only for the very options that it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Delta, TaskSpec, write_delta
from training import zoo
from training.zoo import Cell


def test_other_options_are_another_run(tmp_path: Path) -> None:
    cells = [Cell("rte", "head", 5.0), Cell("rte", "head", 6.0), Cell("rte", "bitfit", 5.0)]
    paths = {
        zoo._finished(cell, rate, seed, tmp_path)
        for cell in cells
        for rate in (0.002, 0.006)
        for seed in (0, 1)
    }
    assert len(paths) == 12


def test_a_delta_of_the_generated_sample_never_enters_the_zoo(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> None:
    cell = Cell("rte", "head", 5.0)
    delta = make_delta(tiny_backbone, toy_tasks["toy2"], "head")
    training = delta.manifest.training.model_copy(update={"data": "sample"})
    manifest = delta.manifest.model_copy(update={"training": training})
    path = zoo._finished(cell, 0.002, 0, tmp_path)
    write_delta(Delta(**(vars(delta) | {"manifest": manifest})), path)
    with pytest.raises(SystemExit, match="trained on the generated sample; set GLUE_DIR"):
        zoo._run(cell, 0.002, 0, tmp_path)


def test_strategies_of_a_task_have_equal_epochs() -> None:
    """Heads aside, which train on features computed once."""
    for task in {cell.task for cell in zoo.CELLS}:
        cells = [cell for cell in zoo.CELLS if cell.task == task and cell.strategy != "head"]
        assert len({cell.epochs for cell in cells}) == 1
