"""Windows on a cluster: their order, lost workers, and the messages of errors.

`TasksOfRay` runs the tasks within this process, so that a test can choose their order and lose one.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from app.errors import DeltaUnavailableError
from app.pipeline import __main__ as command_line
from app.pipeline.bulk import cluster
from app.pipeline.bulk.cluster import RayWorkers, answer_window
from app.pipeline.bulk.files import FileError, input_files
from app.pipeline.bulk.run import BulkOptions, FileRun, open_engine
from deltas import Backbone, Store
from deltas.errors import (
    BackboneError,
    DeltaFormatError,
    DeltaMismatchError,
    DeltaNotFoundError,
    InvalidTextError,
    PredictionsError,
)
from tests.integration.app.test_predict_command import write_files


class RayError(Exception):
    """The root of Ray's errors."""


class WorkerCrashedError(RayError):
    """A worker was lost too often."""


class RayTaskError(RayError):
    """A task has raised an error."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class Reference:
    """Names an object, or the result of a task."""

    number: int


class TasksOfRay(ModuleType):
    """The functions of Ray that windows need: the newest task always ends first.

    Args:
        lost: numbers of the tasks whose workers are lost, from 0 on.
    """

    def __init__(self, *lost: int) -> None:
        super().__init__("ray")
        self.exceptions = ModuleType("ray.exceptions")
        for kind in (RayError, WorkerCrashedError, RayTaskError):
            setattr(self.exceptions, kind.__name__, kind)
        for name in ("NodeDiedError", "OutOfMemoryError"):
            setattr(self.exceptions, name, type(name, (RayError,), {}))
        self.lost = lost
        self.num_puts = 0
        self.num_fetched = 0
        self.started: list[Reference] = []
        self.ended: list[Reference] = []
        self.cancelled: list[Reference] = []
        self.most_waiting = 0
        self._objects: dict[Reference, bytes] = {}
        self._waiting: dict[Reference, tuple[Callable[..., Any], bytes]] = {}

    def init(self, address: str, **_: Any) -> None: ...

    def shutdown(self) -> None: ...

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Resources": self.cluster_resources()}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Reference:
        self.num_puts += 1
        reference = Reference(-self.num_puts)
        self._objects[reference] = pickle.dumps(value)
        return reference

    def remote(self, *, max_retries: int, num_cpus: int) -> Callable[..., Any]:
        def made(function: Callable[..., Any]) -> SimpleNamespace:
            def start(*arguments: Any) -> Reference:
                reference = Reference(len(self.started))
                self.started.append(reference)
                self._waiting[reference] = (function, pickle.dumps(arguments))
                self.most_waiting = max(self.most_waiting, len(self._waiting))
                return reference

            return SimpleNamespace(remote=start)

        return made

    def get(self, reference: Reference) -> Any:
        if reference.number < 0:
            self.num_fetched += 1
        while reference not in self._objects:
            newest = next(reversed(self._waiting))
            function, arguments = self._waiting.pop(newest)
            self.ended.append(newest)
            try:
                if newest.number in self.lost:
                    raise WorkerCrashedError("The worker died unexpectedly")
                result: Any = function(*pickle.loads(arguments))
            except RayError as error:
                result = error
            except FileError as error:
                result = RayTaskError(error)
            self._objects[newest] = pickle.dumps(result)
        found = pickle.loads(self._objects[reference])
        if isinstance(found, RayError):
            raise found
        return found

    def cancel(self, reference: Reference, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


Install = Callable[..., TasksOfRay]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts `TasksOfRay` in the place of Ray."""

    def installed(*lost: int) -> TasksOfRay:
        ray = TasksOfRay(*lost)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.exceptions", ray.exceptions)
        monkeypatch.setattr(command_line, "find_spec", lambda name: ray)
        cluster._opened.cache_clear()
        return ray

    return installed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three files: ten windows of at most 8 rows, and a bad row in each file."""
    return write_files(tmp_path / "rows", (33, 5, 28), {3: "3,"})


@pytest.fixture
def run_of(tiny_backbone: Backbone, tiny_deltas: Path, folder: Path) -> Callable[[str], FileRun]:
    """Makes a run over the folder with an output of a name."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    deltas = {task: store.resolve(task) for task in ("toy2", "toymulti")}
    records = list(deltas.values())
    engine = open_engine(records, tiny_backbone, device="cpu", precision="fp32", threads=1)
    options = BulkOptions(window_rows=8, top_k=2)
    return lambda name: FileRun(
        engine, deltas, input_files(str(folder)), str(folder.parent / name), "csv", options
    )


