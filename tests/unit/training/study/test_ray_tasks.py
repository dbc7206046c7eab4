"""Runs as tasks of Ray: the reasons that are recorded for tasks that have no message."""

from __future__ import annotations

import pytest

exceptions = pytest.importorskip(
    "ray.exceptions", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'"
)

from training.study.ray_tasks import reason_of  # noqa: E402


def test_a_run_that_a_worker_can_not_start_is_not_called_lost() -> None:
    cause = ModuleNotFoundError("No module named 'training'")
    error = exceptions.RayTaskError("make_run", "Traceback ...", cause)
    for raised in (error, error.as_instanceof_cause()):  # as tasks fail, and as Ray raises it
        assert reason_of(raised) == (
            "a worker could not start the run: ModuleNotFoundError: No module named 'training'"
        )


def test_a_lost_run_says_how_often_and_how() -> None:
    error = exceptions.WorkerCrashedError()
    assert reason_of(error).startswith("the cluster lost the run 4 times: The worker died")
