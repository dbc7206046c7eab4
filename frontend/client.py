"""A typed client of the HTTP API: one method per route, one exception tree, always a timeout.

The client takes its `requests` session as an argument, so that tests and proxies can bring their
own; `open_session` makes the usual one. `frontend.models` has the answers, `frontend.errors` the
exceptions. Tested by `tests/integration/frontend/test_client.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests

from frontend.errors import ServerError, UnreachableError, explain_error
from frontend.models import (
    Benchmark,
    DeltaDetails,
    Explanation,
    FanOut,
    Prediction,
    TaskInfo,
    TaskList,
    read_answer,
    visible,
)

DEFAULT_URL = "http://127.0.0.1:8000"
_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 40.0  # longer than the server's own deadline: its 504 explains more
_PROBE_TIMEOUT_S = 2.0
_KEY_HEADER = "X-API-Key"  # of the key, if the other header is for a proxy

_SENDABLE = re.compile("[!-~]+")  # signs that a header can have

T = TypeVar("T")
Row = str | Mapping[str, str]


@dataclass(frozen=True)
class Target:
    """One target of a fan-out request: a task and, if given, one of its strategies."""

    task: str
    strategy: str | None = None


@dataclass(frozen=True)
class Answer:
    """The predictions of several targets for one row."""

    predictions: tuple[Prediction, ...]  # in target order
    latency_ms: float  # duration of the whole call, measured by the page


class _KeyAuth(requests.auth.AuthBase):
    """Sends an API key, but not to another host if the server redirects, as `requests` sees to."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _without_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave a request without a key."""
    return request


class _Session(requests.Session):
    """Sends no API key to another host that the server redirects to, in whichever header it is."""

    def rebuild_auth(
        self, prepared_request: requests.PreparedRequest, response: requests.Response
    ) -> None:
        """Take the key out of a redirected request; `requests` does so for `Authorization`."""
        before, after = response.request.url, prepared_request.url
        if before and after and self.should_strip_auth(before, after):  # type: ignore[no-untyped-call]
            prepared_request.headers.pop(_KEY_HEADER, None)
        super().rebuild_auth(prepared_request, response)  # type: ignore[no-untyped-call]


def open_session(url: str, key: str | None = None) -> requests.Session:
    """Open a session; a server on this machine is always called directly, never through a proxy.

    Args:
        url: address of the server; user and password in it are for a proxy before it.
        key: API key of the server; None for a server that needs none.
    """
    session = _Session()
    if key and not _SENDABLE.fullmatch(key):
        key = None  # it cannot be sent, and the error would show it
    try:
        host = urlsplit(url).hostname
    except ValueError:  # not an address; the first call reports that
        host = None
    if key and without_credentials(url) != url:
        session.headers[_KEY_HEADER] = key  # the proxy reads the other header
    elif key:
        session.auth = _KeyAuth(key)
    if host in ("127.0.0.1", "localhost", "::1"):
        session.trust_env = False
    return session


def without_credentials(url: str) -> str:
    """Return a URL without user and password.

    Both may hold any character, as people write them: all before the last "@" is left out.
    """
    return re.sub(r"^(\w+://)?.*@", r"\1", url, flags=re.DOTALL)


