"""Processes that train together: who decides what, and what each of them does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training import processes

ROOT = Path(__file__).parents[2]


def torchrun(script: Path, code: str) -> list[dict[str, Any]]:
    """What two processes print, one JSON line each, ordered by rank."""
    script.write_text(f"import json\nfrom training import processes\n{code}\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return sorted(lines, key=lambda line: int(line["rank"]))


def test_alone_there_is_nobody_to_ask() -> None:
    assert processes.as_first_says(answer=True)
    assert not processes.as_first_says(answer=False)
    assert processes.is_first()
    assert processes.count() == 1


@pytest.mark.slow
def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    """The others look while the first one has not yet removed what they see."""
    code = """
import time, pathlib
left = pathlib.Path(__file__).with_name("state")
left.touch()
with processes.joined():
    if processes.is_first():
        time.sleep(1)
        left.unlink()
    seen = left.exists()
    told = processes.as_first_says(seen)
    line = {"rank": 0 if processes.is_first() else 1, "seen": seen, "told": told}
    print(json.dumps(line), flush=True)
"""
    assert torchrun(tmp_path / "script.py", code) == [
        {"rank": 0, "seen": False, "told": False},
        {"rank": 1, "seen": True, "told": False},
    ]
