"""The disk cache returns what was written, or nothing; trouble with it is logged once."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event

import pytest

from deltas.kernels import disk_cache


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no warning so far."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(disk_cache, "_warned", Event())
    return tmp_path / "deltabert"


def test_it_returns_what_was_written(cache: Path) -> None:
    assert disk_cache.read("a") is None
    disk_cache.write("a", b"first")
    disk_cache.write("a", b"second")
    disk_cache.write("b", b"")
    assert disk_cache.read("a") == b"second"
    assert disk_cache.read("b") == b""
    assert sorted(path.name for path in cache.iterdir()) == ["a", "b"]
    assert cache.stat().st_mode & 0o077 == 0


def test_a_damaged_file_counts_as_missing(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk_cache.write("a", b"content")
    stored = (cache / "a").read_bytes()
    for damaged in (b"", stored[:10], stored[:-1], stored + b"x", b"x" + stored[1:]):
        (cache / "a").write_bytes(damaged)
        assert disk_cache.read("a") is None
        assert f"{cache / 'a'} is damaged and made again" in caplog.text


def test_a_folder_that_cannot_be_used_is_told_once(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.joinpath("deltabert").write_text("a file where the folder should be")
    for name in ("a", "b"):
        disk_cache.write(name, b"content")
        assert disk_cache.read(name) is None
    assert len(caplog.records) == 1
    assert "set XDG_CACHE_HOME to a folder that can be written" in caplog.text


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(
    cache: Path, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """Machine code is read from it and run."""
    disk_cache.write("a", b"content")
    cache.chmod(mode)
    assert disk_cache.read("a") is None
    disk_cache.write("b", b"content")
    assert [path.name for path in cache.iterdir()] == ["a"]
    assert f"other users can write to {cache}" in caplog.text
    assert len(caplog.records) == 1


def test_a_folder_of_another_user_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk_cache.write("a", b"content")
    monkeypatch.setattr(os, "geteuid", lambda: cache.stat().st_uid + 1)
    assert disk_cache.read("a") is None
    assert f"{cache} belongs to another user" in caplog.text


def test_without_a_home_nothing_is_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_home() -> Path:
        raise RuntimeError("could not determine home directory")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # counts as unset
    monkeypatch.setattr(Path, "home", no_home)
    disk_cache.write("a", b"content")
    assert disk_cache.read("a") is None
    assert len(caplog.records) == 1


def test_half_a_file_is_never_seen(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_cache.write("a", b"first")

    def fail(*_: object) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    disk_cache.write("a", b"second")
    assert disk_cache.read("a") == b"first"
    assert [path.name for path in cache.iterdir()] == ["a"]
