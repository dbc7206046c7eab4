"""`deltabert predict --ray`: the same bytes as without it, whatever is killed on the way."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from app.engine.tuning import installed_version
from app.pipeline import __main__ as command_line
from app.pipeline.bulk.cluster import EnginePlan, reason_of
from app.pipeline.bulk.files import FileError, input_files
from app.pipeline.bulk.local import LocalAnswers
from app.pipeline.bulk.part import FileProgress
from app.pipeline.bulk.run import BulkOptions, FileRun, open_engine
from deltas import Backbone, Store
from tests.integration.app.test_predict_command import Command, write_files
from tests.ray_processes import WINDOW, ray_processes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files with bad rows, one of them shorter than a window."""
    return write_files(tmp_path / "rows", (4200, 50, 2100), {7: '7,"never closed', 9: "9,"})


@pytest.mark.slow
def test_a_worker_and_the_command_are_killed_and_nothing_is_lost_or_doubled(
    tiny_backbone_dir: Path,
    tiny_deltas: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests on the machine would starve them
    command = Command(tiny_backbone_dir, tiny_deltas)
    given = [str(folder), "--task", "toy2"]
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    code, _, err = command.run(*given, "--output", str(whole))
    assert code == 0, err

    journal = tmp_path / "out.csv.part.json"
    process = command.start(*given, "--output", str(output))
    wait_until(lambda: rows_of(journal) > 0, process)
    process.kill()
    process.communicate(timeout=60)
    assert not output.exists()

    process = command.start(*given, "--output", str(output), "--ray")
    wait_until(lambda: ray_processes(process.pid, WINDOW), process)
    kill_a_worker(process)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said.decode()
    assert b"going on behind" in said
    assert output.read_bytes() == whole.read_bytes()
    assert whole.read_text().count("a quote is never closed") == 3
    assert not journal.exists()


def rows_of(journal: Path) -> int:
    """Return the rows that are written, by the journal."""
    if not journal.exists():
        return 0
    rows: int = json.loads(journal.read_bytes())["progress"]["num_rows"]
    return rows


def wait_until(holds: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill_a_worker(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that is answering a window, which includes opening the deltas at first."""
    (worker, *_) = ray_processes(process.pid, WINDOW)
    os.kill(worker, signal.SIGKILL)


def test_a_worker_that_has_only_the_plan_gives_the_bytes_of_this_process(
    tiny_backbone: Backbone, tiny_backbone_dir: Path, tiny_deltas: Path, folder: Path
) -> None:
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    deltas = {task: store.resolve(task) for task in ("toy2", "toymulti")}
    engine = open_engine(
        list(deltas.values()), tiny_backbone, device="cpu", precision="fp32", threads=1
    )
    options = BulkOptions(window_rows=40)
    run = FileRun(engine, deltas, input_files(str(folder))[1:2], "-", "jsonl", options)
    windows = pickle.loads(pickle.dumps(list(run._windows(FileProgress()))))
    files = [(record.key, record.path.read_bytes()) for record in run.records]
    plan = EnginePlan(installed_version(), str(tiny_backbone_dir), files, "fp32", 1)
    here = LocalAnswers(engine, run.records, run.row_format, top_k=None, threads=1)
    there, row_format = pickle.loads(pickle.dumps((plan, run.row_format)))
    worker = there.opened()
    found = [worker.written(row_format, None, window) for window in windows]
    assert found == list(here.written(windows))
    assert [window.num_rows for window in found] == [40, 10]
    assert found[0].num_problems == 2
    with pytest.raises(FileError, match=r"has version .* but the command has 0\.0; install"):
        replace(plan, version="0.0").opened()


def test_ray_is_refused_where_it_can_not_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(folder), "--task", "toy2"]
    assert command_line.main(given) == 2
    assert "is a folder; name the file of all answers with --output" in capsys.readouterr().err
    given += ["--output", str(folder / "out.csv"), "--ray"]
    monkeypatch.setattr(command_line, "find_spec", lambda name: None)
    assert command_line.main(given) == 2
    assert capsys.readouterr().err == (
        "error: --ray needs the library ray; pip install 'deltabert[ray]'\n"
    )
    monkeypatch.setattr(command_line, "find_spec", lambda name: name)
    assert command_line.main([*given, "--device", "cuda"]) == 2
    assert "--ray answers on CPUs; leave out --device cuda" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["0.csv", "1.csv", "2.csv"]


def test_the_reason_of_a_lost_window_says_how_it_was_lost() -> None:
    exceptions = pytest.importorskip(
        "ray.exceptions", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'"
    )
    error = exceptions.RayTaskError("answer_window", "Traceback ...", FileError("another version"))
    assert reason_of(error) == "a worker could not answer: FileError: another version"
    lost = reason_of(exceptions.WorkerCrashedError())
    assert lost.startswith("the cluster lost the worker 4 times: The worker died")
    for kind in (exceptions.NodeDiedError, exceptions.OutOfMemoryError):
        assert reason_of(kind("gone\nfor good")) == "the cluster lost the worker 4 times: gone"


def test_what_is_no_loss_of_a_worker_is_told_as_it_is() -> None:
    exceptions = pytest.importorskip(
        "ray.exceptions", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'"
    )
    error = exceptions.RayTaskError("answer_window", "Traceback ...", FileError("a damaged file"))
    received = exceptions.RayError.from_bytes(error.to_bytes())
    assert reason_of(received) == "a worker could not answer: FileError: a damaged file"
    unknown = exceptions.UnserializableException("Traceback ...\nValueError: no number")
    assert reason_of(unknown).startswith("the cluster failed: UnserializableException: Failed")
    assert reason_of(unknown).endswith("ValueError: no number")
    assert reason_of(exceptions.TaskUnschedulableError("no node")) == (
        "the cluster failed: TaskUnschedulableError: The task is not schedulable: no node"
    )
