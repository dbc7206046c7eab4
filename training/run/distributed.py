"""Several processes that train one delta together, started by `torchrun -m training.fit ...`.

Each computes its share of every batch; gradients are added up, and then all take the same step.
With one process everything here does nothing. torchrun says through the environment who is who.
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
    """Belong to torchrun's group of processes while the block runs, if torchrun started this.

    With more than one GPU each process of a machine takes its own as "cuda", unless `device`, as
    `--device` has it, is the CPU.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    if device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # gloo also carries CUDA tensors, and what is sent is small: the gradients of a delta.
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return rank() == 0


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """What this process is to do of what all have to."""
    return items[rank() :: count()]


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all processes, bit-equal in each of them; changes the tensor."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def all_reduce_gradients(parameters: Iterable[Tensor]) -> None:
    """Give each parameter the sum of all processes' gradients."""
    if not dist.is_initialized():
        return
    trained = list(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    flat = all_reduce(torch.cat([grad.reshape(-1) for grad in grads]))
    for parameter, part in zip(
        trained, torch.split(flat, [p.numel() for p in trained]), strict=True
    ):
        parameter.grad = part.view_as(parameter)


def broadcast_flag(answer: bool) -> bool:
    """The first process's answer, in every process; nobody gets it before the first has asked."""
    if not dist.is_initialized():
        return answer
    told = torch.tensor([int(answer)])
    dist.broadcast(told, src=0)
    return bool(told.item())


def barrier() -> None:
    """Return when every process has come here."""
    if dist.is_initialized():
        dist.barrier()
