"""The errors of deltas and of the backbone, and what all commands do about errors and output.

`app.errors` maps the errors to HTTP statuses, `run_command` to exit codes.

DeltaError
├── DeltaNotFoundError    no such task, strategy or version (carries near matches)
├── DeltaFormatError      the file is not a sound delta (carries path and reason)
├── DeltaMismatchError    a sound delta, but for another backbone or tokenizer
├── BackboneError         the backbone can't be loaded or isn't supported
├── PredictionsError      a delta has no readable predictions beside it
└── InvalidTextError      a row of text doesn't fit the task (carries row and field)
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# Characters that would break a line, move the cursor or turn the direction of writing.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
_MAX_REASON = 500  # characters of a reason of refusal, in logs and in `GET /deltas`
_MAX_LISTED = 20
_MAX_COMPARED = 300


def near_matches(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that look like `name`, best first, ignoring letter case.

    Of thousands of names, only the closest in alphabetical order are compared: comparing ten
    thousand takes 0.1 s, and a client may ask for many unknown names.
    """
    wanted = name.casefold()[:128]
    folded = {candidate.casefold(): candidate for candidate in known}
    candidates = sorted(folded)
    if len(candidates) > _MAX_COMPARED:
        middle = bisect_left(candidates, wanted)
        start = min(max(0, middle - _MAX_COMPARED // 2), len(candidates) - _MAX_COMPARED)
        candidates = candidates[start : start + _MAX_COMPARED]
    close = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.5)
    return [folded[match] for match in close]


def did_you_mean(name: str, known: Iterable[str], show: Callable[[str], str] = repr) -> str:
    """Return " Did you mean 'a' or 'b'?" for an unknown name, or "" if no known name is near.

    `show` formats a suggestion.
    """
    close = [show(match) for match in near_matches(name, known)[:2]]
    return f" Did you mean {' or '.join(close)}?" if close else ""


def one_line(text: str) -> str:
    """Return a text on one line, with escapes in place of control characters."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def visible_lines(text: str) -> str:
    """Return a text with escapes in place of control characters, except for line breaks."""
    return "\n".join(map(one_line, text.split("\n")))


def shortened(text: str, longest: int = _MAX_REASON) -> str:
    """Return a text on one line, cut to a number of characters; the cut says how many it had."""
    shown = one_line(text[:longest])
    if len(text) <= longest and len(shown) <= longest:
        return shown
    return f"{shown[:longest]}... ({len(text):,} characters)"


class PathError(ValueError, argparse.ArgumentTypeError):
    """A text is no path; argparse shows the message as it is."""


def home_path(text: str | Path) -> Path:
    """Return a path with the home folder in place of a leading ~.

    Shells replace it in `--out ~/x`, but leave it in `--out=~/x`. An empty text would be the
    current folder: `--out "$FOLDER"` with an unset variable must not write there.

    Raises:
        PathError: the text is empty or has a zero character, or a user is named who has no home
            folder.
    """
    if text == "":
        raise PathError("the path is empty; name a file or folder, '.' for the current folder")
    if "\0" in str(text):
        raise PathError(f"{str(text)!r}: a path has no zero character; remove it")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise PathError(f"{str(text)!r}: no such user; write the folder without ~") from error


def home_or_name(text: str) -> str:
    """Return a text that may be a path or a name, with the home folder in place of a leading ~.

    Raises:
        PathError: as of `home_path`.
    """
    return text if text and text[0] != "~" and "\0" not in text else str(home_path(text))


def escape_output() -> None:
    """Let standard output and error escape what they can't encode, instead of failing there.

    A terminal or a pipe may be set to Windows' code page or to ASCII. A closed stream (`>&-`) is
    None; the null device takes its place, or the next file would get its number and its output.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # open until the process ends
            setattr(sys, name, os.fdopen(null, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run_command(
    command: Callable[[], int],
    interrupted: str = "stopped",
    errors: tuple[type[Exception], ...] = (),
    misuse: tuple[type[Exception], ...] = (),
) -> int:
    """Run a command, turn its errors into messages on standard error, and return the exit code.

    Args:
        command: returns its own exit code, which is given back.
        interrupted: the message after Ctrl-C, which is 130.
        errors: errors besides `DeltaError` and those of files; they are 1.
        misuse: those of them that are 2.
    """
    escape_output()
    return _write_out(_exit_code(command, interrupted, errors, misuse))


def parse_arguments(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse a command line; the text of --help is written before argparse ends the process.

    Raises:
        SystemExit: after --help or a wrong flag.
    """
    escape_output()
    try:
        return parser.parse_args(arguments)
    except SystemExit as stop:
        raise SystemExit(_write_out(int(stop.code or 0))) from None


def _exit_code(
    command: Callable[[], int],
    interrupted: str,
    errors: tuple[type[Exception], ...],
    misuse: tuple[type[Exception], ...],
) -> int:
    """Run a command and write its error; returns the exit code."""
    expected: tuple[type[Exception], ...] = (DeltaError, OSError, *errors)
    try:
        return command()
    except SystemExit as stop:  # argparse, after --help or a wrong flag
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of the output has seen enough
        return 0
    except KeyboardInterrupt:
        sys.stderr.write(f"{interrupted}\n")
        return 130
    except expected as error:
        sys.stderr.write(f"error: {visible_lines(error_text(error))}\n")
        return 2 if isinstance(error, misuse) else 1


def error_text(error: BaseException) -> str:
    """Return an error's message; that of a file has its path first, and no number."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _write_out(code: int) -> int:
    """Write out what standard output holds; returns the exit code of a command that had `code`.

    Output that nothing takes is discarded: Python would try again at its end, and complain.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"error: standard output: {error.strerror}\n")
            return code or 1
    return code


class DeltaError(Exception):
    """The root of all errors that this package raises on purpose."""


class DeltaNotFoundError(DeltaError):
    """No task, strategy or version has this name; nothing else is ever used in its place.

    `available` are all known names, sorted; `suggestions` look like `name`, the best first.
    """

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.available = sorted(set(available))
        self.suggestions = near_matches(name, self.available)
        shown = ", ".join(self.available[:_MAX_LISTED]) or "none"
        if len(self.available) > _MAX_LISTED:
            shown += f" and {len(self.available) - _MAX_LISTED} more"
        hint = did_you_mean(name, self.available)
        super().__init__(f"unknown {kind} {name[:128]!r}.{hint} Available: {shown}")


class DeltaFormatError(DeltaError):
    """A file that claims to be a delta breaks the format; nothing in it is used.

    The reason may quote the file: it is one line of at most 500 characters, without the path.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = shortened(reason)
        super().__init__(f"{path}: {self.reason}")


class DeltaMismatchError(DeltaError):
    """A sound delta was trained on another backbone or tokenizer than the one loaded."""

    def __init__(self, what: str, expected: object, found: object) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            f"{what} does not match: the loaded backbone has {shortened(str(expected), 200)}, "
            f"the delta was trained on {shortened(str(found), 200)}; "
            f"load that backbone (--backbone) or train the delta again on this one"
        )


class BackboneError(DeltaError):
    """The backbone is missing, unreadable or of an unsupported architecture."""


class PredictionsError(DeltaError):
    """No predictions of a delta are there to be read: no file, no such split, or a damaged file."""


class InvalidTextError(DeltaError):
    """One input row does not fit the task's text fields.

    `row` counts from 0; `field` is None if the whole row is wrong.
    """

    def __init__(self, row: int, field: str | None, problem: str) -> None:
        self.row = row
        self.field = field
        self.problem = problem
        where = f"row {row}" if field is None else f"row {row}, field {field!r}"
        super().__init__(f"{where}: {problem}")
