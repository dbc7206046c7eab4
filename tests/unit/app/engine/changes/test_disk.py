"""The thread of changes: in time although files hang, and alone although servers share a folder."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from app.engine.changes import disk
from app.engine.changes.disk import FileThread
from app.errors import StorageError
from deltas.store import versions

LATE_S = 0.05


def test_a_call_that_hangs_fails_in_time_and_those_after_it_wait_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "LIMIT_S", LATE_S)
    thread, hangs, done = FileThread(tmp_path), threading.Event(), []

    async def work() -> None:
        for function in (lambda: hangs.wait(60), lambda: done.append("too late")):
            with pytest.raises(StorageError, match=r"no answer within 0\.05 s; the change"):
                await thread.call(function)
        with pytest.raises(StorageError, match="no answer"):
            async with thread.alone():
                pytest.fail("it is not alone")
        hangs.set()
        monkeypatch.setattr(disk, "LIMIT_S", 60)
        await thread.call(done.append, "in time")
        async with thread.alone():  # the lock of the failed attempt is free again
            assert (tmp_path / ".changes.lock").exists()

    asyncio.run(work())
    thread.close()
    assert done == ["in time"], "a call that had not begun never does"


def test_the_reason_of_a_failure_names_no_path(tmp_path: Path) -> None:
    thread = FileThread(tmp_path / "gone")

    async def work() -> None:
        with pytest.raises(StorageError) as caught:
            async with thread.alone():
                pytest.fail("there is no folder")
        assert str(caught.value) == (
            "the folder of the deltas can't be used (No such file or directory)"
        )

    asyncio.run(work())
    thread.close()
    assert not (tmp_path / "gone").exists(), "the lock must not make it"


def test_servers_change_a_folder_one_at_a_time(tmp_path: Path) -> None:
    threads = [FileThread(tmp_path) for _ in range(4)]
    inside: list[int] = []

    async def change(thread: FileThread) -> None:
        for _ in range(5):
            async with thread.alone():
                inside.append(len(inside))
                before = list(inside)
                await asyncio.sleep(0.002)
                assert inside == before, "another server has changed the folder meanwhile"

    async def work() -> None:
        await asyncio.gather(*map(change, threads))

    asyncio.run(work())
    for thread in threads:
        thread.close()
    assert len(inside) == 20


def test_a_server_that_changes_for_ever_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "LOCK_S", LATE_S)
    holder = versions.FolderLock(tmp_path)
    holder.acquire()
    thread = FileThread(tmp_path)

    async def work() -> None:
        with pytest.raises(StorageError, match=r"another server has changed it for 0\.05 s"):
            async with thread.alone():
                pytest.fail("it is not alone")
        holder.release()
        async with thread.alone():
            pass

    asyncio.run(work())
    thread.close()


def test_without_a_folder_there_is_no_lock() -> None:
    thread = FileThread(None)

    async def work() -> int:
        async with thread.alone():
            return await thread.call(errno.errorcode.__len__)

    assert asyncio.run(work()) > 0
    thread.close()
