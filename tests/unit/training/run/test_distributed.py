"""Processes that train together: who decides what, and what each of them does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from training.run import distributed as distributed_module

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs and a process that torchrun started; the list takes the GPUs that are picked."""
    picked: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", picked.append)
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    return picked


@pytest.mark.parametrize(("local_rank", "gpu"), [("0", 0), ("1", 1), ("2", 0)])
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch, device: str, local_rank: str, gpu: int
) -> None:
    """With fewer GPUs than processes, some processes share one."""
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    with distributed_module.joined(device):
        assert gpus == [gpu]


def test_no_gpu_is_used_for_the_cpu_or_a_single_process(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with distributed_module.joined("cpu"):
        pass
    monkeypatch.delenv("WORLD_SIZE")
    with distributed_module.joined("cuda"):
        pass
    assert gpus == []


def test_a_single_process_is_first_and_keeps_its_flag() -> None:
    assert distributed_module.broadcast_flag(flag=True)
    assert not distributed_module.broadcast_flag(flag=False)
    assert distributed_module.is_first()
    assert distributed_module.count() == 1


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
