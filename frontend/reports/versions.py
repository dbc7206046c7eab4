"""Compares two versions of a delta by their manifests, and says what a change of deltas will do.

Tested by tests/unit/frontend/reports/test_versions.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST = 120  # characters of a value
_MAX_ITEMS = 12  # of a list
_LONG_FIELDS = ("entries", "training.history")  # they have views of their own


@dataclass(frozen=True)
class Difference:
    """A field of two manifests that differs; empty where one of them has no such field."""

    field: str
    first: str
    second: str


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Return the fields in which two manifests differ, in the order of the first one."""
    one, other = dict(_flat(first)), dict(_flat(second))
    return [
        Difference(field, one.get(field, ""), other.get(field, ""))
        for field in dict.fromkeys([*one, *other])
        if one.get(field) != other.get(field)
    ]


def _flat(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield each field with its value as text, such as ("training.seed", "0")."""
    if field in _LONG_FIELDS:
        yield field, f"{len(value)} items" if isinstance(value, list) else _length(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _flat(item, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        shown = ", ".join(_text(item) for item in value[:_MAX_ITEMS])
        more = f" and {len(value) - _MAX_ITEMS} more" if len(value) > _MAX_ITEMS else ""
        yield field, _cut(f"{shown}{more}")
    else:
        yield field, _cut(_text(value))


def _length(value: Any) -> str:
    steps = value.get("train", {}).get("step", ()) if isinstance(value, Mapping) else ()
    return f"{len(steps)} points" if steps else "none"


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


@dataclass(frozen=True)
class PlannedChange:
    """A change that waits for its confirmation: the request, and what it will do, in words."""

    title: str  # of the button that sends it
    effect: str
    method: str
    path: str
    body: Mapping[str, Any] | None = None
    query: Mapping[str, str | int] | None = None
    content: bytes | None = None


def upload_effect(name: str, size: str, default: str | None) -> str:
    """Say what the upload of a file does."""
    if default is None:
        return (
            f"A file of {size} becomes `{name}`, which the server doesn't serve yet. It is checked "
            "and tried on a row first; if it is bad, nothing changes."
        )
    return (
        f"A file of {size} becomes the default version of `{name}`, in place of `{default}`. It is "
        "checked and tried on a row first; if it is bad, nothing changes. Requests that run are "
        "still answered by the old version, which is kept for a roll-back."
    )


def roll_back_effect(name: str, default: str, version: str) -> str:
    """Say what a roll-back does."""
    return (
        f"Requests for `{name}` that name no version are answered by `{version}` instead of "
        f"`{default}`. No file is removed, so you can roll back to `{default}` later."
    )


def split_effect(name: str, default: str, version: str, share: int, *, shadow: bool) -> str:
    """Say what a split or a shadow does."""
    if shadow:
        return (
            f"Version `{version}` sees the rows of `{name}` after `{default}` has answered them. "
            "Clients notice nothing; the server's metrics count where both agree."
        )
    return (
        f"Version `{version}` answers {share} % of the requests for `{name}` that name no "
        f"version; `{default}` answers the rest. Clients that send X-Sticky-Key always get the "
        "same one."
    )


def clear_effect(name: str, default: str) -> str:
    """Say what the end of a split does."""
    return f"`{default}` answers every request for `{name}` that names no version. No file changes."


def remove_effect(name: str, versions: int, version: str | None) -> str:
    """Say what a removal does."""
    if version is not None:
        return (
            f"The file of version `{version}` of `{name}` is deleted from the server's folder. "
            "This can't be undone here; keep a copy if you may need it."
        )
    every = f"all {versions} versions" if versions > 1 else "the only version"
    return (
        f"`{name}` is no longer served: {every} in the server's folder are deleted. This can't be "
        "undone here. A version in a folder that the server only reads answers again, if there is "
        "one."
    )
