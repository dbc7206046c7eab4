"""Two processes, as torchrun starts them, agree on what the first one decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]


def torchrun(script: Path, code: str) -> list[dict[str, Any]]:
    """Return the JSON lines of two processes, ordered by rank."""
    script.write_text(f"import json\nfrom training.run import distributed\n{code}\n")
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


@pytest.mark.slow
def test_the_first_process_decides_for_all(tmp_path: Path) -> None:
    """The others look while the first one has not yet removed what they see."""
    code = """
import time, pathlib
left = pathlib.Path(__file__).with_name("state")
left.touch()
with distributed.joined("cpu"):
    if distributed.is_first():
        time.sleep(1)
        left.unlink()
    seen = left.exists()
    told = distributed.broadcast_flag(seen)
    line = {"rank": distributed.rank(), "seen": seen, "told": told}
    print(json.dumps(line), flush=True)
"""
    assert torchrun(tmp_path / "script.py", code) == [
        {"rank": 0, "seen": False, "told": False},
        {"rank": 1, "seen": True, "told": False},
    ]
