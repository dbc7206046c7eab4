"""Processes that train together: who decides what, and what each of them does alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from training.run import distributed as distributed_module

ROOT = Path(__file__).parents[4]


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
