"""Real sweeps over the tiny backbone: lines, choice of rates, failures, stopping and going on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ray_processes import RUN, ray_processes
from training.study.results import Run, RunOutcome, read_runs

WORDS = ["the", "film", "and", "very", "not", "a", "b"]


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small RTE."""
    folder = tmp_path_factory.mktemp("glue")
    draw = random.Random(0)
    for split, count in (("train", 120), ("validation", 30)):
        labels = [draw.randrange(2) for _ in range(count)]
        first = [" ".join([*draw.choices(WORDS, k=4), ["good", "bad"][n]]) for n in labels]
        second = [" ".join(draw.choices(WORDS, k=3)) for _ in labels]
        table = pa.table({"sentence1": first, "sentence2": second, "label": labels})
        path = folder / "rte" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
    return folder


class Sweep:
    """The command in a process of its own, as users run it."""

    def __init__(self, glue: Path, backbone: Path, folder: Path) -> None:
        self.out = folder / "runs.jsonl"
        self.work = folder / "work"
        self._words = [sys.executable, "-m", "training.sweep", "--tasks", "rte"]
        self._words += ["--data", str(glue), "--backbone", str(backbone)]

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._words, "--out", str(self.out), "--work", str(self.work), *words],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out + err


@pytest.fixture
def command(glue: Path, tiny_backbone_dir: Path, tmp_path: Path) -> Sweep:
    return Sweep(glue, tiny_backbone_dir, tmp_path)


# In float32 the loop and the final judgement by the server's pass give the same labels.
SMALL = "precision=fp32,epochs=2,evals=3,max_length=24,batch_size=8"


@pytest.mark.slow
def test_a_sweep_chooses_rates_records_failures_and_repeats_nothing(command: Sweep) -> None:
    words = ["--freeze", "bitfit,random:0.05,layernorm", "--rates", "1e-3,1e37", "--seeds", "2"]
    words += ["--set", SMALL, "--workers", "2"]
    code, said = command.run(*words)
    runs = list(read_runs(command.out).values())
    assert code == 1, said
    assert "3 runs failed; their errors are in" in said
    assert len(runs) == 9
    failed = [run for run in runs if run.error]
    assert {run.options["lr"] for run in failed} == {1e37}
    assert all("diverged" in str(run.error) for run in failed), [run.error for run in failed]
    whole = [run for run in runs if run.outcome]
    assert {(run.options["freeze"], run.options["seed"], run.options["lr"]) for run in whole} == {
        (freeze, seed, 1e-3) for freeze in ("bitfit", "random:0.05", "layernorm") for seed in (0, 1)
    }
    for run in whole:
        check_line(run)
    before = command.out.read_bytes()
    code, said = command.run(*words)
    assert (code, command.out.read_bytes()) == (1, before), "nothing is left, and three failed"
    assert "3 runs failed" in said
    assert not list(command.work.glob("*/rte")), "deltas are not kept"


def check_line(run: Run) -> None:
    """A line holds what the report needs, measured."""
    found = run.outcome
    assert found is not None
    assert found.scores["validation"].rows == 30
    assert found.history.step[-1] == found.steps
    assert len(found.history.step) == 3
    best = found.scores["selection"].values["accuracy"]
    assert best == pytest.approx(max(found.history.metric), abs=1e-6)
    assert found.train_rows + found.selection_rows == 120
    assert 0 < found.seconds < 100
    assert found.cpu_seconds is not None
    assert 0 < found.cpu_seconds < 100
    assert 10**7 < found.peak_bytes < 10**10
    assert 0 < found.trained < found.total
    assert found.delta_bytes > 4 * found.trained
    assert (found.data, found.resumed, found.machine.threads) == ("folder", False, 1)
    assert "--seed" in run.command
    assert run.command.startswith("python -m training.fit --")


LONG = ["--freeze", "bitfit", "--rates", "1e-3", "--seeds", "1"]
LONG += ["--set", "epochs=30,evals=50,max_length=24,batch_size=8"]


