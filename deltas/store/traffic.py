"""Reads and writes the rules by which versions of a delta share its traffic.

A rule lies beside the default file of its delta, as `<strategy>.traffic.json`, and names the delta,
because the file's name is a shortened one. `app.engine.traffic` follows the rules. Tested by
tests/http/test_traffic.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deltas.errors import DeltaNotFoundError, shortened
from deltas.format import SUFFIX, write_atomically
from deltas.format.content import open_regular
from deltas.store.files import checked_path

TRAFFIC_SUFFIX = ".traffic.json"
_MAX_BYTES = 64 * 2**10

VersionName = Annotated[str, Field(min_length=1, max_length=256)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TrafficSplit(_Part):
    """A version that answers a share of the requests in place of the default one."""

    version: VersionName
    share: Annotated[float, Field(ge=0, le=1)]


class TrafficShadow(_Part):
    """A version that sees the rows, too, and whose answers are only compared."""

    version: VersionName


class TrafficRule(_Part):
    """The versions of a delta that share its traffic with the default one."""

    split: TrafficSplit | None = None
    shadow: TrafficShadow | None = None

    @property
    def versions(self) -> set[str]:
        """The versions that the rule names."""
        return {part.version for part in (self.split, self.shadow) if part is not None}


class _RuleFile(TrafficRule):
    task: str
    strategy: str


def traffic_path(default_file: Path) -> Path:
    """Return the path of the rule of a delta."""
    return default_file.with_name(default_file.name.removesuffix(SUFFIX) + TRAFFIC_SUFFIX)


def write_rule(root: Path, backbone_id: str, name: tuple[str, str], rule: TrafficRule) -> None:
    """Write the rule of a delta in one step.

    Raises:
        DeltaNotFoundError: no delta can have this name.
        OSError: the file can't be written.
    """
    path = traffic_path(checked_path(root, backbone_id, *name))
    content = _RuleFile(task=name[0], strategy=name[1], **dict(rule))
    write_atomically(path, (content.model_dump_json(indent=1) + "\n").encode())


def remove_rule(root: Path, backbone_id: str, name: tuple[str, str]) -> None:
    """Remove the rule of a delta, if it has one.

    Raises:
        DeltaNotFoundError: no delta can have this name.
        OSError: the file can't be removed.
    """
    traffic_path(checked_path(root, backbone_id, *name)).unlink(missing_ok=True)


def read_rules(
    root: Path, backbone_id: str, on_error: Callable[[Path, str], None]
) -> dict[Path, tuple[tuple[str, str], TrafficRule]]:
    """Read the rules below a folder: by file, the name of a delta and its rule.

    Args:
        root: the folder.
        backbone_id: the backbone of the deltas.
        on_error: called with each file or folder that can't be used, and the reason.
    """

    def note(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):  # such a root has none
            on_error(Path(error.filename), f"the folder can't be read ({error.strerror})")

    rules = {}
    for folder, folders, names in os.walk(root, onerror=note):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(TRAFFIC_SUFFIX) and not name.startswith("."):
                path = Path(folder) / name
                try:
                    rules[path] = read_rule(path, root, backbone_id)
                except FileNotFoundError:  # it has gone since it was found
                    continue
                except (OSError, ValueError) as error:
                    on_error(path, _reason(error))
    return rules


def read_rule(path: Path, root: Path, backbone_id: str) -> tuple[tuple[str, str], TrafficRule]:
    """Read one file: the name of a delta, and its rule.

    Args:
        path: the file.
        root: the folder of the deltas.
        backbone_id: their backbone.

    Raises:
        OSError: the file can't be read.
        ValueError: it holds no rule, or that of a delta which belongs to another file.
    """
    with open_regular(path) as file:
        found = _RuleFile.model_validate_json(file.read(_MAX_BYTES))
    name = found.task, found.strategy
    try:
        expected = traffic_path(checked_path(root, backbone_id, *name))
    except DeltaNotFoundError as error:
        raise ValueError(f"belongs to no delta: {error}") from None
    if path != expected:
        raise ValueError(f"belongs to {'/'.join(name)}, so to {expected}")
    return name, TrafficRule(split=found.split, shadow=found.shadow)


def _reason(error: OSError | ValueError) -> str:
    """Return why a file can't be used, in one line and without its content."""
    if isinstance(error, OSError):
        return f"can't be read ({error.strerror})"
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return shortened(f"is no rule of traffic: {place and f'{place}: '}{first['msg']}")
    return shortened(str(error))
