"""Shows that a soak knows which version may answer while deltas change; faults are planted."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from app.engine.traffic import sticky_share
from deltas.store.traffic import TrafficRule, TrafficShadow, TrafficSplit
from tests.bench.load import Response
from tests.bench.soak.admin import CHANGES, PUBLISH, REPLACE, Admin, Step
from tests.bench.soak.calls import (
    GONE,
    REFUSED,
    RIGHT,
    UNANNOUNCED,
    WRONG,
    Call,
    ChangingAnswer,
    Target,
    judge_answer,
)
from tests.bench.soak.changing import ChangingDelta, State
from tests.bench.soak.clients import LOST, Counts

NAME = "toy2", "bitfit"
ONE, TWO, THREE = "1" * 16, "2" * 16, "3" * 16
SERVED = State(default=ONE, named=frozenset({ONE, TWO}))


class Alone:
    """The answers of a version: its own name alone."""

    def __init__(self, version: str) -> None:
        self._version = version

    def expected(self, numbers: list[int]) -> dict[str, Any]:
        return {"version": self._version, "numbers": numbers}


@pytest.fixture
def delta() -> ChangingDelta[Any]:
    """A delta of which two versions are served."""
    versions = (ONE, TWO, THREE)
    found = ChangingDelta[Any](
        NAME, dict.fromkeys(versions, b"file"), {v: Alone(v) for v in versions}
    )
    found.begin(SERVED)
    found.acknowledge(SERVED)
    return found


def test_only_the_new_version_may_answer_after_the_acknowledgement(
    delta: ChangingDelta[Any],
) -> None:
    before = delta.moment()
    assert delta.possible(before) == {ONE}
    after = State(default=THREE, named=frozenset({THREE}), leaving=frozenset({ONE, TWO}))
    delta.begin(after)
    during = delta.moment()
    assert delta.possible(before) == delta.possible(during) == {ONE, THREE}
    assert delta.possible(during, named=TWO) == {TWO, None}
    assert delta.possible(during, named=THREE) == {THREE, None}
    delta.acknowledge(replace(after, leaving=frozenset({TWO})))
    assert delta.possible(delta.moment()) == {THREE}
    assert delta.possible(delta.moment(), named=ONE) == {None}
    assert delta.possible(before) == {ONE, THREE}, "a request that began before"


def test_a_removed_delta_answers_nothing(delta: ChangingDelta[Any]) -> None:
    delta.begin(State())
    assert delta.possible(delta.moment()) == {ONE, None}
    delta.acknowledge(State())
    assert delta.possible(delta.moment()) == delta.possible(delta.moment(), ONE) == {None}


def test_a_sticky_key_has_one_version() -> None:
    rule = TrafficRule(split=TrafficSplit(version=TWO, share=0.5))
    state = replace(SERVED, rule=rule)
    assert state.versions(NAME, None, "") == {ONE, TWO}
    for key in ("a", "b", "c", "d"):
        expected = TWO if sticky_share(NAME, key) < 0.5 else ONE
        assert state.versions(NAME, None, key) == {expected}
    assert state.versions(NAME, ONE, "a") == {ONE}, "a named version bypasses the split"


def call_of(delta: ChangingDelta[Any], *, is_fan_out: bool = False) -> Call:
    targets = [Target(delta, delta.moment(), None, "")] * (2 if is_fan_out else 1)
    return Call("changing row", b"", expected=ChangingAnswer("b", targets, [3], is_fan_out))


RIGHT_ANSWER = {"backbone": "b", "version": ONE, "numbers": [3]}
PART = {"version": ONE, "numbers": [3]}


@pytest.mark.parametrize(
    ("is_fan_out", "status", "answer", "outcome", "said"),
    [
        (False, 200, RIGHT_ANSWER, RIGHT, ""),
        (False, 200, RIGHT_ANSWER | {"version": TWO}, WRONG, f"version {TWO} answers, not"),
        (False, 200, RIGHT_ANSWER | {"numbers": [4]}, WRONG, "answer.numbers[0] is 4"),
        (False, 200, {"backbone": "b"}, WRONG, "KeyError('version')"),
        (False, 200, [], WRONG, "TypeError"),
        (False, 404, {"error": {"code": "not_found"}}, WRONG, "version None answers, not"),
        (False, 503, {}, UNANNOUNCED, "503 in place of 200"),
        (True, 200, {"backbone": "b", "results": [PART, PART]}, RIGHT, ""),
        (True, 200, {"backbone": "b", "results": [PART]}, WRONG, "ValueError"),
        (True, 200, {"backbone": "b", "results": [PART, PART | {"version": TWO}]}, WRONG, TWO),
    ],
)
def test_each_answer_of_a_changing_delta_has_an_outcome(
    delta: ChangingDelta[Any], is_fan_out: bool, status: int, answer: Any, outcome: str, said: str
) -> None:
    response = Response(status, b"", json.dumps(answer).encode())
    found, fault = judge_answer(call_of(delta, is_fan_out=is_fan_out), response)
    assert found == outcome
    assert said in fault
    assert bool(said) == bool(fault)


def test_a_404_is_right_while_a_delta_is_removed(delta: ChangingDelta[Any]) -> None:
    call = call_of(delta)
    delta.begin(State())
    for code, outcome in (("not_found", GONE), ("unknown_path", WRONG)):
        body = json.dumps({"error": {"code": code}}).encode()
        assert judge_answer(call, Response(404, b"", body))[0] == outcome


class PlannedConnection:
    """Answers a change as planned, and every other request with a refusal."""

    def __init__(self, *answers: tuple[int, Any] | OSError) -> None:
        self._answers = list(answers)

    async def ask_once(self, _request: bytes) -> Response:
        answer = self._answers.pop(0) if self._answers else (429, {})
        if isinstance(answer, OSError):
            raise answer
        return Response(answer[0], b"\r\nretry-after: 1\r\n", json.dumps(answer[1]).encode())

    def close(self) -> None:
        """Close nothing."""


class LookingCalls:
    """Makes a request that is not compared."""

    def changing_row(self, _delta: Any) -> Call:
        return Call("changing row", b"")


PUBLISHED = {"previous": ONE, "version": THREE, "versions": [THREE, ONE, TWO]}


@pytest.mark.parametrize(
    ("answer", "outcome", "state"),
    [
        ((200, PUBLISHED), RIGHT, State(default=THREE, named=frozenset({ONE, TWO, THREE}))),
        ((200, PUBLISHED | {"versions": [THREE]}), RIGHT, State(THREE, frozenset({THREE}))),
        ((200, PUBLISHED | {"version": TWO}), WRONG, None),
        ((200, PUBLISHED | {"previous": TWO}), WRONG, None),
        ((200, PUBLISHED | {"versions": [THREE, ONE, TWO, "4"]}), WRONG, None),
        ((200, PUBLISHED | {"versions": [ONE]}), WRONG, None),
        ((422, {}), WRONG, SERVED),
        ((500, {}), UNANNOUNCED, SERVED),
        ((429, {}), REFUSED, SERVED),
        (OSError("cut"), LOST, SERVED),
    ],
)
def test_an_admin_compares_what_is_acknowledged(
    delta: ChangingDelta[Any],
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
    outcome: str,
    state: State | None,
) -> None:
    monkeypatch.setattr("tests.bench.soak.admin._REFUSED_PAUSE_S", 0)
    counts, connection = Counts(), PlannedConnection(answer)
    admin = Admin(delta, LookingCalls(), connection, counts)  # type: ignore[arg-type]
    leaving = frozenset({ONE, TWO})
    step = Step(PUBLISH, b"", State(default=THREE, named=frozenset({THREE}), leaving=leaving))
    asyncio.run(admin.change(step))
    assert counts.outcomes[PUBLISH, outcome] == 1
    assert state is None or delta.acknowledged == state


def test_every_kind_of_change_is_drawn_and_fits(delta: ChangingDelta[Any]) -> None:
    """Followed as if the server had acknowledged each."""
    admin = Admin(delta, LookingCalls(), PlannedConnection(), Counts())  # type: ignore[arg-type]
    seen = set()
    for _ in range(500):
        before, step = delta.acknowledged, admin.next_step()
        seen.add(step.kind)
        assert not before.rule.versions - before.named, "a rule needs versions that are served"
        if step.state.default is None:
            assert not before.rule.versions
        delta.begin(step.state)
        served = step.state.named | step.state.leaving
        delta.acknowledge(replace(step.state, named=served, leaving=frozenset()))
    assert seen == set(CHANGES)


def test_an_admin_that_only_replaces_publishes(delta: ChangingDelta[Any]) -> None:
    calls, connection = LookingCalls(), PlannedConnection()
    admin = Admin(delta, calls, connection, Counts(), REPLACE)  # type: ignore[arg-type]
    assert {admin.next_step().kind for _ in range(50)} == {PUBLISH}


def test_a_shadow_changes_no_answer() -> None:
    rule = TrafficRule(shadow=TrafficShadow(version=TWO))
    assert replace(SERVED, rule=rule).versions(NAME, None, "a") == {ONE}
