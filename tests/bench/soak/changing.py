"""Knows which versions of a delta may answer at each moment, while an admin changes it.

A request may be answered by each state of the delta from the moment it was drawn until its answer:
by the one that was acknowledged last, by the one that a change under way leads to, and by those
that followed. After an acknowledgement only the new state counts for requests that begin.
`tests.bench.soak.admin` makes the changes. Tested by tests/unit/bench/test_soak_changes.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.engine.traffic import sticky_share
from deltas.store.traffic import TrafficRule

A = TypeVar("A")


@dataclass(frozen=True)
class State:
    """The versions of a delta at one moment.

    Attributes:
        default: version that answers requests that name none; None if there is no such delta.
        named: versions that answer requests that name them.
        leaving: versions that a change under way may remove.
        rule: versions that share its traffic.
    """

    default: str | None = None
    named: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()
    rule: TrafficRule = field(default_factory=TrafficRule)

    def versions(self, name: tuple[str, str], named: str | None, key: str) -> set[str | None]:
        """Return the versions that may answer a request; None stands for 404.

        Args:
            name: task and strategy.
            named: version that the request names, if any.
            key: sticky key of the request; empty for none.
        """
        if named is not None:
            found: set[str | None] = {named} if named in self.named | self.leaving else {None}
            return found | ({None} if named in self.leaving else set())
        split = self.rule.split
        if self.default is None or split is None:
            return {self.default}
        if key:
            return {split.version if sticky_share(name, key) < split.share else self.default}
        return {self.default, split.version}


class ChangingDelta(Generic[A]):
    """A delta whose versions come and go.

    Args:
        name: task and strategy.
        contents: the file of each version.
        alone: the answers of each version, computed alone.
    """

    def __init__(
        self, name: tuple[str, str], contents: Mapping[str, bytes], alone: Mapping[str, A]
    ) -> None:
        self.name = name
        self.contents = contents
        self.alone = alone
        self.acknowledged = State()
        self._states = [self.acknowledged]
        self._oldest = 0  # number of the oldest state that may still answer

    def begin(self, state: State) -> None:
        """Note that a change is sent which leads to a state."""
        self._states.append(state)

    def acknowledge(self, state: State) -> None:
        """Note that the change is answered: from now on requests meet this state alone."""
        self._states.append(state)
        self._oldest = len(self._states) - 1
        self.acknowledged = state

    def moment(self) -> int:
        """Return the present moment, for `possible`."""
        return self._oldest

    def possible(self, since: int, named: str | None = None, key: str = "") -> set[str | None]:
        """Return the versions that may answer now a request of an earlier moment."""
        states = self._states[since:]
        return {found for state in states for found in state.versions(self.name, named, key)}
