"""The errors of deltas and of the backbone; `app.errors` maps them to HTTP statuses.

DeltaError
├── DeltaNotFoundError    no such task, strategy or version (carries near matches)
├── DeltaFormatError      the file is not a sound delta (carries path and reason)
├── DeltaMismatchError    a sound delta, but for another backbone or tokenizer
├── BackboneError         the backbone can't be loaded or isn't supported
└── InvalidTextError      a row of text doesn't fit the task (carries row and field)
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Callable, Iterable
from pathlib import Path

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
    """A file that claims to be a delta breaks the format; nothing in it is used."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class DeltaMismatchError(DeltaError):
    """A sound delta was trained on another backbone or tokenizer than the one loaded."""

    def __init__(self, what: str, expected: object, found: object) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            f"{what} does not match: the loaded backbone has {expected}, "
            f"the delta was trained on {found}; "
            f"load that backbone (--backbone) or train the delta again on this one"
        )


class BackboneError(DeltaError):
    """The backbone is missing, unreadable or of an unsupported architecture."""


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
