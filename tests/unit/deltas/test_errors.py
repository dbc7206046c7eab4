"""Messages and attributes of the errors of `deltas`; over HTTP: `tests/http/test_errors.py`."""

from __future__ import annotations

import argparse
import difflib
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from deltas import (
    BackboneError,
    DeltaError,
    DeltaFormatError,
    DeltaMismatchError,
    DeltaNotFoundError,
    InvalidTextError,
)
from deltas.errors import (
    did_you_mean,
    escape_output,
    home_or_name,
    home_path,
    one_line,
    run_command,
    shortened,
)


def test_near_matches_ignore_case_and_come_best_first() -> None:
    error = DeltaNotFoundError("task", "COAL", ["sst2", "cola", "rte", "cola2"])
    assert error.suggestions == ["cola", "cola2"]
    assert error.available == ["cola", "cola2", "rte", "sst2"]
    assert str(error) == (
        "unknown task 'COAL'. Did you mean 'cola' or 'cola2'? Available: cola, cola2, rte, sst2"
    )


def test_few_of_thousands_of_names_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names close in alphabetical order are compared, also at the ends of the list."""
    names = [f"task{number:05d}" for number in range(10_000)]
    compared: list[int] = []
    find = difflib.get_close_matches

    def count(word: str, possibilities: Any, **more: Any) -> list[str]:
        compared.append(len(possibilities))
        return find(word, possibilities, **more)

    monkeypatch.setattr(difflib, "get_close_matches", count)
    for wanted, best in (
        ("task05000x", "task05000"),
        ("TASK04242", "task04242"),
        ("taks00001", "task00001"),
        ("tasks09999", "task09999"),
    ):
        assert best in DeltaNotFoundError("task", wanted, names).suggestions
    assert max(compared) <= 500


def test_without_near_matches_nothing_is_suggested() -> None:
    assert "Did you mean" not in str(DeltaNotFoundError("task", "zzz", ["cola"]))
    assert str(DeltaNotFoundError("version", "x", [])).endswith("Available: none")


def test_a_suggestion_can_be_shown_in_another_form() -> None:
    assert did_you_mean("prot", ["port", "bind"], str.upper) == " Did you mean PORT?"
    assert did_you_mean("zzz", ["port", "host"]) == ""


def test_long_lists_and_long_names_are_capped() -> None:
    error = DeltaNotFoundError("task", "n" * 10_000, [f"task{n:03}" for n in range(100)])
    assert len(str(error)) < 500
    assert "and 80 more" in str(error)
    assert len(error.available) == 100
    assert error.name == "n" * 10_000


@pytest.mark.parametrize("name", ["\0", "../../etc/passwd", "\ud800", "ﬀ", "İ", ""])
def test_any_name_can_be_printed(name: str) -> None:
    """The message can be encoded for any requested name."""
    str(DeltaNotFoundError("task", name, ["cola"])).encode()


def test_a_format_error_names_the_file() -> None:
    error = DeltaFormatError("some/file.safetensors", "is empty")
    assert (error.path, error.reason) == (Path("some/file.safetensors"), "is empty")
    assert str(error) == "some/file.safetensors: is empty"


def test_a_mismatch_names_both_values_and_the_remedy() -> None:
    error = DeltaMismatchError("backbone fingerprint", "sha256:aa", "sha256:bb")
    assert (error.what, error.expected, error.found) == (
        "backbone fingerprint",
        "sha256:aa",
        "sha256:bb",
    )
    for part in ("backbone fingerprint", "sha256:aa", "sha256:bb", "--backbone", "train"):
        assert part in str(error)


def test_invalid_text_names_row_and_field() -> None:
    assert str(InvalidTextError(3, "premise", "is missing")) == "row 3, field 'premise': is missing"
    assert str(InvalidTextError(0, None, "is no row")) == "row 0: is no row"


def test_one_root_catches_all() -> None:
    for error in (
        DeltaFormatError("a", "b"),
        DeltaMismatchError("a", "b", "c"),
        DeltaNotFoundError("a", "b", []),
        BackboneError("a"),
        InvalidTextError(0, None, "a"),
    ):
        assert isinstance(error, DeltaError)


def test_a_text_is_shown_on_one_line() -> None:
    assert one_line("a\nb\r\t\x1b[0m\u2028\u202e\u00e9\u4e2d") == (
        "a\\nb\\r\\t\\x1b[0m\\u2028\\u202e\u00e9\u4e2d"
    )
    assert one_line("\u200f\u200e\u061c\x9b") == "\\u200f\\u200e\\u061c\\x9b"


def test_a_reason_that_quotes_a_file_is_short_and_on_one_line() -> None:
    """A manifest of megabytes made a log line and an answer of megabytes."""
    error = DeltaFormatError("a", "x\x1b" * 1_000_000)
    assert len(error.reason) < 550
    assert "(2,000,000 characters)" in error.reason
    assert "\x1b" not in str(error)
    mismatch = str(DeltaMismatchError("id", "y" * 10_000, "z\n" * 10_000))
    assert len(mismatch) < 800
    assert "\n" not in mismatch
    assert shortened("short") == "short"


def test_an_error_on_the_terminal_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise DeltaError("first \x1b[2J\u202e\nsecond")

    assert run_command(fail) == 1
    assert capsys.readouterr().err == "error: first \\x1b[2J\\u202e\nsecond\n"


def test_a_leading_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home_path("~/a") == tmp_path / "a"
    assert home_path("~") == tmp_path
    assert home_path("a/~/b") == Path("a/~/b")
    assert home_or_name("~/a:config") == f"{tmp_path}/a:config"
    assert home_or_name("owner/name@main") == "owner/name@main"
    with pytest.raises(ValueError, match="'~no-such-user/a': no such user; write the folder"):
        home_path("~no-such-user/a")


def test_output_escapes_what_it_can_not_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="cp1252"))
    escape_output()
    sys.stdout.write("caf\u00e9 cafe\u0301 \u4e2d \udcff\n")
    sys.stdout.flush()
    assert raw.getvalue() == b"caf\xe9 cafe\\u0301 \\u4e2d \\udcff\n"
    monkeypatch.setattr(sys, "stdout", None)  # closed by the shell
    escape_output()


def test_a_command_ends_with_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    class MisuseError(Exception):
        pass

    def command(error: BaseException) -> int:
        raise error

    codes = [
        run_command(partial(command, error), "gone", (MisuseError, KeyError), misuse=(MisuseError,))
        for error in (
            MisuseError("wrong"),
            KeyError("x"),
            DeltaError("bad"),
            OSError("full"),
            BrokenPipeError(),
            KeyboardInterrupt(),
            SystemExit(3),
        )
    ]
    assert codes == [2, 1, 1, 1, 0, 130, 3]
    assert capsys.readouterr().err == "error: wrong\nerror: 'x'\nerror: bad\nerror: full\ngone\n"
    assert run_command(lambda: 7) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the path is empty; name a file or folder, '.' for the current folder"),
        ("a\0b", "'a\\x00b': a path has no zero character; remove it"),
        ("~no-such-user/a", "'~no-such-user/a': no such user; write the folder without ~"),
    ],
)
@pytest.mark.parametrize("read", [home_path, home_or_name])
def test_a_flag_says_why_a_text_is_no_path(
    text: str, message: str, read: Callable[[str], object], capsys: pytest.CaptureFixture[str]
) -> None:
    """An unset shell variable gives an empty text, which is no current folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=read)
    with pytest.raises(SystemExit):
        parser.parse_args(["--out", text])
    assert f"argument --out: {message}\n" in capsys.readouterr().err
