"""Makes the runs of a sweep as tasks of a cluster of Ray: `python -m training.sweep --ray`.

A task starts the same process as a sweep without Ray does, on the machine of its worker, and
returns the message of that process. So a run that fails is recorded as it is without Ray. If a
worker is lost, with its machine or alone, Ray makes its run again. If all machines share the folder
of unfinished runs, the run continues from its last evaluation; otherwise it starts anew. Read
`training.study.run_pool` for the order of runs. Tested by
tests/unit/training/study/test_ray_tasks.py and tests/integration/training/test_sweep.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from training.errors import ConfigError
from training.study.trial import Trial, TrialProcess

_LOST_WORKERS = 3  # of one run, before it counts as failed
_STORE_BYTES = 100 * 2**20  # of Ray's object store, which takes nothing large here
_PASSED_ON = ("GLUE_DIR", "HF_HOME", "TOKENIZERS_PARALLELISM")


def make_run(trial: Trial, folder: str) -> dict[str, Any]:
    """Run a trial in a process of its own, on a worker; returns its message.

    Args:
        trial: the trial.
        folder: the sweep's current folder, for relative paths in its options.
    """
    with suppress(OSError):  # another machine may not have it
        os.chdir(folder)
    process = TrialProcess(trial)
    try:
        return process.message()
    finally:
        process.stop()


class RayRunner:
    """Runs trials on a cluster.

    Args:
        workers: runs at a time.
        threads: CPUs of a run.
    """

    def __init__(self, workers: int, threads: int) -> None:
        import ray

        self.workers = workers
        self._ray = ray
        self._task = ray.remote(max_retries=_LOST_WORKERS, num_cpus=threads)(make_run)

    def start(self, trial: Trial) -> Any:
        """Hand a trial to the cluster, which starts it when a worker is free."""
        return self._task.remote(replace(trial, folder=trial.folder.absolute()), str(Path.cwd()))

    def ended(self, jobs: Sequence[Any]) -> list[Any]:
        """Wait until at least one task has ended."""
        ready, _ = self._ray.wait(list(jobs), num_returns=1)
        return list(ready)

    def message(self, job: Any) -> dict[str, Any]:
        """Return the message of a task; a lost one is an error."""
        try:
            return dict(self._ray.get(job))
        except self._ray.exceptions.RayError as error:
            return {"error": reason_of(error)}

    def stop(self, jobs: Sequence[Any]) -> None:
        """End tasks; their processes end with their workers."""
        for job in jobs:
            self._ray.cancel(job, force=True)


def reason_of(error: Exception) -> str:
    """Tell why a task has no message: its worker was lost too often, or could not start the run."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):  # is not tried again
        return f"a worker could not start the run: {type(error.cause).__name__}: {error.cause}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"the cluster lost the run {_LOST_WORKERS + 1} times: {lines[0]}"


@contextmanager
def cluster(address: str | None, workers: int | None, threads: int) -> Iterator[RayRunner]:
    """Connect with a cluster within the block, or start one on this machine.

    Args:
        address: address of a running cluster; None starts one.
        workers: runs at a time; None makes as many as the cluster has CPUs for.
        threads: CPUs of a run.

    Raises:
        ConfigError: there is no such cluster, or a run needs more CPUs than it has.
    """
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    here: dict[str, Any] = {}
    if address is None:
        here = {
            "num_cpus": workers * threads if workers else None,
            "object_store_memory": _STORE_BYTES,
            "include_dashboard": False,
        }
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        ray.init(
            address or "local", runtime_env={"env_vars": passed_on}, log_to_driver=False, **here
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"no cluster of Ray at {address or 'this machine'}: {error}") from error
    try:
        fitting = int(ray.cluster_resources().get("CPU", 0)) // threads
        if fitting == 0:
            raise ConfigError(
                f"the cluster has fewer CPUs than a run needs ({threads}); lower --threads"
            )
        yield RayRunner(workers or fitting, threads)
    finally:
        ray.shutdown()
