"""Writing a delta file: all or nothing, whatever happens. Reading: `test_format.py`."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from deltas import Backbone, Delta, DeltaFormatError, TaskSpec, read_delta, write_delta
from tests.process_state import largest_file


@pytest.fixture(scope="module")
def delta(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> Delta:
    """Dense and sparse entries and a head of three outputs."""
    made: Delta = make_delta(tiny_backbone, toy_tasks["toy3"], "random:0.01+layernorm")
    return made


def test_writing_refuses_what_reading_would(delta: Delta, tmp_path: Path) -> None:
    spoilt = Delta(**(vars(delta) | {"head_bias": torch.full((3,), float("nan"))}))
    path = tmp_path / "new.safetensors"
    with pytest.raises(DeltaFormatError, match=r"classifier\.bias has 3 values that are NaN"):
        write_delta(spoilt, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"]
)
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_failed_write_leaves_the_old_file(
    delta: Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, error: BaseException
) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"old")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if moment == "fsync" else (Path, "replace")), fail)  # type: ignore[call-overload]
    with pytest.raises(type(error)):
        write_delta(delta, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_can_be_read_by_others(delta: Delta, tmp_path: Path) -> None:
    """A server often runs as another user than training."""
    before = os.umask(0o022)
    try:
        write_delta(delta, tmp_path / "mine.safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "mine.safetensors").stat().st_mode & 0o777 == 0o644


def test_readers_see_old_or_new(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> None:
    path = tmp_path / "mine.safetensors"
    both = [make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit", seed) for seed in (1, 2)]
    versions = {write_delta(delta, path).version for delta in both}
    seen: set[str] = set()
    problems: list[str] = []
    done = threading.Event()

    def keep_reading() -> None:
        while not done.is_set():
            try:
                seen.add(read_delta(path).version)
            except DeltaFormatError as error:
                problems.append(str(error))

    readers = [threading.Thread(target=keep_reading) for _ in range(3)]
    for reader in readers:
        reader.start()
    for turn in range(60):
        write_delta(both[turn % 2], path)
    done.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert seen <= versions
    assert list(tmp_path.iterdir()) == [path]


def test_sizes_of_a_written_delta(delta: Delta, tmp_path: Path) -> None:
    """A task is a small file: values, indices, and a header."""
    written = write_delta(delta, tmp_path / "mine.safetensors")
    values = sum(
        entry.values.numel() * (4 if info.kind == "dense" else 8)
        for entry, info in zip(delta.entries.values(), delta.manifest.entries, strict=True)
    )
    head = 4 * (delta.head_weight.numel() + delta.head_bias.numel())
    header = written.num_bytes - values - head
    assert 0 < header < 3000 + 300 * len(delta.entries)


def test_a_full_disk_is_told_with_the_path(delta: Delta, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    with largest_file(1000), pytest.raises(OSError, match="File too large") as caught:
        write_delta(delta, path)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_may_not_be_replaced_stays(
    delta: Delta, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    if not links:  # as on exFAT
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    path = tmp_path / "mine.safetensors"
    first = write_delta(delta, path, replace=False)
    content = path.read_bytes()
    with pytest.raises(FileExistsError) as caught:
        write_delta(delta, path, replace=False)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == content
    assert read_delta(path).version == first.version
    assert list(tmp_path.iterdir()) == [path]
