"""What can go wrong with deltas and the backbone; `app.errors` maps these to statuses.

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
from collections.abc import Iterable
from pathlib import Path

_MOST_LISTED = 20
_MOST_COMPARED = 300


def near_matches(name: str, known: Iterable[str]) -> list[str]:
    """Known names that look like `name`, best first, three at most; letter case is ignored.

    Of thousands only those are compared that stand near it in the alphabet: all of ten thousand
    take a tenth of a second, and whoever asks for names that aren't there can ask for many.
    """
    wanted = name.casefold()[:128]
    folded = {candidate.casefold(): candidate for candidate in known}
    candidates = sorted(folded)
    if len(candidates) > _MOST_COMPARED:
        middle = bisect_left(candidates, wanted)
        start = min(max(0, middle - _MOST_COMPARED // 2), len(candidates) - _MOST_COMPARED)
        candidates = candidates[start : start + _MOST_COMPARED]
    close = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.5)
    return [folded[match] for match in close]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for known names that look like `name`, "" for none."""
    close = near_matches(name, known)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


class DeltaError(Exception):
    """Root of everything this package raises on purpose."""


class DeltaNotFoundError(DeltaError):
    """Nothing is known under that name; never answered with something else instead.

    Attributes:
        kind: what was looked for: "task", "strategy" or "version".
        name: the name as given.
        available: all known names, sorted.
        suggestions: known names that look like `name`, best first.
    """

    def __init__(self, kind: str, name: str, available: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.available = sorted(set(available))
        self.suggestions = close = near_matches(name, self.available)
        shown = ", ".join(self.available[:_MOST_LISTED]) or "none"
        if len(self.available) > _MOST_LISTED:
            shown += f" and {len(self.available) - _MOST_LISTED} more"
        hint = f" Did you mean {' or '.join(map(repr, self.suggestions))}?" if close else ""
        super().__init__(f"unknown {kind} {name[:128]!r}.{hint} Available: {shown}")


class DeltaFormatError(DeltaError):
    """A file that claims to be a delta breaks the format; nothing of it is used."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class DeltaMismatchError(DeltaError):
    """A sound delta that was trained on another backbone or tokenizer than the one loaded."""

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

    Attributes:
        row: 0-based position of the row in the request.
        field: the offending field, or None when the row as a whole is wrong.
        problem: what is wrong and what is allowed.
    """

    def __init__(self, row: int, field: str | None, problem: str) -> None:
        self.row = row
        self.field = field
        self.problem = problem
        where = f"row {row}" if field is None else f"row {row}, field {field!r}"
        super().__init__(f"{where}: {problem}")
