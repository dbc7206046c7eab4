"""Commands start fast: their help and their complaints load no large library.

This is tested by the modules that a command loads, not by its time, which depends on the machine.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = (
    "training.fit",
    "training.sweep",
    "training.report",
    "training.submit",
    "training.zoo",
    "deltas",
    "app",
)
HEAVY = {"torch", "transformers", "datasets", "pandas", "sklearn", "scipy", "numba"}
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
