"""Reading files that are no files, larger than memory, or changed while they are read."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, DeltaFormatError, read_delta, read_manifest
from deltas.format import content, most_bytes, read_content

Spoil = Callable[[Path], Any]
READERS = pytest.mark.parametrize("read", [read_delta, read_manifest, read_content])


@pytest.fixture(scope="module")
def good(tiny_deltas: Path) -> Path:
    """A sound delta."""
    return next(tiny_deltas.rglob("bitfit.safetensors"))


def header_and_data(path: Path) -> tuple[dict[str, Any], bytes]:
    """The parsed header and the data of a sound file."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def write(path: Path, header: Any, data: bytes) -> Path:
    """Write a file with any header."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def _make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**43)


NO_FILES: dict[str, tuple[Spoil, str]] = {
    "a pipe": (os.mkfifo, "not a file"),
    "a folder": (Path.mkdir, "not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels"),
    "a link to nothing": (lambda path: path.symlink_to("none"), "no such file"),
    "a file of the system": (lambda path: path.symlink_to("/proc/self/status"), "it has 0 bytes"),
    "an empty file": (Path.touch, "it has 0 bytes"),
    "a file that only says its size": (
        _make_sparse,
        "not a readable|more memory than there is",
    ),
}


@READERS
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_of_a_delta_is_refused_at_once(
    read: Callable[[Path], object], kind: str, tmp_path: Path
) -> None:
    """Pipes and some files of the system would wait for a writer, and /dev/zero never ends."""
    spoil, reason = NO_FILES[kind]
    path = tmp_path / "x.safetensors"
    spoil(path)
    with pytest.raises(DeltaFormatError, match=reason):
        read(path)


def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a path and its opening, another file may come there."""
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat(good))  # noqa: PTH116
    with pytest.raises(DeltaFormatError, match="not a file"):
        read_content(path)


@pytest.mark.parametrize("change", ["grows", "shrinks"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(good.read_bytes())
    check = content._check_regular

    def check_and_change(path: Path, found: os.stat_result) -> None:
        check(path, found)
        os.truncate(path, good.stat().st_size + (100 if change == "grows" else -100))

    monkeypatch.setattr(content, "_check_regular", check_and_change)
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat(good))  # noqa: PTH116
    original = os.fstat
    monkeypatch.setattr(os, "fstat", lambda handle: os.stat(good) or original(handle))  # noqa: PTH116
    with pytest.raises(DeltaFormatError, match="was changed while it was read"):
        read_content(path)


def test_a_file_larger_than_any_delta_is_not_read(
    good: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    """Its header is sound, so the size alone tells; reading it would take all memory."""
    header, data = header_and_data(good)
    most = most_bytes(read_manifest(good)[0], tiny_backbone)
    assert good.stat().st_size < most < 10 * 2**20
    count = 2**30
    header["z"] = {"dtype": "F32", "shape": [count]}
    header["z"]["data_offsets"] = [len(data), len(data) + 4 * count]
    path = write(tmp_path / "x.safetensors", header, data)
    os.truncate(path, path.stat().st_size + 4 * count)
    read_manifest(path)
    with pytest.raises(DeltaFormatError, match=f"a delta of this backbone has at most {most:,}"):
        read_delta(path, tiny_backbone)


def test_a_long_header_is_refused_before_it_is_read(good: Path, tmp_path: Path) -> None:
    header, data = header_and_data(good)
    header["__metadata__"]["deltabert"] += " " * 50 * 2**20
    path = write(tmp_path / "x.safetensors", header, data)
    for read in (read_manifest, read_delta):
        with pytest.raises(DeltaFormatError, match=r"the header has 52,.* at most 4,194,304"):
            read(path)


LAYOUTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown dtype": (lambda info: info.update(dtype="F4"), "dtype"),
    "a dtype that is a list": (lambda info: info.update(dtype=["F32"]), "unhashable|dtype"),
    "a negative shape": (lambda info: info.update(shape=[-1, -2]), "shape"),
    "a shape of fractions": (lambda info: info.update(shape=[2.0]), "shape"),
    "a shape that is no list": (lambda info: info.update(shape=2), "shape|iterable"),
    "a truth value as offset": (lambda info: info.update(data_offsets=[False, 8]), "offsets"),
    "one offset": (lambda info: info.update(data_offsets=[8]), "unpack|size 2"),
    "a shape of another size": (lambda info: info.update(shape=[3]), "offsets|offset"),
    "an offset beyond the file": (
        lambda info: info.update(shape=[2**40], data_offsets=[0, 2**42]),
        "offset",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_must_fill_the_file(layout: str, good: Path, tmp_path: Path) -> None:
    change, reason = LAYOUTS[layout]
    header, data = header_and_data(good)
    change(header["classifier.bias"])
    path = write(tmp_path / "x.safetensors", header, data)
    for read in (read_manifest, read_delta):
        with pytest.raises(DeltaFormatError, match="not a readable safetensors file"):
            read(path)
    with pytest.raises(DeltaFormatError, match=reason):
        read_manifest(path)


@pytest.mark.parametrize("metadata", [[], "x", 3, {"deltabert": {}}, {"deltabert": None}])
def test_metadata_is_an_object_of_texts(metadata: Any, good: Path, tmp_path: Path) -> None:
    header, data = header_and_data(good)
    path = write(tmp_path / "x.safetensors", header | {"__metadata__": metadata}, data)
    for read in (read_manifest, read_delta):
        with pytest.raises(DeltaFormatError, match=r"metadata|expected a"):
            read(path)


@pytest.mark.parametrize("header", [[], 1, "x", None, {"a": None}, {"a": []}, {"a": {}}])
def test_a_header_is_an_object_of_objects(header: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", header, b"")
    for read in (read_manifest, read_delta):
        with pytest.raises(DeltaFormatError):
            read(path)


def test_a_copy_in_progress_is_told_as_one(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(good.read_bytes()[:-10])
    with pytest.raises(DeltaFormatError, match="cut off or still being copied"):
        read_manifest(path)
