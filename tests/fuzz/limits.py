"""Examines an input of a reader: a sound value or documented error, in bounded time and memory."""

from __future__ import annotations

import re
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

MAX_CPU_S = 2.0
MAX_BYTES = 500 * 2**20
MAX_MESSAGE = 2500  # characters, the path included
_KIB = 1024


class TooSlowError(BaseException):
    """An input took too much CPU time; no `except Exception` may swallow it."""


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    `read` returns a text that is equal for equal values, after checking them. `mutate` makes an
    input from another one. `errors` are the documented ones.
    """

    name: str
    file: str  # below the folder of an input
    seeds: Callable[[], list[bytes]]
    mutate: Callable[..., bytes]
    read: Callable[[Path], str]
    errors: tuple[type[Exception], ...]


@contextmanager
def cpu_limit(seconds: float = MAX_CPU_S) -> Iterator[None]:
    """Raise `TooSlowError` when the process has used this CPU time."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds:g} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def examine(reader: Reader, folder: Path, content: bytes) -> str:
    """Read an input twice, and return its outcome: "value", or the message without its details.

    Raises:
        AssertionError: the outcomes differ, the message is no sentence about the file, or the input
            took too much memory.
        TooSlowError: it took too much time.
        Exception: whatever else the reader raised.
    """
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = []
    for _ in range(2):
        with cpu_limit():
            try:
                outcomes.append(("value", reader.read(path)))
            except reader.errors as error:
                outcomes.append(("error", str(error)))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * _KIB
    assert grown <= MAX_BYTES, f"took {grown / 2**20:,.0f} MB more"
    kinds = [outcome if outcome[0] == "value" else "error" for outcome in outcomes]
    assert kinds[0] == kinds[1], f"two readings differ: {outcomes}"
    kind, text = outcomes[0]
    if kind == "value":
        return "value"
    check_message(text, path, folder)
    return outline(text, folder)


def check_message(text: str, path: Path, folder: Path) -> None:
    """Check that an error's message is one line that names the file, or the folder with it."""
    assert "\n" not in text, f"several lines: {text[:300]!r}"
    assert len(text) <= MAX_MESSAGE, f"{len(text):,} characters: {text[:300]!r}"
    named = path.name in text or path.parent.name in text or folder.name in text
    assert named, f"names no file: {text[:300]!r}"


def outline(text: str, folder: Path) -> str:
    """Return a message without numbers, quoted values and folders: its kind, which is counted."""
    text = text.replace(str(folder), "")
    text = re.sub(r"'(\\.|[^'\\])*'|\"(\\.|[^\"\\])*\"", "'...'", text)
    return re.sub(r"[0-9]+", "N", text)[:160]
