"""Typed client of the HTTP API: one method a route, one exception tree, a timeout on every call.

Takes its session as an argument, so that tests and proxies can bring their own; `open_session`
makes the usual one. Answers are in `frontend.models`, what goes wrong in `frontend.errors`.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from frontend.errors import ServerError, UnreachableError, explain_error
from frontend.models import Benchmark, DeltaDetails, Prediction, TaskInfo, parse_list

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 40.0  # longer than the server's own deadline, whose 504 says more
_PROBE_TIMEOUT_S = 2.0

Row = str | Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """A task and one of its strategies, to be asked in a fan-out call."""

    task: str
    strategy: str | None = None

    def as_json(self) -> dict[str, str]:
        """The entry of `targets`."""
        return {"task": self.task} | ({"strategy": self.strategy} if self.strategy else {})


@dataclass(frozen=True)
class Answer:
    """One row through several targets.

    Attributes:
        predictions: in target order.
        latency_ms: of the whole call, as the page saw it.
    """

    predictions: tuple[Prediction, ...]
    latency_ms: float


def open_session(url: str) -> requests.Session:
    """A session for that server; one on this machine is never asked for through a proxy."""
    session = requests.Session()
    try:
        host = urlsplit(url).hostname
    except ValueError:  # not an address; the first call says so
        host = None
    if host in ("127.0.0.1", "localhost", "::1"):
        session.trust_env = False
    return session


class Client:
    """The HTTP API as Python calls. They raise `ServerError`, or its child, and nothing else."""

    def __init__(self, session: requests.Session, url: str = DEFAULT_URL) -> None:
        self.url = url.rstrip("/")
        self._session = session

    def probe(self) -> None:
        """Return if the server lives; else raise why not, soon."""
        self._call("GET", "/health/live", read_timeout_s=_PROBE_TIMEOUT_S)

    def is_alive(self) -> bool:
        """Whether the server lives; never raises."""
        try:
            self.probe()
        except ServerError:
            return False
        return True

    def tasks(self) -> list[TaskInfo]:
        """What is served."""
        return list(parse_list(self._call("GET", "/tasks"), "tasks", TaskInfo.parse))

    def benchmark(self) -> Benchmark:
        """Metrics, sizes and training facts of every delta served."""
        return Benchmark.parse(self._call("GET", "/benchmark"))

    def delta(self, task: str, strategy: str) -> DeltaDetails:
        """The manifest of the version that answers by default."""
        return DeltaDetails.parse(
            self._call("GET", f"/deltas/{quote(task, safe='')}/{quote(strategy, safe='')}")
        )

    def predict(self, row: Row, targets: Sequence[Target]) -> Answer:
        """One row through all targets in one call."""
        started = time.perf_counter()
        body = self._call("POST", "/predict", body=fan_out_body(row, targets))
        latency_ms = (time.perf_counter() - started) * 1000
        return Answer(tuple(parse_list(body, "results", Prediction.parse)), latency_ms)

    def _call(
        self, method: str, path: str, *, body: Any = None, read_timeout_s: float = _READ_TIMEOUT_S
    ) -> Mapping[str, Any]:
        """The decoded body of a 2xx answer."""
        try:
            response = self._session.request(
                method, self.url + path, json=body, timeout=(_CONNECT_TIMEOUT_S, read_timeout_s)
            )
        except requests.Timeout as error:
            raise UnreachableError(f"The server at {self.url} took too long to answer.") from error
        except requests.ConnectionError as error:
            raise UnreachableError(
                f"The server at {self.url} can't be reached. Is it running?"
            ) from error
        except requests.RequestException as error:
            raise UnreachableError(
                f"{self.url} is not an address this page can call: {error}."
            ) from error
        payload = _decode(response)
        if not response.ok or not isinstance(payload, Mapping):
            raise explain_error(response.status_code, payload, response.headers.get("Retry-After"))
        return payload


def fan_out_body(row: Row, targets: Sequence[Target]) -> dict[str, Any]:
    """The body of `POST /predict`."""
    return {"inputs": row, "targets": [target.as_json() for target in targets]}


def curl_command(url: str, path: str, body: Mapping[str, Any]) -> str:
    """A command to paste into a POSIX shell that sends the same request."""
    data = json.dumps(body, ensure_ascii=False)
    lines = (
        f"curl -s {shlex.quote(url.rstrip('/') + path)}",
        "-H 'Content-Type: application/json'",
        f"-d {shlex.quote(data)}",
    )
    return " \\\n  ".join(lines)


def _decode(response: requests.Response) -> Any:
    try:
        return response.json()
    except requests.JSONDecodeError:
        return None
