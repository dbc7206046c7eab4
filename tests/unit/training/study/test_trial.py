"""One run of a sweep: the command that repeats it, and what a stopped sweep finds of it."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.unit.training.study.test_results import outcome
from training.fit import parse_arguments
from training.options import FitConfig
from training.run.loop.loop import Progress
from training.study import trial
from training.study.results import History, RunOutcome
from training.study.trial import OUTCOME, Recorder, Trial, fit_command, run_outcome


@pytest.mark.parametrize("init_head", [True, False])
def test_the_command_is_understood_and_states_the_same_options(*, init_head: bool) -> None:
    options = {
        "task": "rte",
        "freeze": "bitfit:query,intermediate",
        "init_from": "a folder/mnli.safetensors",
        "init_head": init_head,
        "lr": 0.002,
        "seed": 3,
    }
    program, *words = shlex.split(fit_command(options))[1:]
    assert program == "-m"
    assert parse_arguments(words[1:]) == FitConfig.model_validate(options)


@pytest.mark.parametrize("freeze", ["bitfit", "head"])
def test_a_run_keeps_its_evaluations_even_if_it_takes_no_step(
    tiny_backbone_dir: Path, tmp_path: Path, freeze: str
) -> None:
    """A head that is solved takes none."""
    options: dict[str, Any] = {"task": "rte", "freeze": freeze, "train_rows": 60, "max_length": 16}
    options["backbone"] = str(tiny_backbone_dir)
    if freeze != "head":
        options |= {"epochs": 1.0, "evals": 2}
    found = run_outcome(Trial(options, "sample", tmp_path, threads=1, workers=1))
    assert len(found.history.step) == (0 if freeze == "head" else 2)
    assert (found.steps == 0) == (freeze == "head")
    assert not found.resumed


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FitConfig]:
    """Stands in for the training; lists what was asked for."""
    asked: list[FitConfig] = []

    def fit(config: FitConfig, **_: Any) -> tuple[Path, Any]:
        asked.append(config)
        training = SimpleNamespace(data=config.data)
        return tmp_path, SimpleNamespace(manifest=SimpleNamespace(training=training))

    def made(delta: Any, *_: Any) -> RunOutcome:
        source = "sample" if delta.manifest.training.data == "sample" else "folder"
        return outcome(0.5, 0.5).model_copy(update={"data": source})

    monkeypatch.setattr(trial, "train_delta", fit)
    monkeypatch.setattr(trial, "_outcome", made)
    return asked


def run_of(folder: Path, data: str = "glue") -> Trial:
    return Trial({"task": "rte", "freeze": "bitfit"}, data, folder, threads=1, workers=1)


def test_an_outcome_that_was_not_recorded_is_picked_up(
    fitted: list[FitConfig], tmp_path: Path
) -> None:
    first = run_outcome(run_of(tmp_path))
    assert run_outcome(run_of(tmp_path)) == first
    assert len(fitted) == 1, "a run that was finished was made again"
    (tmp_path / OUTCOME).unlink()
    run_outcome(run_of(tmp_path))
    assert len(fitted) == 2


@pytest.mark.parametrize(("first", "second"), [("sample", "glue"), ("glue", "sample")])
def test_an_outcome_on_other_rows_is_not_picked_up(
    fitted: list[FitConfig], tmp_path: Path, first: str, second: str
) -> None:
    run_outcome(run_of(tmp_path, first))
    assert (run_outcome(run_of(tmp_path, second)).data == "sample") == (second == "sample")
    assert len(fitted) == 2


def test_a_kept_outcome_that_cannot_be_read_is_made_again(
    fitted: list[FitConfig], tmp_path: Path
) -> None:
    run_outcome(run_of(tmp_path))
    (kept,) = tmp_path.glob("*.json")
    kept.write_text("{}")
    run_outcome(run_of(tmp_path))
    assert len(fitted) == 2


def test_a_folder_that_can_not_be_made_is_an_error_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The new process would run the script of a page that was tested before.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    (tmp_path / "file").touch()
    reader, writer = multiprocessing.Pipe(duplex=False)
    script = run_of(tmp_path / "file" / "run")
    process = multiprocessing.get_context("spawn").Process(
        target=trial.run_trial, args=(script, writer)
    )
    process.start()
    writer.close()
    message = json.loads(reader.recv_bytes())
    process.join()
    reader.close()
    assert message == {"error": f"{tmp_path}/file/run: Not a directory"}


@pytest.mark.parametrize("cut", [b"[2, 1.5, 0.7, 0.5", b""])
def test_a_line_of_the_history_that_was_cut_off_is_left_out(cut: bytes, tmp_path: Path) -> None:
    """On a full disk or after a crash the file ends anywhere."""
    path = tmp_path / "history.jsonl"
    path.write_bytes(cut)
    recorder = Recorder(path)
    assert recorder.history() == History()
    recorder(Progress(2, 2.0, 0.5, {"loss": 0.7}))
    assert recorder.history() == History(step=(2,), train_loss=(2.0,), loss=(0.7,), metric=(0.5,))
