"""Chooses the version that answers a request, where several versions of a delta share its traffic.

A split gives a share of the requests to a second version. With a sticky key, a request's share is a
number that task, strategy and key alone decide, so a key keeps its version, and raising the share
moves keys one way only. `deltas.store.traffic` keeps the rules as files beside the deltas. Tested
by tests/unit/app/engine/test_traffic.py and tests/http/test_traffic.py.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from app.engine.changes import DeltaChanges, Name
from app.engine.engine import Engine
from app.errors import ConflictError
from deltas import Record
from deltas.store.files import checked_path
from deltas.store.traffic import (
    TrafficRule,
    read_rule,
    read_rules,
    remove_rule,
    traffic_path,
    write_rule,
)

logger = logging.getLogger(__name__)


def sticky_share(name: Name, key: str) -> float:
    """Return the number in [0, 1) of a key; versions with a larger share get its requests."""
    digest = hashlib.sha256("\0".join((*name, key)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Traffic:
    """The rules of all deltas that have one.

    Rules are read from all folders; one of the folder that takes changes leads, then one of an
    earlier folder. A file that can't be used is left alone: its previous rule stays in use.

    Args:
        engine: engine with the deltas.
        changes: its changes, with which those of rules take turns.
        root: folder that takes rules; None takes none.
        others: folders whose rules are only read.
        draw: function that draws a number in [0, 1) for a request without a sticky key.

    Attributes:
        rules: the rule of each delta; empty if all requests go to default versions.
        rejected: the files of rules that can't be used, with the reason.
    """

    def __init__(
        self,
        engine: Engine,
        changes: DeltaChanges,
        root: Path | None,
        others: Sequence[Path] = (),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.rules: Mapping[Name, TrafficRule] = {}
        self.rejected: dict[Path, str] = {}
        self._engine = engine
        self._changes = changes
        self._root = root
        roots = [root, *others] if root is not None else others
        self._read_from: dict[Path, dict[Path, tuple[Name, TrafficRule]]] = {
            folder: {} for folder in roots
        }
        self._draw = draw
        changes.needed.append(self._needed)

    def _needed(self, name: Name) -> set[str]:
        """Return the versions of a delta's rule, which another server may have changed."""
        if self._root is not None:
            path = self._path(self._root, name)
            try:
                _, rule = read_rule(path, self._root, self._engine.backbone.ref.id)
            except FileNotFoundError:
                self._put(self._root, name, None)
            except (OSError, ValueError):
                pass  # the previous rule stays, and the next `load` says so
            else:
                self._put(self._root, name, rule)
        rule_now = self.rules.get(name)
        return rule_now.versions if rule_now else set()

    async def load(self) -> None:
        """Read all rules from their files; of a file that can't be used, the last good one stays.

        Raises:
            StorageError: the folders do not answer.
        """
        await self._changes.read(self._read)

    def _read(self) -> None:
        backbone, before = self._engine.backbone.ref.id, self.rejected
        rejected: dict[Path, str] = {}
        for root, known in self._read_from.items():
            found = read_rules(root, backbone, rejected.__setitem__)
            for path, rule in known.items():
                if any(map(path.is_relative_to, rejected)):  # the file, or a folder above it
                    found.setdefault(path, rule)
            self._read_from[root] = found
        self._merge()
        self.rejected = rejected
        for path, reason in rejected.items() - before.items():
            stays = "the previous rule stays in use" if self._knows(path) else "no rule counts"
            logger.error("not used: %s: %s; %s", path, reason, stays)

    def _knows(self, path: Path) -> bool:
        return any(
            file.is_relative_to(path) for found in self._read_from.values() for file in found
        )

    def _merge(self) -> None:
        """Take over the rules that were read, the first one for each delta."""
        found = [item for files in self._read_from.values() for item in files.values()]
        self.rules = dict(reversed(found))

    def _path(self, root: Path, name: Name) -> Path:
        return traffic_path(checked_path(root, self._engine.backbone.ref.id, *name))

    def _put(self, root: Path, name: Name, rule: TrafficRule | None) -> None:
        """Take over the rule of a delta in one of the folders; None if it has none there."""
        path = self._path(root, name)
        self.rejected = {other: why for other, why in self.rejected.items() if other != path}
        files = {other: item for other, item in self._read_from[root].items() if other != path}
        self._read_from[root] = files | ({path: (name, rule)} if rule is not None else {})
        self._merge()

    async def set(self, name: Name, rule: TrafficRule) -> None:
        """Let versions of a delta share its traffic, from the next request on.

        Raises:
            ConflictError: no folder takes rules.
            DeltaNotFoundError: no such delta or version.
            StorageError: the file can't be written.
        """
        self._check_root()
        await self._changes.write(name, self._write, name, rule)

    def _write(self, name: Name, rule: TrafficRule) -> None:
        self._engine.store.resolve(*name)
        for version in sorted(rule.versions):
            self._engine.store.resolve(*name, version)
        root = self._check_root()
        write_rule(root, self._engine.backbone.ref.id, name, rule)
        self._put(root, name, rule)

    async def clear(self, name: Name) -> TrafficRule:
        """Remove the rule of a delta; returns the one of a folder that is only read, if any.

        Raises:
            ConflictError: no folder takes rules.
            DeltaNotFoundError: no delta can have this name.
            StorageError: the file can't be removed.
        """
        self._check_root()
        await self._changes.write(name, self._remove, name)
        return self.rules.get(name, TrafficRule())

    def _remove(self, name: Name) -> None:
        root = self._check_root()
        remove_rule(root, self._engine.backbone.ref.id, name)
        self._put(root, name, None)

    def _check_root(self) -> Path:
        """Return the folder that takes rules.

        Raises:
            ConflictError: there is none.
        """
        if self._root is None:
            raise ConflictError(
                "no folder takes rules of traffic; set DELTABERT_DELTAS to a folder, and restart"
            )
        return self._root

    def choose(self, records: Sequence[Record], named: Sequence[bool], key: str) -> list[Record]:
        """Return the deltas that answer a request.

        Args:
            records: the deltas that the request found.
            named: whether the request names the version of each, which no rule changes.
            key: sticky key; empty for none.
        """
        return [
            record if is_named else self._chosen(record, key)
            for record, is_named in zip(records, named, strict=True)
        ]

    def _chosen(self, record: Record, key: str) -> Record:
        name = record.manifest.key
        rule = self.rules.get(name)
        if rule is None or rule.split is None:
            return record
        number = sticky_share(name, key) if key else self._draw()
        if number >= rule.split.share:
            return record
        return self.version_of(name, rule.split.version) or record

    def version_of(self, name: Name, version: str) -> Record | None:
        """Return a version of a delta, or None if its file has gone since the rule was made."""
        found = self._engine.store.versions(*name)
        return next((record for record in found if record.version == version), None)
