"""The study's shipped rows are written and read; other files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deltas import DeltaFormatError
from deltas.publish.study import read_study, study_path, write_study
from tests.unit.training.study.test_results import make_run
from training.report import study_row
from training.study.aggregates import make_cells


def test_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    assert read_study(path) == []
    rows = [study_row(cell) for cell in make_cells([make_run(0.5), make_run(0.7, seed=1)])]
    assert [(row.mean, row.seeds, row.split_rows) for row in rows] == [(0.6, 2, 30)]
    assert [(row.machine, row.cpu_seconds, row.peak_bytes) for row in rows] == [("a", None, 10**9)]
    write_study(path, rows)
    assert read_study(path) == rows


@pytest.mark.parametrize("content", ["", "[{}]", "{}", '[{"part": "main"}]'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study.json"
    path.write_text(content)
    with pytest.raises(DeltaFormatError, match=r"study.json: not a study file"):
        read_study(path)


def test_the_shipped_rows_can_be_read() -> None:
    for row in read_study(study_path()):
        assert row.seeds >= 1
        assert row.peak_bytes > 10**6
        assert row.command.startswith("python -m training.fit ")
