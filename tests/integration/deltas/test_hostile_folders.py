"""Folders with links in circles, pipes, strange names, closed doors and many files."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deltas import Store, read_manifest
from deltas.__main__ import main
from deltas.store.store import find_delta_files

NOBODY = 65534


@contextmanager
def closed(folder: Path) -> Iterator[None]:
    """Take away all rights to a folder, also from root, who would be let in nevertheless."""
    folder.chmod(0)
    try:
        if os.geteuid() == 0:
            os.seteuid(NOBODY)
        yield
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def delta_file(tiny_deltas: Path) -> Path:
    """A sound delta."""
    return next(tiny_deltas.rglob("bitfit.safetensors"))


def test_a_closed_folder_is_told_and_the_others_served(open_folder: Path, delta_file: Path) -> None:
    """It was skipped without a word, so its deltas were missing for no visible reason."""
    shutil.copy(delta_file, open_folder)
    inner = open_folder / "inner"
    inner.mkdir()
    shutil.copy(delta_file, inner)
    with closed(inner):
        store = Store([open_folder])
    assert len(store.records) == 1
    assert store.rejected == [(inner, "the folder can't be read (Permission denied)")]
    assert store.shown_name(inner) == "inner"


def test_a_root_behind_a_closed_door_is_told(open_folder: Path) -> None:
    root = open_folder / "closed" / "root"
    root.mkdir(parents=True)
    with closed(root.parent):
        store = Store([root])
    assert store.rejected == [(root, "the folder can't be read (Permission denied)")]


def test_commands_do_not_skip_a_closed_folder(
    open_folder: Path, delta_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(delta_file, open_folder)
    inner = open_folder / "inner"
    inner.mkdir()
    with closed(inner):
        assert main(["cards", str(open_folder)]) == 1
        assert capsys.readouterr().err == f"error: {inner}: Permission denied\n"
        assert main(["list", str(open_folder)]) == 1
    assert f"refused {inner}: the folder can't be read" in capsys.readouterr().err


def test_folders_in_folders_are_searched_at_any_depth(tmp_path: Path, delta_file: Path) -> None:
    """Deeper than Python's recursion goes, and then deeper than the system's paths."""
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for depth in range(2100):
            if depth == 1100:
                shutil.copy(delta_file, "x.safetensors")
            Path("d").mkdir()
            os.chdir("d")
        store = Store([tmp_path])
        assert len(store.records) == 1
        assert ["File name too long" in reason for _, reason in store.rejected] == [True]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil is recursive


def test_links_to_folders_are_not_followed(tmp_path: Path, delta_file: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("up", "up2"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    (tmp_path / "a" / "link.safetensors").symlink_to(delta_file)
    assert list(find_delta_files([tmp_path])) == [tmp_path / "a" / "link.safetensors"]


def test_a_folder_called_like_a_file_is_refused_and_searched(
    tmp_path: Path, delta_file: Path
) -> None:
    folder = tmp_path / "dir.safetensors"
    folder.mkdir()
    shutil.copy(delta_file, folder)
    store = Store([tmp_path])
    assert [path for path, _ in store.rejected] == [folder]
    assert len(store.records) == 1


def test_a_file_that_goes_while_the_store_looks_is_refused(
    tmp_path: Path, delta_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copy(delta_file, tmp_path / f"{name}.safetensors")

    def read_and_remove(path: Path) -> object:
        found = read_manifest(path)
        if path.stem == "a":
            path.unlink()
        return found

    monkeypatch.setattr("deltas.store.store.read_manifest", read_and_remove)
    store = Store([tmp_path])
    assert [record.path.stem for record in store.records] == ["b"]
    assert store.rejected == [
        (tmp_path / "a.safetensors", "can't be read (No such file or directory)")
    ]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb", "a\udcffb", " ", "-", "a'b\"c"])
def test_any_name_of_a_file_is_shown_on_one_safe_line(
    tmp_path: Path, delta_file: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{name}.safetensors"
    shutil.copy(delta_file, path)
    (tmp_path / f"{name} bad.safetensors").write_bytes(b"x")
    assert main(["list", str(tmp_path)]) == 1
    assert main(["cards", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == len(err.splitlines()) == 2
    assert (out + err).replace("\n", "").isprintable() or "\udcff" in name
    assert path.with_suffix(".md").exists()
    store = Store([tmp_path])
    for shown in map(store.shown_name, (path, tmp_path / f"{name} bad.safetensors")):
        shown.encode()


def test_cards_are_written_for_all_sound_files(
    tmp_path: Path, delta_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad file stopped the command, so the cards of all files behind it were missing."""
    (tmp_path / "a.safetensors").write_bytes(b"x")
    shutil.copy(delta_file, tmp_path / "b.safetensors")
    assert main(["cards", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"no card: {tmp_path / 'a.safetensors'}: not a")
    assert sorted(path.name for path in tmp_path.glob("*.md")) == ["b.md"]


@pytest.mark.slow
def test_ten_thousand_bad_files_hide_no_sound_one(tmp_path: Path, delta_file: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_bytes(b"123456789")
    for number in range(10_000):
        os.link(bad, tmp_path / f"{number}.safetensors")
    shutil.copy(delta_file, tmp_path / "sound.safetensors")
    store = Store([tmp_path])
    assert [record.path.stem for record in store.records] == ["sound"]
    assert len(store.rejected) == 10_000
