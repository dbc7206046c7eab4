"""The file of a run's delta: two runs for one file, and files that come from elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deltas import Backbone, read_delta, write_delta
from tests.factories import TOY_TASKS, make_delta
from training.errors import ConfigError, TrainingError
from training.run.loop.output import reserve, write_result


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
