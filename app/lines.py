"""Vectors of many deltas, stacked: one table for each vector of the encoder, one line a delta.

Line 0 is the backbone's. A line that is given back is used again; behind the lines in use there is
room for more.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

_FIRST_ROOM = 64  # lines


class Lines:
    """Tables of some of the encoder's vectors, that a delta has lines in all of or in none.

    Args:
        frozen: the backbone's vectors by name, on the device and in the dtype of the tables.

    Attributes:
        tables: by name, the lines that are or were in use.
        room: the same with what is free behind them; there they stay until there is no room left.
        moves: how often they had to move; who knows their places must look again then.
    """

    def __init__(self, frozen: Mapping[str, Tensor]) -> None:
        self.tables = {name: vector[None] for name, vector in frozen.items()}
        self.room = dict(self.tables)
        self.moves = 0
        self._free: list[int] = []

    def take(self, vectors: Sequence[Tensor]) -> Iterator[int]:
        """Write vectors, each all of a delta's end to end, into free lines; returns which."""
        used, room = (len(next(iter(held.values()))) for held in (self.tables, self.room))
        reused = [self._free.pop() for _ in vectors[: len(self._free)]]
        lines = reused + list(range(used, used + len(vectors) - len(reused)))
        if not lines:
            return iter(())
        if lines[-1] >= room:
            self.reserve(max(_FIRST_ROOM, 2 * lines[-1]))  # doubling makes growth rare
        whole = torch.stack(list(vectors)).to(next(iter(self.tables.values())).device)
        where = torch.tensor(lines, device=whole.device)
        start = 0
        for name, held in self.room.items():
            stop = start + held.shape[1]
            held[where] = whole[:, start:stop]
            self.tables[name] = held[: max(used, lines[-1] + 1)]
            start = stop
        return iter(lines)

    def give_back(self, line: int) -> None:
        """Let the next delta have a line; line 0 is nobody's to give."""
        if line:
            self._free.append(line)

    def reserve(self, num_lines: int) -> None:
        """Make room for so many lines besides the backbone's."""
        if len(next(iter(self.room.values()))) <= num_lines:
            self.moves += 1
            for name, table in self.tables.items():
                self.room[name] = _empty(num_lines + 1, table)
                self.room[name][: len(table)] = table
                self.tables[name] = self.room[name][: len(table)]


def _empty(num_lines: int, like: Tensor) -> Tensor:
    """Room for lines like those of a table; on a CPU what is never written to takes no memory.

    So straight from the system: the C library may hand out memory that was used before.
    """
    shape = num_lines, like.shape[1]
    if like.device.type != "cpu" or not hasattr(mmap, "MAP_PRIVATE"):
        return like.new_empty(shape)
    num_bytes = num_lines * like.shape[1] * like.element_size()
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=like.dtype).view(shape)
