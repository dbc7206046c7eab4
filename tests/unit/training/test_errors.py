"""Errors of users: their messages, and the exit codes and messages of the commands."""

from __future__ import annotations

import pytest

from deltas.errors import BackboneError
from training.errors import ConfigError, DataError, TaskError, listing, run_command


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("give one"), 2, "error: give one\n"),
        (TaskError("rta", ["rte"]), 2, "error: unknown task 'rta'. Did you mean 'rte'?"),
        (DataError("no rows", path="a.csv"), 1, "error: a.csv: no rows\n"),
        (BackboneError("not a BERT"), 1, "error: not a BERT\n"),
        (FileNotFoundError("gone"), 1, "error: gone\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(None), 0, ""),
    ],
)
def test_each_error_has_its_exit_code_and_message(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        raise error

    assert run_command(command) == code
    assert capsys.readouterr().err.startswith(message)


def test_a_command_without_an_error_gives_its_own_code() -> None:
    assert run_command(lambda: 1) == 1


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({}, "wrong"),
        ({"path": "a.csv"}, "a.csv: wrong"),
        ({"path": "a.csv", "row": 3, "column": "x"}, "a.csv, row 3, column 'x': wrong"),
    ],
)
def test_wrong_rows_are_named(where: dict[str, object], message: str) -> None:
    assert str(DataError("wrong", **where)) == message  # type: ignore[arg-type]


def test_long_lists_are_cut() -> None:
    assert listing([]) == "none"
    assert listing("ab") == "a, b"
    assert listing(map(str, range(22))).endswith("18, 19 and 2 more")
