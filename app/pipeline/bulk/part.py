"""Keeps the output of a run that may be killed at any moment, and goes on where it was.

The output grows in a part file beside it (`out.csv.part`). After each window a journal
(`out.csv.part.json`) is replaced in one step; it holds the position in the input and the number of
bytes that belong to it. A later run with the same facts cuts the part to that number and goes on.
At the end the part gets the name of the output, so that name never stands for half a result.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from app.pipeline.bulk.files import FileError
from app.pipeline.bulk.parquet import write_parquet
from deltas.format import write_atomically


@dataclass(frozen=True)
class FileProgress:
    """The state of a run.

    Attributes:
        file: number of the input file, from 0 on.
        position: position in this file.
        number: rows of this file that are done.
        num_bytes: bytes of the output.
        num_rows: rows of the output.
        num_problems: those of them without an answer.
    """

    file: int = 0
    position: int = 0
    number: int = 0
    num_bytes: int = 0
    num_rows: int = 0
    num_problems: int = 0


class Output(Protocol):
    """Receives the bytes of a run."""

    progress: FileProgress

    def write(self, content: bytes, progress: FileProgress) -> None:
        """Write bytes, and note the state of the run behind them."""

    def finish(self) -> None:
        """Make the output complete."""

    def close(self) -> None:
        """Free the output; what is not complete can go on."""


class StandardOutput:
    """Writes to standard output; a run of it can't go on later."""

    def __init__(self) -> None:
        self.progress = FileProgress()

    def write(self, content: bytes, progress: FileProgress) -> None:
        """Write bytes to the stream."""
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        self.progress = progress

    def finish(self) -> None:
        """Do nothing, as all is written."""

    def close(self) -> None:
        """Do nothing, as the stream belongs to the process."""


class PartFile:
    """Writes a file by way of its part.

    Args:
        path: the output.
        facts: all on which the bytes depend; they must be those of the run that began the part.
        overwrite: whether an output, and a part of other facts, may be replaced.

    Raises:
        FileError: the output exists, or a part of other facts, or another process writes it.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path = path
        self._part = path.with_name(f"{path.name}.part")
        self._journal = path.with_name(f"{path.name}.part.json")
        self._facts = json.loads(json.dumps(facts))
        if path.exists() and not overwrite:
            raise FileError(f"{path} exists; replace it with --overwrite, or choose another output")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._part.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise FileError(f"another process writes {self._part}; wait for it") from None
        try:
            self.progress = self._begun(overwrite=overwrite)
        except BaseException:
            self.close()
            raise
        self._file.truncate(self.progress.num_bytes)

    def write(self, content: bytes, progress: FileProgress) -> None:
        """Write bytes to the part, then the journal.

        Raises:
            FileError: they can't be written.
        """
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.progress = replace(progress, num_bytes=self._file.tell())
            journal = {"facts": self._facts, "progress": asdict(self.progress)}
            write_atomically(self._journal, json.dumps(journal).encode())
        except OSError as error:
            raise _unwritten(self._part, error) from error

    def finish(self) -> None:
        """Give the part the name of the output; parquet is made from its lines first.

        Raises:
            FileError: the parquet file can't be written.
        """
        if self.path.suffix == ".parquet":
            made = self.path.with_name(f"{self.path.name}.part.parquet")
            try:
                write_parquet(self._part, made)
            except OSError as error:
                made.unlink(missing_ok=True)
                raise _unwritten(made, error) from error
            made.replace(self.path)
            self._part.unlink()
        else:
            self._part.replace(self.path)
        self._journal.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the part, and let other processes write it."""
        with suppress(OSError):  # the disk is full; the next run cuts what the journal lacks
            self._file.close()

    def _begun(self, *, overwrite: bool) -> FileProgress:
        """Return the state that the journal holds, or that of a new run."""
        try:
            journal = json.loads(self._journal.read_bytes())
            facts, progress = journal["facts"], FileProgress(**journal["progress"])
        except FileNotFoundError:
            return FileProgress()
        except (ValueError, KeyError, TypeError):
            facts, progress = {}, FileProgress()
        if facts == self._facts and self._file.tell() >= progress.num_bytes:
            return progress
        if overwrite:
            return FileProgress()
        changed = [name for name in self._facts if facts.get(name) != self._facts[name]]
        raise FileError(
            f"{self._part} was begun with other facts ({', '.join(changed) or 'its content'}); run "
            "the same command as then, or begin anew with --overwrite"
        )


def _unwritten(path: Path, error: OSError) -> FileError:
    problem = os.strerror(error.errno) if error.errno else str(error)
    return FileError(
        f"{path} can't be written: {problem}; mend this, and the same command goes on from there"
    )
