"""Every process generates the same sample."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from training.data.rows import digest_rows
from training.data.sample import sample_splits
from training.data.tasks import TASKS

ROOT = Path(__file__).parents[4]


def test_every_process_generates_the_same_rows() -> None:
    code = (
        "from training.data.rows import digest_rows\n"
        "from training.data.sample import sample_splits\n"
        "from training.data.tasks import TASKS\n"
        "print(*(digest_rows(sample_splits(TASKS[name])) for name in ('cola', 'rte')))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        digest_rows(sample_splits(TASKS[name])) for name in ("cola", "rte")
    ]
