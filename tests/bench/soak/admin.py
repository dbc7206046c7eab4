"""Adds, replaces, rolls back, splits and removes deltas during a soak, each delta by its own admin.

An admin knows the state that each change leads to (`tests.bench.soak.changing`), compares the
server's acknowledgement with it, and asks at once for a row, which only the new state may answer.
A change that the server refuses must have changed nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deltas.store.traffic import TrafficRule, TrafficShadow, TrafficSplit
from tests.bench.load import Connection, Response
from tests.bench.soak.calls import RIGHT, WRONG, Call, CallMaker, http, judge_answer
from tests.bench.soak.changing import ChangingDelta, State
from tests.bench.soak.clients import GIVE_UP_S, LOST, NO_ANSWER, Counts, ask
from tests.bench.soak.scenario import Answers, Scenario
from tests.http.admin_key import ADMIN

ALL, REPLACE, NONE = "all", "replace", "none"  # the changes of a soak
KEEP_VERSIONS = 3
PUBLISH, ROLL_BACK, REMOVE, SPLIT, CLEAR = "publish", "roll back", "remove", "split", "clear"
CHANGES = (PUBLISH, ROLL_BACK, REMOVE, SPLIT, CLEAR)
_SHARES = (0.0, 0.25, 0.5, 1.0)
_MOST_PAUSE_S = {ALL: 2.0, REPLACE: 0.5}
_REFUSED_PAUSE_S = 1.0


@dataclass(frozen=True)
class Step:
    """A change to make.

    Attributes:
        kind: group in which it is counted.
        content: bytes of the request.
        state: the state that it leads to.
    """

    kind: str
    content: bytes
    state: State


class Admin:
    """Changes one delta again and again.

    Args:
        delta: the delta; this admin alone changes it.
        calls: makes the requests that look at what a change has done.
        connection: connection to the server.
        counts: counts changes and answers.
        changes: `ALL` kinds of changes, or `REPLACE` alone.
        seed: seed of the draws.
    """

    def __init__(
        self,
        delta: ChangingDelta[Answers],
        calls: CallMaker,
        connection: Connection,
        counts: Counts,
        changes: str = ALL,
        seed: int = 0,
    ) -> None:
        self._delta = delta
        self._calls = calls
        self._connection = connection
        self._counts = counts
        self._changes = changes
        self._chance = random.Random(seed)
        task, strategy = delta.name
        self._file, self._rule = f"/deltas/{task}/{strategy}", f"/traffic/{task}/{strategy}"

    async def work(self) -> None:
        """Make one change after the other, until it is cancelled."""
        try:
            while True:
                await self.change(self.next_step())
                await asyncio.sleep(self._chance.random() * _MOST_PAUSE_S[self._changes])
        finally:
            self._connection.close()

    async def change(self, step: Step) -> None:
        """Make a change, compare its answer, and look at what answers now."""
        before = self._delta.acknowledged
        self._delta.begin(step.state)
        call = Call(step.kind, step.content)
        try:
            async with asyncio.timeout(GIVE_UP_S):
                response = await self._send(call)
        except NO_ANSWER as error:  # the state is not known any more
            self._counts.note(call, LOST, f"{step.kind}: {error!r}")
            return
        outcome, fault = judge_answer(call, response)
        if outcome == RIGHT:
            fault = self._acknowledge(before, step, json.loads(response.body))
            outcome = WRONG if fault else RIGHT
        elif not fault:
            self._delta.acknowledge(before)
            await asyncio.sleep(_REFUSED_PAUSE_S)
        self._counts.note(call, outcome, fault)
        await ask(self._connection, self._calls.changing_row(self._delta), self._counts)

    async def _send(self, call: Call) -> Response:
        """Send a change; an idle connection may have been closed meanwhile."""
        self._connection.close()
        return await self._connection.ask_once(call.content)

    def _acknowledge(self, before: State, step: Step, answer: dict[str, Any]) -> str:
        """Take over the state that the server acknowledges; returns the fault in it."""
        state = step.state
        if step.kind in (SPLIT, CLEAR):
            self._delta.acknowledge(state)
            is_same = answer == state.rule.model_dump()
            return "" if is_same else f"acknowledged {answer}, not {state.rule.model_dump()}"
        served = frozenset(answer["versions"])
        self._delta.acknowledge(replace(state, named=served, leaving=frozenset()))
        asked = before.default, state.default, state.named
        found = answer["previous"], answer["version"], served - state.leaving
        if found != asked:
            return f"acknowledged previous, version and versions {found}, not {asked}"
        most = max(KEEP_VERSIONS, len(before.named))
        return f"{len(served)} versions are kept" if len(served) > most else ""

    def next_step(self) -> Step:
        """Return a change that fits the present state."""
        state = self._delta.acknowledged
        if state.default is None or self._changes == REPLACE:
            return self._publish(state)
        others = sorted(state.named - {state.default})
        makers: list[Callable[[State, Sequence[str]], Step]] = [lambda *_: self._publish(state)] * 4
        if others:
            makers += [self._roll_back, self._split]
        if set(others) - state.rule.versions:
            makers.append(self._remove_version)
        makers.append(self._clear if state.rule.versions else self._remove_all)
        return self._chance.choice(makers)(state, others)

    def _publish(self, state: State) -> Step:
        version = self._chance.choice(sorted(self._delta.contents.keys() - {state.default}))
        leaving = state.named - {version} - state.rule.versions
        after = replace(
            state,
            default=version,
            named=(state.named - leaving) | {version},
            leaving=leaving,
        )
        content = self._delta.contents[version]
        return Step(PUBLISH, http(self._file, content, "PUT", **ADMIN), after)

    def _roll_back(self, state: State, others: Sequence[str]) -> Step:
        version = self._chance.choice(others)
        body = json.dumps({"version": version}).encode()
        after = replace(state, default=version)
        return Step(ROLL_BACK, http(f"{self._file}/rollback", body, **ADMIN), after)

    def _split(self, state: State, others: Sequence[str]) -> Step:
        version, shadow = self._chance.choice(others), self._chance.choice((None, *others))
        rule = TrafficRule(
            split=TrafficSplit(version=version, share=self._chance.choice(_SHARES)),
            shadow=TrafficShadow(version=shadow) if shadow else None,
        )
        content = http(self._rule, rule.model_dump_json().encode(), "PUT", **ADMIN)
        return Step(SPLIT, content, replace(state, rule=rule))

    def _clear(self, state: State, _others: Sequence[str]) -> Step:
        content = http(self._rule, None, "DELETE", **ADMIN)
        return Step(CLEAR, content, replace(state, rule=TrafficRule()))

    def _remove_version(self, state: State, others: Sequence[str]) -> Step:
        version = self._chance.choice(sorted(set(others) - state.rule.versions))
        content = http(f"{self._file}?version={version}", None, "DELETE", **ADMIN)
        return Step(REMOVE, content, replace(state, named=state.named - {version}))

    def _remove_all(self, _state: State, _others: Sequence[str]) -> Step:
        return Step(REMOVE, http(self._file, None, "DELETE", **ADMIN), State())


def make_admins(
    address: tuple[str, int], scenario: Scenario, counts: Counts, changes: str
) -> list[Admin]:
    """Return an admin for each changing delta of a scenario; none if nothing changes."""
    if changes == NONE:
        return []
    return [
        Admin(delta, CallMaker(scenario, -seed), Connection(*address), counts, changes, seed)
        for seed, delta in enumerate(scenario.changing, 1)
    ]
