"""Draws the requests of a soak, and judges the answers to them.

A request knows its right answer: the one computed alone, or the error that it asks for. Refusals
that the server announces (429 and 503 with `Retry-After`), the 504 of a request with a deadline of
its own, the 503 by which `/health/ready` says that a prediction took too long, and the 404 of a
delta that an admin has removed are no faults, and are counted apart. `tests.bench.soak.clients`
sends the requests.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.bench.load import Response
from tests.bench.soak.changing import ChangingDelta
from tests.bench.soak.scenario import Answers, Scenario

TOLERANCE = 1e-5  # promise of docs/architecture.md for float32; relative for numbers above 1
RIGHT, REFUSED, LATE, NOT_READY = "right", "refused", "late", "not ready"
GONE = "of no delta"
WRONG, UNANNOUNCED = "wrong", "unannounced 5xx"

_MOST_ROWS, _MOST_TARGETS, _MOST_SCORES = 16, 8, 3
_TIMEOUTS_MS = (1, 5, 20, 60, 200, 1000)
_TOO_MANY_ROWS = 1025  # one more than `DELTABERT_MAX_ROWS_PER_REQUEST`
_PAGES = ("/tasks", "/deltas", "/metrics", "/health/live", "/")


@dataclass(frozen=True)
class Call:
    """A request with its right answer.

    Attributes:
        kind: group in which its answers are counted.
        content: bytes to send.
        status: status of the right answer.
        expected: JSON of the right answer, or the answers that are right while deltas change; None
            if it is not compared.
        code: code of the right error.
        is_readiness: whether 503 is the server's word on its own state.
        has_deadline: whether 504 is an answer that the request asks for.
    """

    kind: str
    content: bytes
    status: int = 200
    expected: Any = None
    code: str = ""
    is_readiness: bool = False
    has_deadline: bool = False


@dataclass(frozen=True)
class Target:
    """A changing delta that a request asks.

    Attributes:
        delta: the delta.
        since: moment at which the request was drawn.
        named: version that it names, if any.
        key: its sticky key; empty for none.
    """

    delta: ChangingDelta[Answers]
    since: int
    named: str | None
    key: str

    def fault(self, version: str | None) -> str:
        """Return why a version must not have answered now, or an empty string."""
        allowed = self.delta.possible(self.since, self.named, self.key)
        name = "/".join(self.delta.name)
        return "" if version in allowed else f"{name}: version {version} answers, not {allowed}"


@dataclass(frozen=True)
class ChangingAnswer:
    """The answers that are right while the deltas of a request change.

    Attributes:
        backbone: id of the backbone.
        targets: the deltas.
        numbers: numbers of the texts.
        is_fan_out: whether the answer is that of a request for several deltas.
    """

    backbone: str
    targets: Sequence[Target]
    numbers: Sequence[int]
    is_fan_out: bool

    def fault(self, status: int, body: bytes) -> str:
        """Return why an answer is wrong, or an empty string."""
        try:
            answer = json.loads(body)
            if status == 404:
                return self._fault_of_missing(answer["error"]["code"])
            return self._fault_of(answer, answer["results"] if self.is_fan_out else [answer])
        except (ValueError, KeyError, TypeError) as error:
            return f"{error!r} in the answer {body[:300]!r}"

    def _fault_of_missing(self, code: str) -> str:
        if code != "not_found":
            return f"error {code!r} in place of 'not_found'"
        faults = [target.fault(None) for target in self.targets]
        return "" if "" in faults else "; ".join(faults)

    def _fault_of(self, answer: Any, parts: Sequence[Any]) -> str:
        """Compare an answer with those that its versions give alone."""
        alone = []
        for target, part in zip(self.targets, parts, strict=True):
            version = part["version"]
            if fault := target.fault(version):
                return fault
            alone.append(target.delta.alone[version].expected(self.numbers))
        whole = {"results": alone} if self.is_fan_out else alone[0]
        return difference(answer, {"backbone": self.backbone} | whole)


def http(path: str, body: bytes | None = None, method: str = "", **headers: str) -> bytes:
    """Return the bytes of a request: by default a GET, or a POST if there is a JSON body."""
    given = {"Host": "soak"} | {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        given = {"Content-Type": "application/json", "Content-Length": str(len(body))} | given
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    method = method or ("GET" if body is None else "POST")
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


class CallMaker:
    """Draws requests at random.

    Args:
        scenario: texts and their answers.
        seed: seed of the draws.
    """

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self._scenario = scenario
        self._chance = random.Random(seed)
        self._makers: dict[Callable[[], Call], int] = {
            self._row: 40,
            self._list: 15,
            self._fan_out: 15,
            self._deadline: 10,
            self._bad: 7,
            self._page: 12,
            self._ready: 1,
        }
        if scenario.changing:
            self._makers |= {self._changing: 20, self._changing_fan_out: 10}

    def draw(self) -> Call:
        """Return the next request."""
        (make,) = self._chance.choices(list(self._makers), list(self._makers.values()))
        return make()

    def probes(self) -> list[Call]:
        """Return a request of one row for each delta, the same ones each time."""
        return [
            self._predict("row", answers, [min(answers.clear)])
            for answers in self._scenario.answers
        ]

    def _row(self) -> Call:
        answers = self._any_delta()
        return self._predict("row", answers, self._numbers(answers, 1))

    def _list(self) -> Call:
        answers = self._any_delta()
        count = self._chance.randint(2, _MOST_ROWS)
        return self._predict("list", answers, self._numbers(answers, count))

    def _deadline(self) -> Call:
        answers = self._any_delta()
        numbers = self._numbers(answers, self._chance.randint(1, 4))
        timeout = str(self._chance.choice(_TIMEOUTS_MS))
        return self._predict("deadline", answers, numbers, X_Request_Timeout_Ms=timeout)

    def _any_delta(self) -> Answers:
        return self._chance.choice(self._scenario.answers)

    def _numbers(self, answers: Answers, count: int) -> list[int]:
        return self._chance.choices(sorted(answers.clear), k=count)

    def _predict(self, kind: str, answers: Answers, numbers: Sequence[int], **headers: str) -> Call:
        record = answers.record
        task, strategy, version = record.key
        rows = [self._scenario.row(answers, number) for number in numbers]
        is_list = kind != "row"
        body: dict[str, Any] = {"inputs": rows if is_list else rows[0], "strategy": strategy}
        top_k = self._chance.randint(1, _MOST_SCORES)
        is_cut = self._chance.random() < 0.2 and answers.allows(numbers, top_k)
        body |= {"top_k": top_k} if is_cut else {"version": version}
        expected = answers.expected(numbers, top_k if is_cut else None)
        return Call(
            kind,
            http(f"/predict/{task}", json.dumps(body).encode(), **headers),
            expected={"backbone": self._scenario.backbone} | expected,
            has_deadline=bool(headers),
        )

    def _fan_out(self) -> Call:
        group = self._chance.choice(self._scenario.by_fields)
        targets = self._chance.sample(group, self._chance.randint(2, _MOST_TARGETS))
        clear = frozenset.intersection(*(answers.clear for answers in targets))
        if not clear:
            return self._fan_out()
        numbers = self._chance.choices(sorted(clear), k=self._chance.choice((1, 1, 2, 3)))
        named = [answers.record.key for answers in targets]
        body = {
            "inputs": [self._scenario.row(targets[0], number) for number in numbers],
            "targets": [{"task": task, "strategy": strategy} for task, strategy, _ in named],
        }
        results = [answers.expected(numbers) for answers in targets]
        return Call(
            "fan-out",
            http("/predict", json.dumps(body).encode()),
            expected={"backbone": self._scenario.backbone, "results": results},
        )

    def _changing(self) -> Call:
        delta = self._chance.choice(self._scenario.changing)
        versions = [None, None, None, *delta.contents]
        key = self._chance.choice(("", f"user {self._chance.randrange(20)}"))
        return self.changing_row(delta, self._chance.choice(versions), key)

    def changing_row(
        self, delta: ChangingDelta[Answers], named: str | None = None, key: str = ""
    ) -> Call:
        """Return a request for one row of a changing delta.

        Args:
            delta: the delta.
            named: version that the request names, if any.
            key: its sticky key; empty for none.
        """
        target = Target(delta, delta.moment(), named, key)
        answers = next(iter(delta.alone.values()))  # all have the same task and texts
        (number,) = self._numbers(answers, 1)
        task, strategy = delta.name
        body = {"inputs": self._scenario.row(answers, number), "strategy": strategy}
        body |= {"version": named} if named else {}
        headers = {"X_Sticky_Key": key} if key else {}
        return Call(
            "changing row",
            http(f"/predict/{task}", json.dumps(body).encode(), **headers),
            expected=ChangingAnswer(self._scenario.backbone, [target], [number], is_fan_out=False),
        )

    def _changing_fan_out(self) -> Call:
        answers = {delta.name: next(iter(delta.alone.values())) for delta in self._changing_group()}
        clear = frozenset.intersection(*(each.clear for each in answers.values()))
        if not clear:
            return self._changing()
        deltas = [delta for delta in self._scenario.changing if delta.name in answers]
        number = self._chance.choice(sorted(clear))
        body = {
            "inputs": [self._scenario.row(answers[deltas[0].name], number)],
            "targets": [{"task": task, "strategy": strategy} for task, strategy in answers],
        }
        targets = [Target(delta, delta.moment(), None, "") for delta in deltas]
        return Call(
            "changing fan-out",
            http("/predict", json.dumps(body).encode()),
            expected=ChangingAnswer(self._scenario.backbone, targets, [number], is_fan_out=True),
        )

    def _changing_group(self) -> Sequence[ChangingDelta[Answers]]:
        """Return all changing deltas with as many texts as one of them."""
        num_fields = self._chance.choice((1, 2))
        return [
            delta
            for delta in self._scenario.changing
            if next(iter(delta.alone.values())).num_fields == num_fields
        ]

    def _bad(self) -> Call:
        task = self._any_delta().record.manifest.task.name
        path, fine = f"/predict/{task}", b'{"inputs": {"text": "x", "text_pair": "y"}}'
        many = json.dumps({"inputs": ["x"] * _TOO_MANY_ROWS}).encode()
        content, status, code = self._chance.choice(
            (
                (http(path, b'{"inputs": '), 400, "malformed_json"),
                (http("/predict/no-such-task", fine), 404, "not_found"),
                (http("/no/such/path"), 404, "unknown_path"),
                (http(path), 405, "method_not_allowed"),
                (http(path, many), 413, "too_large"),
                (http(path, fine, Content_Type="text/plain"), 415, "unsupported_body"),
                (http(path, b'{"inputs": 7}'), 422, "invalid_input"),
                (http(path, b'{"inputs": []}'), 422, "invalid_input"),
                (http(path, fine, X_Request_Timeout_Ms="soon"), 422, "invalid_input"),
            )
        )
        return Call("bad request", content, status=status, code=code)

    def _page(self) -> Call:
        task, strategy, _ = self._any_delta().record.key
        return Call("page", http(self._chance.choice((*_PAGES, f"/deltas/{task}/{strategy}"))))

    def _ready(self) -> Call:
        return Call("readiness", http("/health/ready"), is_readiness=True)


def judge_answer(call: Call, response: Response) -> tuple[str, str]:
    """Return the outcome of a request, and the fault in words if it is one."""
    status, headers, body = response
    if isinstance(call.expected, ChangingAnswer) and status in (200, 404):
        fault = call.expected.fault(status, body)
        right = RIGHT if status == 200 else GONE
        return (WRONG, f"{call.kind}: {fault}") if fault else (right, "")
    if status == call.status:
        fault = _difference(call, body)
        return (WRONG, f"{call.kind}: {fault}") if fault else (RIGHT, "")
    if status in (429, 503) and b"\r\nretry-after:" in headers:
        return REFUSED, ""
    if status == 504 and call.has_deadline:
        return LATE, ""
    if status == 503 and call.is_readiness:
        return NOT_READY, ""
    said = f"{call.kind}: {status} in place of {call.status}: {body[:300].decode(errors='replace')}"
    return (UNANNOUNCED if status >= 500 else WRONG), said


def _difference(call: Call, body: bytes) -> str:
    if not call.code and call.expected is None:
        return ""
    try:
        answer = json.loads(body)
    except ValueError:
        return f"no JSON: {body[:300]!r}"
    if not call.code:
        return difference(answer, call.expected)
    code = answer.get("error", {}).get("code")
    return "" if code == call.code else f"error {code!r} in place of {call.code!r}"


def difference(answer: Any, alone: Any, place: str = "answer") -> str:
    """Return the first difference of an answer from the one computed alone, or an empty string.

    Numbers may differ by `TOLERANCE`; everything else is equal.
    """
    if isinstance(answer, dict) and isinstance(alone, dict) and answer.keys() == alone.keys():
        pairs = [(f"{place}.{key}", answer[key], alone[key]) for key in alone]
    elif isinstance(answer, list) and isinstance(alone, list) and len(answer) == len(alone):
        both = enumerate(zip(answer, alone, strict=True))
        pairs = [(f"{place}[{number}]", one, other) for number, (one, other) in both]
    elif isinstance(answer, float) and isinstance(alone, float):
        near = math.isclose(answer, alone, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        return "" if near else f"{place} is {answer!r}, alone {alone!r}"
    else:
        return "" if answer == alone else f"{place} is {answer!r}, alone {alone!r}"
    return next(filter(None, (difference(one, other, at) for at, one, other in pairs)), "")
