"""Answers windows of rows on a cluster of Ray: `deltabert predict --ray`.

This process reads the files and writes the output, as it does without Ray. Each window goes to a
worker as one task. The worker answers it with an engine of its own, and returns the bytes of the
output. The windows are those of a run without Ray, so their batches and their bytes are the same.
If a worker is lost, Ray runs its task again; only a task's one result reaches the output. Deltas
travel to the workers as files, once for all outputs of a command; the program and the backbone must
be there already. Tested by tests/unit/app/pipeline/bulk/test_cluster.py and
tests/integration/app/test_predict_on_ray.py.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from app.engine.engine import Engine
from app.engine.tuning import installed_version, num_cpus
from app.errors import DeltaUnavailableError
from app.pipeline.bulk.files import FileError
from app.pipeline.bulk.local import LocalAnswers, RawWindow, WrittenWindow
from app.pipeline.bulk.output import RowFormat
from app.pipeline.bulk.run import FileRun, open_engine
from deltas import Record, Store, load_backbone
from deltas.errors import DeltaError, DeltaFormatError
from deltas.hardware import keep_compiled_products, keep_freed_memory

_LOST_WORKERS = 3  # of one window, before the run ends
_AHEAD = 2  # windows of each worker, so that none of them waits for the next one
_STORE_BYTES = 100 * 2**20  # of Ray's object store, which holds windows alone


@dataclass(frozen=True)
class EnginePlan:
    """All that a worker needs to open the deltas of a command.

    Attributes:
        version: version of the program.
        backbone: name or folder of the backbone; None for the packaged one.
        files: task, strategy, version and file of each delta, in the order of the answers.
        precision: precision of the engine.
        threads: threads of a forward pass.
    """

    version: str
    backbone: str | None
    files: Sequence[tuple[tuple[str, str, str], bytes]]
    precision: str
    threads: int

    def opened(self) -> WorkerEngine:
        """Open the deltas in this process.

        Raises:
            FileError: the program is of another version.
            DeltaError: the backbone is another one, or a file is damaged.
        """
        if self.version != installed_version():
            raise FileError(
                f"the worker has version {installed_version()} of deltabert, but the command has "
                f"{self.version}; install the same one on all machines"
            )
        keep_compiled_products()
        keep_freed_memory()
        backbone = load_backbone(self.backbone)
        with tempfile.TemporaryDirectory(prefix="deltabert-") as name:
            for number, content in enumerate(dict(self.files).values()):
                Path(name, f"{number}.safetensors").write_bytes(content)
            sent = Store([Path(name)])
            for path, reason in sent.rejected:
                raise DeltaFormatError(path, reason)
            engine = open_engine(  # it holds all deltas from now on, so the files may go
                sent.records,
                backbone,
                device="cpu",
                precision=self.precision,
                threads=self.threads,
            )
        found = [engine.store.resolve(*key) for key, _ in self.files]
        return WorkerEngine(engine, found, self.threads)


@dataclass(frozen=True)
class WorkerEngine:
    """The engine of a worker, and the deltas that it holds."""

    engine: Engine
    records: Sequence[Record]
    threads: int

    def written(self, row_format: RowFormat, top_k: int | None, window: RawWindow) -> WrittenWindow:
        """Return the output of a window."""
        answers = LocalAnswers(
            self.engine, self.records, row_format, top_k=top_k, threads=self.threads
        )
        (written,) = answers.written([window])
        return written


def answer_window(
    plan: tuple[Any], row_format: RowFormat, top_k: int | None, window: RawWindow
) -> WrittenWindow:
    """Answer a window on a worker, which keeps its engine for the next one.

    Args:
        plan: reference to the `EnginePlan`; it is in a tuple so that Ray does not fetch it always.
        row_format: writes the answers.
        top_k: number of scores to give.
        window: the window.

    Raises:
        FileError: the worker can't open the deltas, or can't answer by them.
    """
    try:
        return _opened(plan[0]).written(row_format, top_k, window)
    except (DeltaError, DeltaUnavailableError) as error:
        raise FileError(str(error)) from None  # those errors can't travel between processes


@lru_cache(maxsize=1)
def _opened(plan: Any) -> WorkerEngine:
    import ray

    found: EnginePlan = ray.get(plan)
    return found.opened()


class RayWorkers:
    """The workers of a cluster that this process is connected with; they open the deltas once.

    Args:
        records: the deltas, in the order of the answers.
        backbone: name or folder of the backbone, as the command line gives it.
        precision: precision of the engines.
        threads: threads of a forward pass, and CPUs of a worker.
    """

    def __init__(
        self, records: Sequence[Record], backbone: str | None, precision: str, threads: int
    ) -> None:
        import ray

        if backbone is not None and Path(backbone).is_dir():
            backbone = str(Path(backbone).resolve())
        files = [(record.key, record.path.read_bytes()) for record in records]
        plan = EnginePlan(installed_version(), backbone, files, precision, threads)
        self._plan = (ray.put(plan),)
        self._task = ray.remote(max_retries=_LOST_WORKERS, num_cpus=threads)(answer_window)
        self.threads = threads

    def answers(self, run: FileRun) -> RayAnswers:
        """Return what answers the windows of a run."""
        return RayAnswers(self, run)

    def start(self, row_format: RowFormat, top_k: int | None, window: RawWindow) -> Any:
        """Hand a window to the cluster; returns the reference to its output."""
        return self._task.remote(self._plan, row_format, top_k, window)


class RayAnswers:
    """Answers the windows of a run on a cluster.

    Args:
        workers: the workers, which hold the deltas of the run.
        run: the run.
    """

    def __init__(self, workers: RayWorkers, run: FileRun) -> None:
        import ray

        self._ray = ray
        self._workers = workers
        self._row_format, self._top_k = run.row_format, run.options.top_k
        self._names = [file.name for file in run.inputs]

    def written(self, windows: Iterable[RawWindow]) -> Generator[WrittenWindow]:
        """Yield the outputs of windows in their order; few of them are read ahead.

        Raises:
            FileError: the workers of a window were lost too often, or can't answer.
        """
        waiting: deque[tuple[Any, RawWindow]] = deque()
        try:
            for window in windows:
                task = self._workers.start(self._row_format, self._top_k, window)
                waiting.append((task, window))
                while len(waiting) > _AHEAD * self._num_workers():
                    yield self._next(waiting)
            while waiting:
                yield self._next(waiting)
        finally:
            for task, _ in waiting:
                self._ray.cancel(task, force=True)

    def _num_workers(self) -> int:
        """Return how many windows the cluster answers at a time; machines come and go."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 0)) // self._workers.threads)

    def _next(self, waiting: deque[tuple[Any, RawWindow]]) -> WrittenWindow:
        task, window = waiting[0]
        try:
            written: WrittenWindow = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            first, last = window.number, window.number + len(window.rows) - 1
            raise FileError(
                f"{self._names[window.file]}: rows {first:,} to {last:,}: {reason_of(error)}; the "
                "same command goes on from here"
            ) from error
        waiting.popleft()
        return written


