"""Copies of remote folders, against a real S3 service: what is copied, kept, refused and healed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas import Backbone, Store
from deltas.store import remote
from deltas.store.address import RemoteAddress
from deltas.store.remote import RemoteError, RemoteFile
from deltas.store.sync import copy_folder, sync
from tests.integration.deltas.store.conftest import Contents, files_of
from tests.integration.s3_server import SECRET, Bucket, S3Service

Make = Callable[[int], Contents]
PREFIX = "team/a/"


def put_all(bucket: Bucket, contents: Contents, prefix: str = PREFIX) -> RemoteAddress:
    """Upload files below a prefix; return the address of the folder."""
    for name, content in contents.items():
        bucket.put(prefix + name, content)
    return RemoteAddress("s3", bucket.name, prefix.strip("/"))


def test_a_copy_has_the_deltas_and_nothing_else(
    bucket: Bucket, contents: Make, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    wanted = contents(0) | {"tiny-bert/toy2/head.traffic.json": b'{"split": null}'}
    address = put_all(bucket, wanted)
    a_delta = next(iter(contents(0).values()))
    for name in ("card.md", ".hidden.safetensors", ".git/a.safetensors", "x/.b.safetensors"):
        bucket.put(PREFIX + name, a_delta)
    bucket.put("team/ab/other.safetensors", a_delta)
    found = sync(address, tmp_path / "copy")
    assert files_of(found.folder) == wanted
    assert (found.num_files, found.num_changed, found.problem) == (5, 5, "")
    assert found.refused == ()
    assert len(Store([found.folder], backbone=tiny_backbone.ref).records) == 4


def test_only_changes_are_read(
    bucket: Bucket, contents: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = put_all(bucket, contents(0))
    sync(address, tmp_path)
    kept, replaced, *_, gone = contents(0)
    bucket.put(PREFIX + replaced, contents(1)[replaced])
    bucket.put(PREFIX + "new.safetensors", contents(1)[kept])
    bucket.delete(PREFIX + gone)
    read: list[str] = []
    real = remote._S3Folder.read

    def read_and_note(folder: remote._S3Folder, file: remote.RemoteFile) -> bytes:
        read.append(file.name)
        return real(folder, file)

    monkeypatch.setattr(remote._S3Folder, "read", read_and_note)
    found = sync(address, tmp_path)
    assert sorted(read) == sorted([replaced, "new.safetensors"])
    assert found.num_changed == 3
    wanted = contents(0) | {replaced: contents(1)[replaced], "new.safetensors": contents(1)[kept]}
    del wanted[gone]
    assert files_of(tmp_path) == wanted
    read.clear()
    assert sync(address, tmp_path).num_changed == 0
    assert read == []


def test_wrong_bytes_never_reach_the_copy(
    bucket: Bucket, contents: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = put_all(bucket, contents(0))
    sync(address, tmp_path)
    name, other, *_ = contents(0)
    flipped = bytearray(contents(1)[name])
    flipped[-3] ^= 1
    bucket.put(PREFIX + name, bytes(flipped))
    bucket.put(PREFIX + "pickle.safetensors", b"\x80\x04pickle")
    bucket.put(PREFIX + "cut.safetensors", contents(0)[other][:-1])
    bucket.put(PREFIX + "empty.safetensors", b"")
    bucket.put(PREFIX + "t.traffic.json", b"[1")
    found = sync(address, tmp_path)
    assert files_of(tmp_path) == contents(0), "the earlier content stays"
    reasons = {path.relative_to(tmp_path).as_posix(): reason for path, reason in found.refused}
    assert set(reasons) == {name, "pickle.safetensors", "cut.safetensors"} | {
        "empty.safetensors",
        "t.traffic.json",
    }
    assert "the file is damaged" in reasons[name]
    assert reasons[name].endswith("the earlier content is kept")
    assert reasons["t.traffic.json"] == "not a JSON object"

    with monkeypatch.context() as patch:
        patch.setattr(remote._S3Folder, "read", pytest.fail)
        assert sync(address, tmp_path).refused == found.refused, "known, and not read again"
    bucket.put(PREFIX + name, contents(1)[name])
    assert dict(sync(address, tmp_path).refused).keys() == {tmp_path / each for each in reasons} - {
        tmp_path / name
    }
    assert files_of(tmp_path)[name] == contents(1)[name]


def test_odd_names_stay_outside(bucket: Bucket, contents: Make, tmp_path: Path) -> None:
    """The service keeps objects as files, so they are made as files."""
    address = put_all(bucket, contents(0))
    names = ["a\\b.safetensors", "\u2025/c.safetensors", "~/d.safetensors"]
    names += ["e.safetensors/f.safetensors", "/".join("g" * 30) + ".safetensors"]
    for name in names:
        path = bucket.service.folder / bucket.name / PREFIX / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(next(iter(contents(0).values())))
    found = sync(address, tmp_path / "copy")
    assert files_of(tmp_path) == {f"copy/{name}": each for name, each in contents(0).items()}
    assert len(found.refused) == len(names)
    assert all("can't become a path" in reason for _, reason in found.refused)
    (bucket.service.folder / bucket.name / PREFIX / "new\nline.safetensors").write_bytes(b"")
    assert "invalid path" in sync(address, tmp_path / "copy").problem, "obstore gives no list then"
    assert files_of(tmp_path) == {f"copy/{name}": each for name, each in contents(0).items()}


class Listed:
    """A folder of a service that gives any names; obstore itself refuses some of S3's."""

    def __init__(self, names: list[str], content: bytes) -> None:
        self.names = names
        self.content = content

    def files(self) -> Iterator[RemoteFile]:
        yield RemoteFile("sound.safetensors", len(self.content), "1")
        yield from (RemoteFile(name, len(self.content), "1") for name in self.names)

    def read(self, file: RemoteFile) -> bytes:
        return self.content


