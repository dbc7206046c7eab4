"""Data-parallel training of one delta, started by `torchrun -m training.fit ...`.

Each process computes its shard of every batch; the gradients are summed over all processes, and
then every process takes the same step. In a single process all of this does nothing. torchrun
passes rank and number of processes through the environment. Used by `training.run.loop.loop`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Join torchrun's process group for the duration of the block, if torchrun started this.

    Each process of a machine with several GPUs uses its own GPU as "cuda". No GPU is touched if
    `--device` is "cpu".
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # gloo carries CUDA tensors, too, and little is sent: the gradients of a delta.
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process is rank 0, which alone writes files and prints."""
    return rank() == 0


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """Return this process's part of the items: every `count()`-th one."""
    return items[rank() :: count()]


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes in place; the sum is bit-equal in each process."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each parameter's gradient by its sum over all processes."""
    if not dist.is_initialized():
        return
    trained = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = all_reduce(torch.cat([grad.reshape(-1) for grad in grads]))
    parts = torch.split(flat, [parameter.numel() for parameter in trained])
    for parameter, part in zip(trained, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def broadcast_flag(flag: bool) -> bool:
    """Broadcast rank 0's flag to all processes (acts as a barrier)."""
    if not dist.is_initialized():
        return flag
    sent = torch.tensor([int(flag)])
    dist.broadcast(sent, src=0)
    return bool(sent.item())


def barrier() -> None:
    """Wait until every process has called this function."""
    if dist.is_initialized():
        dist.barrier()
