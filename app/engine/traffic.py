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
from functools import partial
from pathlib import Path

from app.engine.changes import DeltaChanges, Name
from app.engine.engine import Engine
from app.errors import ConflictError
from deltas import Record
from deltas.store.traffic import TrafficRule, read_rules, remove_rule, write_rule

logger = logging.getLogger(__name__)


def sticky_share(name: Name, key: str) -> float:
    """Return the number in [0, 1) of a key; versions with a larger share get its requests."""
    digest = hashlib.sha256("\0".join((*name, key)).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


class Traffic:
    """The rules of all deltas that have one.

    Args:
        engine: engine with the deltas.
        changes: its changes, with which those of rules take turns.
        root: folder that takes rules; None takes none.
        draw: function that draws a number in [0, 1) for a request without a sticky key.

    Attributes:
        rules: the rule of each delta; empty if all requests go to default versions.
    """

    def __init__(
        self,
        engine: Engine,
        changes: DeltaChanges,
        root: Path | None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.rules: Mapping[Name, TrafficRule] = {}
        self._engine = engine
        self._changes = changes
        self._root = root
        self._draw = draw
        changes.needed.append(self._needed)

    def _needed(self, name: Name) -> set[str]:
        rule = self.rules.get(name)
        return rule.versions if rule else set()

    async def load(self) -> None:
        """Read all rules from their files; a bad one is logged and left out."""
        if self._root is not None:
            await self._changes.alone(self._read)

    def _read(self) -> None:
        assert self._root is not None  # `load` has checked it
        backbone = self._engine.backbone.ref.id
        self.rules = read_rules(self._root, backbone, partial(logger.warning, "not used: %s: %s"))

    async def set(self, name: Name, rule: TrafficRule) -> None:
        """Let versions of a delta share its traffic, from the next request on.

        Raises:
            ConflictError: no folder takes rules.
            DeltaNotFoundError: no such delta or version.
            StorageError: the file can't be written.
        """
        async with self._changes.turn(name):
            await self._changes.alone(self._write, name, rule)

    def _write(self, name: Name, rule: TrafficRule) -> None:
        root = self._checked_root()
        self._engine.store.resolve(*name)
        for version in sorted(rule.versions):
            self._engine.store.resolve(*name, version)
        write_rule(root, self._engine.backbone.ref.id, name, rule)
        self.rules = {**self.rules, name: rule}

    async def clear(self, name: Name) -> None:
        """Let the default version of a delta answer all requests again.

        Raises:
            ConflictError: no folder takes rules.
            DeltaNotFoundError: no delta can have this name.
            StorageError: the file can't be removed.
        """
        async with self._changes.turn(name):
            await self._changes.alone(self._remove, name)

    def _remove(self, name: Name) -> None:
        remove_rule(self._checked_root(), self._engine.backbone.ref.id, name)
        self.rules = {other: rule for other, rule in self.rules.items() if other != name}

    def _checked_root(self) -> Path:
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