@pytest.fixture(scope="module")
def whole(
    glue: Path, tiny_backbone_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunOutcome:
    """The outcome of the one run of `LONG` that nothing stops."""
    sweep = Sweep(glue, tiny_backbone_dir, tmp_path_factory.mktemp("whole"))
    assert sweep.run(*LONG)[0] == 0
    (run,) = read_runs(sweep.out).values()
    assert run.outcome is not None
    assert not run.outcome.resumed
    return run.outcome


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_was_stopped_goes_on_to_the_same_lines(
    command: Sweep, whole: RunOutcome, end: signal.Signals
) -> None:
    process = command.start(*LONG)
    wait_for_states(command, process)
    process.send_signal(end)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (-9 if end == signal.SIGKILL else 130), said
    assert read_runs(command.out) == {}
    (history,) = command.work.glob("*/history.jsonl")
    time.sleep(1.0)
    length = history.stat().st_size
    time.sleep(1.0)
    assert history.stat().st_size == length, "the run's process outlived the sweep"
    assert command.run(*LONG)[0] == 0
    (run,) = read_runs(command.out).values()
    assert run.outcome is not None
    assert run.outcome.resumed
    assert run.outcome.scores == whole.scores
    assert run.outcome.history.step == whole.history.step
    assert run.outcome.history.metric == whole.history.metric


def wait_for_states(command: Sweep, process: subprocess.Popen[str]) -> None:
    """Until the run has saved its state three times."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        histories = list(command.work.glob("*/history.jsonl"))
        if histories and len(histories[0].read_text().splitlines()) >= 3:
            return
        time.sleep(0.01)
    raise AssertionError("no run came to its third evaluation")


@pytest.mark.slow
def test_a_run_that_is_killed_is_recorded_and_the_sweep_goes_on(command: Sweep) -> None:
    words = ["--freeze", "bitfit,head", "--rates", "1e-3", "--seeds", "1"]
    words += ["--set", "epochs=30,evals=50,max_length=24,batch_size=8"]
    process = command.start(*words)
    wait_for_states(command, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        process.communicate()
        pytest.skip("this system doesn't list a process's children")
    # The tracker of resources, and the process from which the runs are forked.
    for child in children.read_text().split():
        for run in Path(f"/proc/{child}/task/{child}/children").read_text().split():
            subprocess.run(["kill", "-9", run], check=True)
    _, said = process.communicate(timeout=300)
    first, second = read_runs(command.out).values()
    assert process.returncode == 1, said
    assert "exit code -9 (killed; perhaps there was not enough memory)" in str(first.error)
    assert second.outcome is not None
    lines = command.out.read_bytes()
    assert command.run(*words)[0] == 1, "a failed run is not made good by asking again"
    assert command.out.read_bytes() == lines, "nor made again"
    assert command.run(*words, "--retry-failed")[0] == 0
    assert all(run.outcome for run in read_runs(command.out).values())


@pytest.mark.slow
def test_on_ray_a_run_whose_worker_is_lost_is_made_again_to_the_same_line(
    command: Sweep, whole: RunOutcome
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -c constraints.txt 'ray[serve]'")
    process = command.start(*LONG, "--ray", "--workers", "1")
    wait_for_states(command, process)
    (worker,) = ray_processes(process.pid, RUN)
    os.kill(worker, signal.SIGKILL)
    _, said = process.communicate(timeout=600)  # Ray gives its workers the lowest priority
    assert process.returncode == 0, said
    (run,) = read_runs(command.out).values()
    assert run.outcome is not None
    assert run.outcome.resumed
    assert run.outcome.scores == whole.scores
    assert run.outcome.history.metric == whole.history.metric
    assert run.outcome.machine == whole.machine
    lines = command.out.read_bytes()
    assert command.run(*LONG)[0] == 0
    assert command.out.read_bytes() == lines, "the run is known without Ray, too"