class Client:
    """The HTTP API as Python calls, which raise `ServerError` or a subclass and nothing else."""

    def __init__(self, session: requests.Session, url: str = DEFAULT_URL) -> None:
        self.address = url.rstrip("/")
        self.url = without_credentials(self.address)  # the one to show
        self._session = session

    def probe(self) -> None:
        """Check that the server is alive; the check gives up after two seconds.

        Raises:
            ServerError: the server is not alive.
        """
        self._call("GET", "/health/live", read_timeout_s=_PROBE_TIMEOUT_S)

    def is_alive(self) -> bool:
        """Return True if the server is alive; never raises."""
        try:
            self.probe()
        except ServerError:
            return False
        return True

    def tasks(self) -> list[TaskInfo]:
        """Return the served tasks."""
        return list(read_answer(TaskList, self._call("GET", "/tasks")).tasks)

    def benchmark(self) -> Benchmark:
        """Return scores, sizes and training facts of every served delta."""
        return read_answer(Benchmark, self._call("GET", "/benchmark"))

    def delta(self, task: str, strategy: str) -> DeltaDetails:
        """Return the details of the version that answers by default."""
        path = f"/deltas/{quote(task, safe='')}/{quote(strategy, safe='')}"
        return read_answer(DeltaDetails, self._call("GET", path))

    def get(self, model: type[T], path: str, query: Mapping[str, str | int] | None = None) -> T:
        """Return the validated answer to a GET request."""
        return read_answer(model, self._call("GET", path, query=query))

    def metrics(self) -> str:
        """Return the server's metrics, in Prometheus' text format."""
        return self._send("GET", "/metrics", read_timeout_s=_CONNECT_TIMEOUT_S).text

    def change(
        self,
        model: type[T],
        method: str,
        path: str,
        key: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
    ) -> T:
        """Send a request that changes the server, and return its validated answer.

        Args:
            model: type of the answer.
            method: method of the request.
            path: path of the route.
            key: key of an admin, for this request alone; the session's is never used.
            body: JSON body.
            content: bytes of a file, in place of a body.
            query: parameters of the request.
        """
        answer = self._call(method, path, body=body, content=content, query=query, key=key)
        return read_answer(model, answer)

    def predict(self, row: Row, targets: Sequence[Target]) -> Answer:
        """Send one row to all targets in one request."""
        started = time.perf_counter()
        body = self._call("POST", "/predict", body=fan_out_body(row, targets))
        latency_ms = (time.perf_counter() - started) * 1000
        return Answer(read_answer(FanOut, body).predictions(), latency_ms)

    def explain(self, task: str, row: Row, label: str | None = None) -> Explanation:
        """Return how much of a label's probability goes with each word, for every strategy."""
        body = {"inputs": row} | ({"label": label} if label else {})
        path = f"/explain/{quote(task, safe='')}"
        return read_answer(Explanation, self._call("POST", path, body=body))

    def predict_rows(
        self, task: str, rows: Sequence[Row], strategies: Sequence[str]
    ) -> list[list[Prediction]]:
        """Return the predictions of each strategy for many rows, from one request."""
        targets = [Target(task, strategy) for strategy in strategies]
        body = self._call("POST", "/predict", body=fan_out_body(list(rows), targets))
        found = read_answer(FanOut, body).of_rows(len(rows))
        if len(found) != len(strategies):
            raise ServerError(
                f"The server answered for {len(found)} of {len(strategies)} strategies."
            )
        return found

    def _call(self, method: str, path: str, **options: Any) -> Mapping[str, Any]:
        """Return the decoded body of a 2xx answer; `options` are those of `_send`."""
        response = self._send(method, path, **options)
        payload = _decoded(response)
        if not isinstance(payload, Mapping):
            raise explain_error(response.status_code, payload, response.headers.get("Retry-After"))
        return payload

    def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
        key: str | None = None,
        read_timeout_s: float = _READ_TIMEOUT_S,
    ) -> requests.Response:
        """Return a 2xx answer."""
        try:
            response = self._session.request(
                method,
                self.address + path,
                json=body,
                data=content,
                params=query,
                timeout=(_CONNECT_TIMEOUT_S, read_timeout_s),
                **self._with_key(key),
            )
        except requests.Timeout as error:
            raise UnreachableError(f"The server at {self.url} took too long to answer.") from error
        except requests.ConnectionError as error:
            raise UnreachableError(
                f"The server at {self.url} can't be reached. Is it running?"
            ) from error
        except (requests.RequestException, ValueError) as error:
            # An error may quote any part of the address, so also of a password.
            reason = f": {error}" if self.url == self.address else ""
            raise UnreachableError(
                f"{self.url} is not an address that this page can call{reason}. Set "
                "FRONTEND_API_URL to one such as http://127.0.0.1:8000; in user and password, "
                "percent-encode all but letters and digits."
            ) from None
        if not response.ok:
            retry_after = response.headers.get("Retry-After")
            raise explain_error(response.status_code, _decoded(response), retry_after)
        return response

    def _with_key(self, key: str | None) -> dict[str, Any]:
        """Return what sends another key than the session's with one request; "" sends none.

        Raises:
            ServerError: the key has signs that can't be sent.
        """
        if key is None:
            return {}
        if not key:
            without = {"headers": {_KEY_HEADER: None}}
            return without if self.url != self.address else without | {"auth": _without_auth}
        if not _SENDABLE.fullmatch(key):
            raise ServerError(
                "A key has only ASCII letters, digits and punctuation, and no spaces."
            )
        if self.url != self.address:
            return {"headers": {_KEY_HEADER: key}}  # the proxy reads the other header
        return {"auth": _KeyAuth(key)}


def _decoded(response: requests.Response) -> Any:
    """Return the decoded body; None if it isn't JSON."""
    try:
        return visible(response.json())
    except requests.JSONDecodeError:
        return None


def fan_out_body(row: Row | list[Row], targets: Sequence[Target]) -> dict[str, Any]:
    """Build the body of `POST /predict`."""
    given = [{name: value for name, value in vars(target).items() if value} for target in targets]
    return {"inputs": row, "targets": given}


def curl_command(url: str, path: str, body: Mapping[str, Any]) -> str:
    """Build a command for a POSIX shell that sends the same request."""
    data = json.dumps(body, ensure_ascii=False)
    lines = (
        f"curl -s {shlex.quote(url.rstrip('/') + path)}",
        "-H 'Content-Type: application/json'",
        f"-d {shlex.quote(data)}",
    )
    return " \\\n  ".join(lines)