PARTS = st.sampled_from(["..", ".", "", "a", "~", "\0", "%2e%2e", "a\\..", "x.safetensors", ".h"])
NAMES = st.lists(PARTS, min_size=1, max_size=6).map(lambda parts: "/".join(parts) + ".safetensors")


@given(names=st.lists(NAMES, max_size=8))
def test_no_name_leads_out_of_the_copy(names: list[str], contents: Make) -> None:
    content = next(iter(contents(0).values()))
    with TemporaryDirectory() as outer, pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltas.store.sync.open_remote", lambda _: Listed(names, content))
        copy = Path(outer) / "in" / "copy"
        found = sync(RemoteAddress("s3", "bucket", ""), copy)
        for name in files_of(Path(outer)):
            assert name.startswith("in/copy/")
            assert name.removeprefix("in/copy/") in {"sound.safetensors", *names}
        for path, _ in found.refused:
            assert copy.resolve() in path.resolve().parents


def test_a_copy_serves_while_the_service_is_down(
    bucket: Bucket, contents: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    address = put_all(bucket, contents(0))
    before = sync(address, tmp_path)
    bucket.service.stop()
    try:
        down = sync(address, tmp_path)
        assert down.problem.startswith("can't be used (")
        assert down.complete_at == before.complete_at
        assert f"the copy of {before.complete_at:%Y-%m-%dT%H:%M:%SZ} is used" in down.describe()
        assert files_of(tmp_path) == contents(0)
        with pytest.raises(RemoteError, match="can't be used") as caught:
            sync(address, tmp_path / "other")
        assert SECRET not in str(caught.value)
    finally:
        bucket.service.start()
    put_all(bucket, contents(1))
    assert sync(address, tmp_path).problem == ""
    assert files_of(tmp_path) == contents(1)
    assert SECRET not in caplog.text


def test_nothing_is_removed_because_a_folder_looks_empty(
    bucket: Bucket, contents: Make, tmp_path: Path
) -> None:
    address = put_all(bucket, contents(0))
    sync(address, tmp_path)
    for name in contents(0):
        bucket.delete(PREFIX + name)
    assert "has no delta" in sync(address, tmp_path).problem
    assert files_of(tmp_path) == contents(0)
    with pytest.raises(RemoteError, match="correct the name of the folder"):
        sync(RemoteAddress("s3", bucket.name, "misspelt"), tmp_path / "other")
    with pytest.raises(RemoteError, match="NoSuchBucket"):
        sync(RemoteAddress("s3", "no-such-bucket", ""), tmp_path / "other")


def test_a_folder_beyond_the_limits_is_not_copied(
    bucket: Bucket, contents: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = put_all(bucket, contents(0))
    total = sum(map(len, contents(0).values()))
    with pytest.raises(RemoteError, match=f"has {total:,} bytes of deltas; at most 2,000 are"):
        sync(address, tmp_path, max_bytes=2000)
    assert files_of(tmp_path) == {}
    monkeypatch.setattr("deltas.store.sync.MAX_FILES", 3)
    with pytest.raises(RemoteError, match="has more than 3 deltas"):
        sync(address, tmp_path)


@pytest.mark.slow
def test_pages_of_a_large_folder_are_all_read(
    bucket: Bucket, contents: Make, tmp_path: Path
) -> None:
    content = contents(0)["tiny-bert/toy2/head.safetensors"]
    address = put_all(bucket, {f"{n:04}.safetensors": content for n in range(1100)})
    assert sync(address, tmp_path).num_files == 1100
    assert len(files_of(tmp_path)) == 1100


def test_a_damaged_copy_heals(bucket: Bucket, contents: Make, tmp_path: Path) -> None:
    address = put_all(bucket, contents(0))
    sync(address, tmp_path)
    cut, gone, *_ = contents(0)
    (tmp_path / cut).write_bytes(b"torn")
    (tmp_path / gone).unlink()
    (tmp_path / "stray.safetensors").write_bytes(b"stray")
    (tmp_path / ".left.tmp").write_bytes(b"left by a crash")
    sync(address, tmp_path)
    assert files_of(tmp_path) == contents(0)
    assert not (tmp_path / ".left.tmp").exists()
    (tmp_path / ".index.json").write_bytes(b'{"files": 1')
    assert sync(address, tmp_path).num_changed == 4
    assert files_of(tmp_path) == contents(0)


def test_a_copy_that_cannot_be_written_is_one_sentence(
    bucket: Bucket, contents: Make, tmp_path: Path
) -> None:
    address = put_all(bucket, contents(0))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RemoteError, match=r"the local copy can't be written .*XDG_CACHE_HOME"):
        sync(address, tmp_path / "file" / "copy")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(RemoteError, match="other users can write"):
        sync(address, shared)


def test_each_address_and_endpoint_has_a_copy_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    addresses = [RemoteAddress("s3", "b", "x"), RemoteAddress("s3", "b", "y")]
    addresses += [RemoteAddress("hf", "o/n", ""), RemoteAddress("hf", "o/n", "", "v1")]
    folders = {copy_folder(address) for address in addresses}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    folders.add(copy_folder(addresses[0]))
    assert len(folders) == 5
    assert {folder.parent for folder in folders} == {tmp_path / "deltabert" / "remote"}


@pytest.mark.slow
def test_processes_take_turns(
    bucket: Bucket, contents: Make, tmp_path: Path, s3: S3Service
) -> None:
    address = put_all(bucket, contents(0))
    running = [start_sync(address, tmp_path) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in running]
    assert sorted(outputs) == [["ready", "0"], ["ready", "0"], ["ready", "4"]]
    assert files_of(tmp_path) == contents(0)


PROGRAM = """
import sys
from pathlib import Path
from deltas.store.address import parse_root
from deltas.store.sync import sync
print("ready", flush=True)
print(sync(parse_root(sys.argv[1]), Path(sys.argv[2])).num_changed, flush=True)
"""


def start_sync(address: RemoteAddress, folder: Path) -> subprocess.Popen[str]:
    """Start a process that syncs; it prints a line when its libraries are loaded."""
    command = [sys.executable, "-c", PROGRAM, str(address), str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_whole_files(
    bucket: Bucket, contents: Make, tmp_path: Path
) -> None:
    """Each process is killed as soon as it has added files to those of the one before."""
    many = {f"t{n:02}/{name}": content for n in range(40) for name, content in contents(0).items()}
    address = put_all(bucket, many)
    partial = num_found = 0
    for _ in range(6):
        process = start_sync(address, tmp_path)
        assert process.stdout is not None
        with process.stdout as lines:
            assert lines.readline() == "ready\n"
            while process.poll() is None and len(files_of(tmp_path)) == num_found:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        found = files_of(tmp_path)
        assert found.items() <= many.items(), "a file that is not whole"
        num_found = len(found)
        partial += 0 < num_found < len(many)
    assert partial >= 1, "no process was killed while it copied"
    assert sync(address, tmp_path).num_files == len(many)
    assert files_of(tmp_path) == many
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_missing_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(Exception, match=r"pip install 'deltabert\[s3\]'"):
        sync(RemoteAddress("s3", "bucket", ""), tmp_path)


def test_a_sync_is_told_in_one_line(
    bucket: Bucket, contents: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "deltas")
    address = put_all(bucket, contents(0))
    assert sync(address, tmp_path).describe() == f"{address}: 4 files, 4 of them changed"
