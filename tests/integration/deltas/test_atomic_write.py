"""Processes that are killed while they write a delta."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, TaskSpec, write_delta

KILLED_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
from deltas import read_delta, write_delta
first, second, target = map(Path, sys.argv[1:])
both = [read_delta(first), read_delta(second)]
write_delta(both[0], target)
seen = set()
for number in range(400):
    child = os.fork()
    if child == 0:
        while True:
            for delta in both:
                write_delta(delta, target)
    time.sleep(random.Random(number).uniform(0.001, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    seen.add(read_delta(target).version)
    if number >= 40 and len(seen) == 2:
        break
assert seen == {delta.version for delta in map(read_delta, (first, second))}, seen
"""


@pytest.mark.slow
def test_killed_writers_leave_a_whole_file(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths):
        write_delta(make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit", seed), path)
    command = [
        sys.executable,
        "-c",
        KILLED_WRITERS,
        *map(str, paths),
        str(tmp_path / "out/x.safetensors"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
