"""`python -m app keys`: what it writes, what it prints, and what it refuses."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import main
from app.keys.key import parse_keys

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys.toml"
    monkeypatch.setenv("DELTABERT_KEYS_FILE", str(path))
    return path


def run(*arguments: str) -> int:
    return main(["keys", *arguments])


def test_a_new_key_is_shown_once_and_stored_as_a_digest(path: Path, capsys: Captured) -> None:
    assert run("new", "team-a", "--task", "team-a-*", "--task", "sst2") == 0
    shown = capsys.readouterr()
    secret = shown.out.removesuffix("\n")
    assert secret.startswith("dbk_")
    assert secret not in shown.err
    assert "the key 'team-a' is made" in shown.err
    text = path.read_text(encoding="utf-8")
    assert secret not in text
    key = parse_keys(text)["team-a"]
    assert key.sha256 == hashlib.sha256(secret.encode()).hexdigest()
    assert key.scopes == {"predict"}
    assert key.tasks == ("team-a-*", "sst2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["keys.toml"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_key_is_not_kept_if_its_secret_can_not_be_shown(path: Path) -> None:
    command = [sys.executable, "-m", "app", "keys", "new", "a", "--task", "*"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "error: standard output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not parse_keys(path.read_text(encoding="utf-8"))


def test_all_options_reach_the_file(path: Path) -> None:
    arguments = "new a --task * --scope admin --scope predict --rows-per-minute 600"
    arguments += " --requests-per-minute 60 --burst-s 2.5 --queue-share 0.25 --expires 2027-01-31"
    assert run(*arguments.split()) == 0
    key = parse_keys(path.read_text(encoding="utf-8"))["a"]
    assert key.scopes == {"admin", "predict"}
    assert (key.rows_per_minute, key.requests_per_minute) == (600, 60)
    assert (key.burst_s, key.queue_share, str(key.expires)) == (2.5, 0.25, "2027-01-31")


def test_reading_alone_and_changing_alone_are_possible(path: Path) -> None:
    assert run("new", "a", "--task", "*", "--scope", "read") == 0
    assert run("new", "b", "--task", "*", "--scope", "admin") == 0
    keys = parse_keys(path.read_text(encoding="utf-8"))
    assert [keys[name].scopes for name in "ab"] == [frozenset(), {"admin"}]


def test_rights_without_a_key_have_no_secret(path: Path, capsys: Captured) -> None:
    assert run("new", "anonymous", "--task", "*", "--rows-per-minute", "60") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "requests without a key have these rights" in shown.err
    assert parse_keys(path.read_text(encoding="utf-8"))["anonymous"].sha256 is None
    assert run("new", "anonymous", "--task", "*", "--scope", "admin") == 1


def test_comments_mode_and_other_keys_stay(path: Path, capsys: Captured) -> None:
    assert run("new", "a", "--task", "x") == 0
    text = "# who: Ann\n" + path.read_text(encoding="utf-8") + "# the last line\n"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o640)
    assert run("new", "b", "--task", "y", "--queue-share", "0.5") == 0
    assert run("remove", "b") == 0
    after = path.read_text(encoding="utf-8")
    assert after.startswith("# who: Ann\n")
    assert "# the last line" in after
    assert list(parse_keys(after)) == ["a"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "use chmod 600" in capsys.readouterr().err


def test_a_link_stays_a_link(path: Path) -> None:
    real = path.parent / "real.toml"
    path.symlink_to(real)
    assert run("new", "a", "--task", "x") == 0
    assert path.is_symlink()
    assert list(parse_keys(real.read_text(encoding="utf-8"))) == ["a"]


def test_a_list_tells_rights_and_limits_and_no_digest(path: Path, capsys: Captured) -> None:
    run("new", "a", "--task", "x", "--rows-per-minute", "60", "--expires", "2027-01-31")
    run("new", "b", "--task", "*", "--scope", "read")
    digests = [key.sha256 for key in parse_keys(path.read_text(encoding="utf-8")).values()]
    capsys.readouterr()
    assert run("list") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "a  scopes=predict  tasks=x  rows_per_minute=60  expires=2027-01-31",
        "b  scopes=read  tasks=*",
    ]
    assert not any(digest and digest in shown for digest in digests)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["new", "a", "--task", "x"], 1, "there is a key 'a' already"),
        (["new", "a b", "--task", "x"], 1, "1 to 64 letters"),
        (["new", "dbk_x", "--task", "x"], 1, "begins with dbk_"),
        (["new", "b", "--task", ""], 1, "at least 1 character"),
        (["new", "b"], 2, "--task"),
        (["new", "b", "--task", "x", "--scope", "root"], 2, "invalid choice"),
        (["new", "b", "--task", "x", "--rows-per-minute", "0"], 1, "greater than or equal to 1"),
        (["new", "b", "--task", "x", "--rows-per-minute", "many"], 2, "invalid int"),
        (["new", "b", "--task", "x", "--expires", "soon"], 2, "'soon' is not a day"),
        (["remove", "c"], 1, "there is no key 'c'"),
        (["remove"], 2, "name"),
        ([], 2, "command"),
        (["old"], 2, "invalid choice"),
        (["list", "--file", "no/such/file"], 1, "No such file"),
        (["new", "b", "--task", "x", "--file", "no/such/file"], 1, "No such file"),
    ],
)
def test_misuse_changes_nothing(
    path: Path, capsys: Captured, arguments: list[str], code: int, said: str
) -> None:
    assert run("new", "a", "--task", "x") == 0
    before = path.read_text(encoding="utf-8")
    capsys.readouterr()
    try:
        status = run(*arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    shown = capsys.readouterr()
    assert (status, shown.out) == (code, "")
    assert said in shown.err
    assert path.read_text(encoding="utf-8") == before
    assert [each.name for each in path.parent.iterdir()] == ["keys.toml"]


def test_a_broken_file_is_left_alone(path: Path, capsys: Captured) -> None:
    path.write_text("[a", encoding="utf-8")
    for arguments in (("new", "b", "--task", "x"), ("remove", "a"), ("list",)):
        assert run(*arguments) == 1
        assert f"error: {path}: not TOML: " in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "[a"


def test_the_commands_of_the_guide_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    guide = Path(__file__).parents[4] / "docs/guide/keys.md"
    commands = re.findall(r"^python -m app (keys new .*)$", guide.read_text("utf-8"), re.MULTILINE)
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert main(shlex.split(command.partition(" > ")[0])) == 0
        assert capsys.readouterr().out.startswith("dbk_")
    assert list(parse_keys(Path("keys.toml").read_text("utf-8"))) == ["team-a", "prometheus"]


def test_the_command_that_the_page_shows_makes_a_key(path: Path) -> None:
    panel = Path(__file__).parents[4] / "frontend/panels/admin.py"
    (command,) = re.findall(r"`python -m app (keys new [^`]+)`", panel.read_text("utf-8"))
    assert main(shlex.split(command)) == 0
    assert parse_keys(path.read_text("utf-8"))["NAME"].scopes == {"admin"}


def test_without_a_file_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delenv("DELTABERT_KEYS_FILE", raising=False)
    assert run("list") == 1
    assert "add --file, or set DELTABERT_KEYS_FILE" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_file_and_shows_no_secret(
    path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("new", "a", "--task", "x") == 0
    before = path.read_text(encoding="utf-8")
    capsys.readouterr()

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert run("new", "b", "--task", "x") == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "No space left on device" in shown.err
    assert path.read_text(encoding="utf-8") == before
    assert [each.name for each in path.parent.iterdir()] == ["keys.toml"]


def test_commands_at_the_same_time_lose_no_key(path: Path) -> None:
    program = "import sys; from app.__main__ import main; sys.exit(main(sys.argv[1:]))"
    started: list[Any] = [
        subprocess.Popen(
            [sys.executable, "-c", program, "keys", "new", f"k{n}", "--task", "x"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for n in range(6)
    ]
    assert [process.wait(60) for process in started] == [0] * 6
    assert sorted(parse_keys(path.read_text(encoding="utf-8"))) == [f"k{n}" for n in range(6)]
