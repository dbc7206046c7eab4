"""The keyring: which key a secret is, what it may, and how it follows its file."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.errors import ForbiddenError
from app.keys import keyring as module
from app.keys.key import Key, KeysError, digest_of
from app.keys.keyring import Caller, Keyring
from app.keys.usage import Usage


def line(name: str, secret: str = "", rest: str = "") -> str:
    digest = digest_of((secret or f"secret of {name}").encode()).hex()
    return f'{name} = {{sha256 = "{digest}", scopes = ["predict"], tasks = ["{name}-*"]{rest}}}\n'


def caller(*tasks: str, **facts: object) -> Caller:
    given: Any = {"name": "k", "sha256": "0" * 64, "scopes": {"predict"}, "tasks": tasks}
    key = Key(**(given | facts))
    return Caller(key, Usage(key, 100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(line("a") + line("b"), encoding="utf-8")
    path.chmod(0o600)
    return path


def found(keyring: Keyring, name: str) -> str | None:
    caller = keyring.find(f"secret of {name}".encode())
    return None if caller is None else caller.key.name


def test_a_secret_finds_its_key_and_no_other(path: Path) -> None:
    keyring = Keyring(line("c"), path, 100)
    assert [found(keyring, name) for name in "abcd"] == ["a", "b", "c", None]
    assert keyring.find(b"") is None
    assert keyring.find(digest_of(b"secret of a").hex().encode()) is None, "a digest is no secret"
    assert keyring.names == ["a", "b", "c"]


def test_every_key_is_compared_whichever_is_right(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bytes] = []

    def compare(given: bytes, known: bytes) -> bool:
        compared.append(known)
        return given == known

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keyring = Keyring("", path, 100)
    for name in ("a", "b", "no key"):
        found(keyring, name)
        assert len(compared) == 2
        compared.clear()


@pytest.mark.parametrize(
    ("patterns", "task", "may"),
    [
        (("*",), "anything/at all", True),
        (("sst2",), "sst2", True),
        (("sst2",), "sst22", False),
        (("sst2",), "SST2", False),
        (("sst2",), "sst2\n", False),
        (("team-a-*",), "team-a-x", True),
        (("team-a-*",), "team-ab-x", False),
        (("team-a-*", "q?"), "q1", True),
        (("a.c",), "abc", False),
        ((), "", False),
        ((), "sst2", False),
    ],
)
def test_patterns_name_tasks(patterns: tuple[str, ...], task: str, may: bool) -> None:
    one = caller(*patterns)
    assert one.may_use(task) is may
    if may:
        one.check_task(task)
    else:
        with pytest.raises(ForbiddenError, match="the key 'k' may not use the task"):
            one.check_task(task)


def test_a_scope_that_is_not_named_is_not_given() -> None:
    one = caller("*")
    one.check_scope("predict")
    with pytest.raises(ForbiddenError, match="the key 'k' lacks the scope 'admin'"):
        one.check_scope("admin")
    for scope in ("predict", "admin"):
        with pytest.raises(ForbiddenError):
            Keyring("", None, 100).anonymous.check_scope(scope)


def test_only_a_key_for_all_tasks_is_for_all() -> None:
    caller("x", "*").check_all("this concerns all tasks")
    with pytest.raises(ForbiddenError, match=r"this concerns all tasks, so it needs a key"):
        caller("a*", "b*").check_all("this concerns all tasks")


def test_a_key_expires_at_the_beginning_of_its_day() -> None:
    today = datetime.now(UTC).date()
    assert caller("*", expires=today).has_expired
    assert not caller("*", expires=today + timedelta(days=1)).has_expired
    assert not caller("*").has_expired


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    keyring = Keyring("", path, 100)
    path.write_text(line("b") + line("c"), encoding="utf-8")
    keyring.reload()
    assert [found(keyring, name) for name in "abc"] == [None, "b", "c"]
    (record,) = caplog.records
    assert record.getMessage() == "read the file of keys again: 2 keys, added c, removed a"
    monkeypatch.setattr(Path, "open", None)
    keyring.reload()


@pytest.mark.parametrize("broken", ["[a", "x = 1", "\xff", None, 5 * 2**20 * "#"])
def test_a_broken_file_keeps_the_keys_and_logs_one_line(
    path: Path, caplog: pytest.LogCaptureFixture, broken: str | None
) -> None:
    keyring = Keyring("", path, 100)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken, encoding="latin-1")
    for _ in range(3):
        keyring.reload()
    assert [found(keyring, name) for name in "ab"] == ["a", "b"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith(f"the previous file of keys stays in use: {path}: ")
    caplog.clear()
    path.write_text(line("a"), encoding="utf-8")
    path.chmod(0o600)
    keyring.reload()
    assert [found(keyring, name) for name in "ab"] == ["a", None]
    assert not caplog.records


def test_a_file_that_is_replaced_by_a_link_is_noticed(path: Path, tmp_path: Path) -> None:
    """Kubernetes swaps a link to a folder when a secret changes."""
    for folder, text in (("one", line("a")), ("two", line("b"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "keys.toml").write_text(text, encoding="utf-8")
        (tmp_path / folder / "keys.toml").chmod(0o600)
    current = tmp_path / "current"
    current.symlink_to("one")
    keyring = Keyring("", current / "keys.toml", 100)
    assert keyring.names == ["a"]
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").replace(current)
    keyring.reload()
    assert keyring.names == ["b"]


def test_what_a_key_has_used_stays_unless_its_limits_change(path: Path) -> None:
    def rate(per_minute: int, tasks: str = "") -> str:
        return line("a", rest=f", rows_per_minute = {per_minute}{tasks}")

    def usage_of_a() -> Usage:
        caller = keyring.find(b"secret of a")
        assert caller is not None
        return caller.usage

    path.write_text(rate(60), encoding="utf-8")
    keyring = Keyring("", path, 100)
    first = usage_of_a()
    path.write_text(rate(60) + line("b"), encoding="utf-8")
    keyring.reload()
    assert usage_of_a() is first
    path.write_text(rate(61), encoding="utf-8")
    keyring.reload()
    assert usage_of_a() is not first


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o600, None), (0o640, None), (0o644, "everyone can read it"), (0o620, "others can write")],
)
def test_a_file_that_is_too_open_is_warned_of(
    path: Path, caplog: pytest.LogCaptureFixture, mode: int, said: str | None
) -> None:
    path.chmod(mode)
    Keyring("", path, 100)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (said is not None)
    assert said is None or said in messages[0]


def test_an_empty_file_is_warned_of_and_refuses_everything(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("", encoding="utf-8")
    assert Keyring("", path, 100).find(b"secret of a") is None
    assert "there is no key" in caplog.text


def test_keys_that_cannot_be_used_name_their_source(path: Path, tmp_path: Path) -> None:
    for inline, file, said in (
        ("[a", None, r"DELTABERT_KEYS: not TOML"),
        ("", tmp_path / "none.toml", r"none.toml: No such file"),
        ("", tmp_path, r"Is a directory"),
        (line("a", "another secret"), path, r"DELTABERT_KEYS has a key 'a', too"),
        (line("c", "secret of a"), path, r"'c' and 'a' have the same sha256"),
    ):
        with pytest.raises(KeysError, match=said):
            Keyring(inline, file, 100)


def test_the_watch_follows_the_file_and_survives_surprises(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_CHECK_EVERY_S", 0.01)
    keyring = Keyring("", path, 100)
    reload, surprises = Keyring.reload, [RuntimeError("a surprise")]

    def reload_or_fail(keyring: Keyring) -> None:
        if surprises:
            raise surprises.pop()
        reload(keyring)

    monkeypatch.setattr(Keyring, "reload", reload_or_fail)

    path.write_text(line("c"), encoding="utf-8")

    async def run() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(keyring.watch(), 1)

    asyncio.run(run())
    assert keyring.names == ["c"]
    assert "a surprise" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_keeps_the_keys_and_holds_nothing_up(
    path: Path, caplog: pytest.LogCaptureFixture, make: Callable[[Path], None]
) -> None:
    keyring = Keyring("", path, 100)
    path.unlink()
    make(path)
    thread = threading.Thread(target=keyring.reload, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert found(keyring, "a") == "a"
    assert f"{path}: {'Is a directory' if make is Path.mkdir else 'not a file'}" in caplog.text


def test_a_file_that_changes_while_it_is_read_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An editor that empties the file first would lock all clients out, and forget their use."""
    keyring, read = Keyring("", path, 100), Keyring._read
    usage = keyring.find(b"secret of a").usage  # type: ignore[union-attr]
    path.write_text("", encoding="utf-8")

    def read_and_write(self: Keyring) -> dict[str, Key]:
        keys = read(self)
        path.write_text(line("a") + line("b") + line("c"), encoding="utf-8")
        return keys

    monkeypatch.setattr(Keyring, "_read", read_and_write)
    keyring.reload()
    assert found(keyring, "a") == "a"
    monkeypatch.setattr(Keyring, "_read", read)
    keyring.reload()
    assert [found(keyring, name) for name in "abc"] == ["a", "b", "c"]
    assert keyring.find(b"secret of a").usage is usage  # type: ignore[union-attr]
    assert "there is no key" not in caplog.text
