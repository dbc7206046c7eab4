"""Finds the processes of a cluster of Ray that a command has started."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

REPLICA = "ray::ServeReplica"
RUN = "ray::make_run"
WINDOW = "ray::answer_window"


def ray_processes(root: int, title: str) -> list[int]:
    """Return the processes below another one that have a title with this beginning."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")")[1].split()[1])
    below, waiting = [], [root]
    while waiting:
        above = waiting.pop()
        children = [pid for pid, parent in parents.items() if parent == above]
        below += children
        waiting += children
    return sorted(pid for pid in below if _title(pid).startswith(title))


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