def reason_of(error: Exception) -> str:
    """Tell why a window has no answers: its workers were lost too often, or could not answer."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

    if isinstance(error, RayTaskError):  # is not tried again
        return f"a worker could not answer: {type(error.cause).__name__}: {error.cause}"
    text = str(error).strip() or type(error).__name__
    if isinstance(error, NodeDiedError | OutOfMemoryError | WorkerCrashedError):
        return f"the cluster lost the worker {_LOST_WORKERS + 1} times: {text.splitlines()[0]}"
    return f"the cluster failed: {type(error).__name__}: {text}"


@contextmanager
def connected(address: str | None, threads: int) -> Iterator[None]:
    """Connect with a cluster within the block, or start one on this machine.

    Args:
        address: address of a running cluster; None starts one.
        threads: CPUs of a worker.

    Raises:
        FileError: there is no such cluster, or a worker needs more CPUs than each machine has.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {}
    if address is None:
        here = {
            "num_cpus": max(num_cpus(), threads),
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="warning", **here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise FileError(f"no cluster of Ray at {address or 'this machine'}: {error}") from error
    try:
        largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes()), default=0)
        if largest < threads:
            raise FileError(
                f"a worker needs {threads} CPUs, but the largest machine of the cluster has "
                f"{largest}; lower --threads"
            )
        yield
    finally:
        ray.shutdown()
