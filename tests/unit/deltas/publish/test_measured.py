"""The shipped numbers beside the study are read, each with its source; other files are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deltas import DeltaFormatError
from deltas.publish.measured import Measured, measured_path, read_measured
from tests.bench.quality.report import served_rows
from tests.bench.quality.results import Variant, read_runs
from tests.unit.training.study.test_results import make_run
from training.report import curve_rows
from training.study.aggregates import make_cells
from training.study.results import History

ROOT = Path(__file__).parents[4]


def test_the_shipped_numbers_name_source_and_command() -> None:
    found = read_measured(measured_path())
    assert found.quality
    assert found.earlier
    assert found.curves
    for source in (found.quality_source, found.earlier_source, found.curves_source):
        assert (ROOT / source).is_file()
    assert all(row.command.startswith("python -m ") for row in found.quality)
    with_delta = [row for row in found.quality if row.size_bytes]
    assert {"head", "bitfit"} <= {row.method for row in with_delta}
    assert not any(row.trainable_parameters is None for row in with_delta)


def test_a_row_is_the_mean_of_its_seeds() -> None:
    (run, *_) = read_runs(ROOT / "docs/performance/quality.jsonl").values()
    scores = {run.dev_split: {run.metric: 0.5}}
    other = run.model_copy(update={"seed": 7, "scores": scores, "key": "other"})
    (row,) = served_rows([run, other], Variant())
    assert row.mean == pytest.approx((run.score + 0.5) / 2, abs=1e-6)
    assert row.seeds == 2
    assert row.spread is not None
    (alone,) = served_rows([run], Variant())
    assert (alone.spread, alone.seeds) == (None, 1)


def test_a_curve_is_the_median_of_its_seeds() -> None:
    (cell,) = make_cells([make_run(seed=seed) for seed in range(3)])
    steps = (10, 20)
    for seed, outcome in list(cell.outcomes.items()):
        metric = (0.1 * seed, 0.5 + 0.1 * seed)
        history = History(step=steps, train_loss=(1.0, 1.0), loss=(1.0, 1.0), metric=metric)
        cell.outcomes[seed] = outcome.model_copy(update={"history": history})
    (row,) = curve_rows([cell])
    assert (row.step, row.median) == ([10, 20], [0.1, 0.6])
    assert (row.low, row.high, row.seeds) == ([0.0, 0.5], [0.2, 0.7], 3)
    cell.outcomes[2] = cell.outcomes[2].model_copy(update={"history": History()})
    assert curve_rows([cell])[0].seeds == 2, "a seed with other steps is left out"
    assert curve_rows([replace(cell, part="zoo")]) == []


@pytest.mark.parametrize("content", ["", "[]", '{"quality": [{}]}', '{"more": 1}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "measured.json"
    assert read_measured(path) == Measured()
    path.write_text(content)
    with pytest.raises(DeltaFormatError, match="not a file of measured numbers"):
        read_measured(path)
