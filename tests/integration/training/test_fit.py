"""Training in processes of its own: killed, interrupted, and two of them for one delta."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.engine import Engine
from deltas import Backbone, Delta, Store
from deltas.store.predictions import predictions_path
from tests.unit.training.test_fit_options import (
    STILL,
    assert_as_far,
    only_delta,
    values_of,
    write_rows,
)
from tests.unit.training.test_fit_resume import assert_same, out_of, result, states
from training import fit
from training.data.glue import load_task
from training.run.output import read_predictions

ROOT = Path(fit.__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
Words = Callable[..., list[str]]


@pytest.fixture
def words(tiny_backbone_dir: Path, tmp_path: Path) -> Words:
    """A function (out="out", **flags) -> the command line of a small run."""
    rows = write_rows(tmp_path / "train.csv", 90, 1)

    def line(out: str = "out", **flags: object) -> list[str]:
        given: dict[str, object] = {
            "train_file": rows,
            "validation_file": rows,
            "text_columns": "text",
            "label_column": "label",
            "name": "mine",
            "backbone": tiny_backbone_dir,
            "freeze": "random:0.02+layernorm",
            "max_length": 24,
            "epochs": 2,
            "batch_size": 8,
            "precision": "fp32",
            "dropout": 0.1,
            "out": tmp_path / out,
        }
        pairs = (given | flags).items()
        return [
            str(part) for name, value in pairs for part in (f"--{name.replace('_', '-')}", value)
        ]

    return line


def delta_of(words: list[str]) -> Delta:
    """Make a run in this process, and read its delta."""
    assert fit.main(words) == 0
    return only_delta(out_of(words))


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start the command as a user does."""
    return subprocess.Popen(
        [sys.executable, "-m", "training.fit", *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_state(process: subprocess.Popen[str], words: list[str]) -> None:
    """Wait until the run has saved its state once."""
    deadline = time.monotonic() + 180
    while not states(words):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_for_real_and_resumed(words: Words) -> None:
    """SIGKILL at some moment after the first evaluation, then --resume in a new process."""
    long = words(epochs=40)
    process = start(long)
    wait_for_state(process, long)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert states(long)
    resumed = start([*long, "--resume"])
    _, error = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, error
    for left in out_of(long).rglob(".*.tmp"):  # a kill can leave a hidden half, never a wrong whole
        left.unlink()
    assert_same(result(long), delta_of(words(out="whole", epochs=40)))


@pytest.mark.slow
def test_control_c_in_a_real_process(words: Words) -> None:
    long = [*words(epochs=2000), "--json"]
    process = start(long)
    wait_for_state(process, long)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert out == ""
    assert "stopped; to continue from the last evaluation" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_second_of_two_runs_for_one_file_is_told_and_the_first_ends_well(words: Words) -> None:
    """Both used to exit with 0, and the result of the earlier one was gone."""
    first, other = words(epochs=10, seed=1), words(epochs=10, seed=2)
    process = start(first)
    wait_for_state(process, first)
    process.send_signal(signal.SIGSTOP)  # it trains as long as the second takes to come
    (kept,) = states(first)
    second = start([*other, "--overwrite"])
    _, told = second.communicate(timeout=120)
    assert second.returncode == 2, told
    assert "another run is at work on" in told
    assert "wait for it, or give another --out" in told
    assert kept.exists()
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    third = start(other)
    _, told = third.communicate(timeout=120)
    assert third.returncode == 2
    assert "exists; give --overwrite to replace it, or another --out" in told
    assert result(first).manifest.training.seed == 1


def test_only_json_is_printed_in_a_real_process(words: Words) -> None:
    """Nothing of any library gets onto standard output."""
    process = start([*words(), "--json"])
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert json.loads(out)["task"] == "mine"
    assert "22/22" in error  # 81 rows in batches of 8, twice
    assert "Traceback" not in error


@pytest.mark.slow
@pytest.mark.parametrize("freeze", ["head", "bitfit", "top:1"])
def test_a_server_gives_every_row_the_logits_that_the_run_was_judged_by(
    packaged_backbone: Backbone, tmp_path: Path, freeze: str
) -> None:
    """With the real backbone, in the precision of `auto`, rows mixed with those of another task."""
    common = ["--data", "sample", "--train-rows", "300", "--epochs", "0.3", "--out", str(tmp_path)]
    for task, strategy in (("sst2", freeze), ("cola", "layernorm")):
        assert fit.main(["--task", task, "--freeze", strategy, *common]) == 0
    store = Store([tmp_path], backbone=packaged_backbone.ref)
    engine = Engine(packaged_backbone, store, device="cpu")
    record = store.resolve("sst2")
    _, gold, judged = read_predictions(predictions_path(record.path), "validation")
    texts = load_task("sst2", "sample").validation["validation"].texts
    rows = engine.tokenize(record, texts)
    assert len(rows) == len(gold) > 100
    other = engine.tokenize(store.resolve("cola"), texts[:3])
    served = []
    for start_row in range(0, len(rows), 5):
        served += engine.predict([*other, *rows[start_row : start_row + 5]])[len(other) :]
    # A pass that rounds elsewhere differs by more than 0.001 in bfloat16.
    torch.testing.assert_close(torch.tensor(served), judged, atol=1e-4, rtol=0)
    assert torch.equal(torch.tensor(served).argmax(1), judged.argmax(1))


# The label of a row by its number and text, for each kind of task.
LABELS: dict[str, Callable[[int, str], str]] = {
    "single_label": lambda number, words: "good" if number % 5 == 0 else "bad",
    "multi_label": lambda number, words: "|".join(
        ["long"] * (len(words) > 20) + ["ab"[number % 2]]
    ),
    "regression": lambda number, words: f"{len(words) / 7 + number % 3}",
}


def torchrun(words: list[str], *program: str) -> subprocess.CompletedProcess[str]:
    """Run two processes that train one delta, as torchrun starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *(program or ("-m", "training.fit"))]
    return subprocess.run(
        [*command, *words],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("freeze", "kind", "flags"),
    [
        ("bitfit", "single_label", {"class_weights": "balanced", "accumulate": 2}),
        ("random:0.02", "multi_label", {"class_weights": "balanced", "label_smoothing": 0.1}),
        ("full", "regression", {"accumulate": 3}),
    ],
)
def test_two_processes_give_the_delta_of_one(
    words: Words, tmp_path: Path, freeze: str, kind: str, flags: dict[str, Any]
) -> None:
    """The last batch of an epoch is odd, so that their shares differ."""
    texts = [line.split(",")[0] for line in (tmp_path / "train.csv").read_text().split("\n")[1:-1]]
    lines = [f"{text},{LABELS[kind](number, text)}" for number, text in enumerate(texts)]
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "\n".join(lines) + "\n")
    flags = {"train_file": rows, "validation_file": rows, "kind": kind} | flags
    flags |= {"freeze": freeze, "batch_size": 7, "dropout": 0.0}
    alone = delta_of(words("alone", **flags))
    done = torchrun([*words("two", **flags), "--json"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count('"version"') == 1  # only the first process talks and writes
    together = only_delta(tmp_path / "two")
    assert together.manifest.training.processes == 2
    assert_as_far(together, alone, delta_of(words("still", **flags | STILL)))
    mine, theirs = (delta.manifest.metrics["validation"].values for delta in (alone, together))
    assert theirs == pytest.approx(mine, abs=0.02)


# A run that nothing stops; one that sees Ctrl-C a step after its second evaluation, and goes on.
THREE_RUNS = """
import sys
from pathlib import Path
from training import fit
from training.run import distributed
from training.run.loop import loop

def stopping(step, loss):
    if step == 12:
        raise KeyboardInterrupt

whole, resumed, *words = sys.argv[1:]
with distributed.joined("cpu"):
    assert fit.main([*words, "--out", whole]) == 0
    going_on, loop._check_finite = loop._check_finite, stopping
    assert fit.main([*words, "--out", resumed]) == 130
    assert len(list(Path(resumed).rglob(".*.state.safetensors"))) == 1
    loop._check_finite = going_on
    assert fit.main([*words, "--out", resumed, "--resume"]) == 0
"""


@pytest.mark.slow
def test_two_processes_go_on_where_they_were_stopped(words: Words, tmp_path: Path) -> None:
    script, folders = tmp_path / "runs.py", [tmp_path / "whole", tmp_path / "resumed"]
    script.write_text(THREE_RUNS)
    given = words(freeze="layernorm", device="cpu")
    done = torchrun([*map(str, folders), *given], str(script))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no state of this run" not in done.stderr
    whole, resumed = map(only_delta, folders)
    assert torch.equal(values_of(whole), values_of(resumed))
    assert whole.version == resumed.version