def test_windows_that_end_out_of_order_are_written_in_order(
    install: Install, run_of: Callable[[str], FileRun], tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    run_of("here.csv").answer()
    ray, run = install(), run_of("there.csv")
    workers = RayWorkers(run.records, str(tiny_backbone_dir), "fp32", 1)
    progress = run.answer(workers.answers(run))
    assert (progress.num_rows, progress.num_problems) == (66, 3)
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()
    assert len(ray.started) == 10
    assert ray.ended != ray.started, "no window has overtaken another one"
    assert sorted(ray.ended, key=lambda task: task.number) == ray.started
    assert ray.most_waiting == 5  # two windows for each of two workers, and the next one
    assert not ray.cancelled


@pytest.mark.parametrize(
    ("lost", "says", "done"),
    [
        (0, "0.csv: rows 0 to 7", 0),
        (4, "0.csv: rows 32 to 32", 32),
        (5, "1.csv: rows 0 to 4", 33),
        (9, "2.csv: rows 24 to 27", 62),
    ],
)
def test_a_lost_window_ends_the_run_and_the_same_command_loses_and_doubles_no_row(
    install: Install,
    run_of: Callable[[str], FileRun],
    tiny_backbone_dir: Path,
    tmp_path: Path,
    lost: int,
    says: str,
    done: int,
) -> None:
    run_of("here.csv").answer()
    ray, run = install(lost), run_of("there.csv")
    workers = RayWorkers(run.records, str(tiny_backbone_dir), "fp32", 1)
    with pytest.raises(FileError, match=f"{says}: the cluster lost the worker 4 times: The worker"):
        run.answer(workers.answers(run))
    assert ray.cancelled == ray.started[lost:]
    assert not (tmp_path / "there.csv").exists()
    ray, run = install(), run_of("there.csv")
    assert run.output.progress.num_rows == done
    workers = RayWorkers(run.records, str(tiny_backbone_dir), "fp32", 1)
    run.answer(workers.answers(run))
    assert len(ray.started) == 10 - lost, "a window was answered twice, or never"
    assert (tmp_path / "there.csv").read_bytes() == (tmp_path / "here.csv").read_bytes()


def test_workers_open_the_deltas_of_a_command_once_for_all_outputs(
    install: Install, folder: Path, tiny_backbone_dir: Path, tiny_deltas: Path
) -> None:
    (folder / "3.csv").write_text("text\ngood\nbad\n")  # its output has other columns
    files = sorted(map(str, folder.iterdir()))
    given = ["--task", "toy2", "--backbone", str(tiny_backbone_dir), "--deltas", str(tiny_deltas)]
    given += ["--threads", "1", "--precision", "fp32", "--top-k", "1", "--device", "cpu"]
    assert command_line.main([*files, *given]) == 0
    outputs = sorted(folder.glob("*.predictions.csv"))
    here = [path.read_bytes() for path in outputs]
    ray = install()
    assert command_line.main([*files, *given, "--ray", "--overwrite"]) == 0
    assert [path.read_bytes() for path in outputs] == here
    assert (len(here), len(ray.started)) == (4, 4)
    assert (ray.num_puts, ray.num_fetched) == (1, 1)


@pytest.mark.parametrize(
    "error",
    [
        DeltaNotFoundError("task", "toy3", ["toy2"]),
        DeltaFormatError("0.safetensors", "no header"),
        DeltaMismatchError("tokenizer", "a", "b"),
        InvalidTextError(3, "text", "is no text"),
        BackboneError("no such folder"),
        PredictionsError("no such file"),
        DeltaUnavailableError("toy2", "bitfit", "1", "no space"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_a_delta_keeps_its_text_on_its_way_from_a_worker(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(plan: Any) -> None:
        raise error

    monkeypatch.setattr(cluster, "_opened", opened)
    window: Any = None
    with pytest.raises(FileError) as raised:
        answer_window(("plan",), window, None, window)
    received = pickle.loads(pickle.dumps(raised.value))
    assert type(received) is FileError
    assert str(received) == str(error)


def test_a_file_that_is_damaged_for_the_workers_is_named_in_the_message(
    install: Install, run_of: Callable[[str], FileRun], tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    ray, run = install(), run_of("there.csv")
    workers = RayWorkers(run.records, str(tiny_backbone_dir), "fp32", 1)
    (reference,) = workers._plan
    plan = ray.get(reference)
    ray._objects[reference] = pickle.dumps(
        cluster.EnginePlan(
            plan.version, plan.backbone, [(key, b"junk") for key, _ in plan.files], "fp32", 1
        )
    )
    with pytest.raises(
        FileError, match=r"could not answer: FileError: .*0\.safetensors: "
    ) as raised:
        run.answer(workers.answers(run))
    assert "lost the worker" not in str(raised.value)
