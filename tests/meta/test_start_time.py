"""Commands start fast: help and complaints load no large library, a server only what it needs.

This is tested by the modules that a command loads, not by its time, which depends on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from deltas.kernels.runtime import load_for_inference

COMMANDS = (
    "training.fit",
    "training.sweep",
    "training.report",
    "training.submit",
    "training.zoo",
    "deltas",
    "app",
    "app.cluster",
    "app.pipeline",
)
HEAVY = {"torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "numba", "ray"}
PROGRAM = """
import runpy, sys
sys.argv.pop(0)
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except SystemExit as stop:
    print("code", stop.code)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(("flag", "code"), [("--help", "0"), ("--no-such-flag", "2")])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_misuse_load_nothing_heavy(command: str, flag: str, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, command, flag],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *_, exit_line, loaded = done.stdout.splitlines()
    assert exit_line == f"code {code}", done.stderr
    assert not HEAVY & set(loaded.split())


def test_a_wrong_setting_is_told_before_anything_heavy_is_loaded() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "app"],
        env=os.environ | {"DELTABERT_PORT": "no number"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *_, exit_line, loaded = done.stdout.splitlines()
    assert exit_line == "code 2", done.stderr
    assert done.stderr.startswith("DELTABERT_PORT")
    assert not HEAVY & set(loaded.split())


SERVER = """
import sys
import app.server.server
from app.engine.engine import Engine
from deltas import Store, load_backbone, zoo_path

backbone = load_backbone()
store = Store([zoo_path()], backbone=backbone.ref)
engine = Engine(backbone, store, device="cpu", precision="fp32")
record = engine.store.resolve("sst2")
assert len(engine.predict(engine.tokenize(record, [("a good film",)]))[0]) == 2
print(*sys.modules)
"""
# Measured: 70 MB and 2 s of numba, 80 MB and 3 s of transformers, 80 MB and 2.4 s of torch._dynamo.
NOT_IN_A_SERVER = {"numba", "transformers", "torch._dynamo", "sympy", "pandas", "sklearn", "ray"}


def test_a_server_loads_nothing_that_it_does_not_need() -> None:
    load_for_inference()  # what is not on disk yet is compiled here
    done = subprocess.run(
        [sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "app.engine.engine" in loaded
    assert not NOT_IN_A_SERVER & loaded
