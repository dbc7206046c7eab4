"""Refuses requests without a key or beyond its rights, before their bodies are read.

Only the routes know the targets and the number of rows in a body. They find the key's `Caller` in
the request's state, under `caller`; without keys there is none, nor this middleware. Tested by
tests/http/test_keys.py and tests/property/test_key_laws.py.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ForbiddenError, UnauthorizedError, error_response
from app.keys.keyring import Caller, Keyring
from app.keys.paths import READING, only_reads, prediction_of, route_path, scope_of, task_of

API_KEY_HEADER = "X-API-Key"
OPEN_PATHS = frozenset(
    {"/", "/docs", "/openapi.json", "/health/live", "/health/ready"}
    | {"/v2", "/v2/health/live", "/v2/health/ready"}
)
_AUTHORIZATION = b"authorization"
_API_KEY = API_KEY_HEADER.lower().encode()


class KeyMiddleware:
    """Finds the key of each request and checks what path and method alone need.

    Args:
        app: app to surround.
        keyring: all keys.
    """

    def __init__(self, app: ASGIApp, *, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            state = scope["state"]
            path = route_path(scope)
            try:
                caller = self._admit(scope, path)
            except (UnauthorizedError, ForbiddenError) as error:
                prediction = prediction_of("POST", path)
                state["trace"].route = prediction.route if prediction else None
                response = error_response(error, state["request_id"], state["write_error"]())
                state["trace"].code = response.code
                await response(scope, receive, send)
                return
            state["caller"] = caller
            state["trace"].key = caller.key.name
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, path: str) -> Caller:
        """Return the caller of a request that path and method allow.

        Raises:
            UnauthorizedError: there is no key, or an unknown or expired one.
            ForbiddenError: the key lacks the scope, or the task of the path.
        """
        secrets = set(_secrets(scope))
        if scope["method"] in READING and path in OPEN_PATHS:
            caller = self._keyring.find(secrets.pop()) if len(secrets) == 1 else None
            return self._keyring.anonymous if caller is None or caller.has_expired else caller
        if not secrets:
            return self._admit_anonymous(scope["method"], path)
        caller = self._find(secrets)
        scope["state"]["trace"].key = caller.key.name  # the line of a refusal names it, too
        _check(caller, scope["method"], path)
        return caller

    def _admit_anonymous(self, method: str, path: str) -> Caller:
        """Return the caller of a request without a key, if such requests have the right."""
        caller = self._keyring.anonymous
        try:
            _check(caller, method, path)
        except ForbiddenError:
            has_right = False
        else:
            has_right = bool(caller.key.tasks)
        if not has_right:
            raise UnauthorizedError(
                "this request needs a key; send the header Authorization: Bearer KEY, or "
                f"{API_KEY_HEADER}: KEY"
            )
        return caller

    def _find(self, secrets: set[bytes]) -> Caller:
        if len(secrets) > 1:
            raise UnauthorizedError("the request has several keys; send one")
        caller = self._keyring.find(secrets.pop())
        if caller is None:
            raise UnauthorizedError("the key is unknown, or was removed; ask for a new one")
        if caller.has_expired:
            raise UnauthorizedError(
                f"the key {caller.key.name!r} expired on {caller.key.expires}; ask for a new one"
            )
        return caller


def _check(caller: Caller, method: str, path: str) -> None:
    """Check the rights that a method and a path need.

    Raises:
        ForbiddenError: the key lacks the scope, or the task of the path.
    """
    reads = only_reads(method, path)
    if not reads:
        caller.check_scope(scope_of(method, path))
    task = task_of(path)
    if task is not None:
        caller.check_task(task)
    elif path == "/metrics":
        caller.check_all("metrics name all tasks")
    elif not reads and prediction_of(method, path) is None:
        caller.check_all("this concerns all tasks")


def _secrets(scope: Scope) -> list[bytes]:
    """Return what the headers give as a key; other schemes, such as a proxy's, are left alone."""
    found = []
    for name, value in scope["headers"]:
        if name == _AUTHORIZATION:
            scheme, _, given = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                found.append(given.strip())
        elif name == _API_KEY:
            found.append(value.strip())
    return found
