"""A store on a folder that holds a pipe."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PIPE = """
import sys
from pathlib import Path
from deltas import Store
print(len(Store([Path(sys.argv[1])]).records))
"""


def test_a_pipe_does_not_hang_the_store(tiny_deltas: Path, tmp_path: Path) -> None:
    """Runs in a subprocess, because waiting for a pipe's writer can't be interrupted."""
    shutil.copy(next(tiny_deltas.rglob("*.safetensors")), tmp_path / "1.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    command = [sys.executable, "-c", PIPE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "1\n"
