"""Refuses parameters of a query that a route does not know, or that are there twice.

FastAPI leaves out what it does not know. So `DELETE /deltas/sst2/head?versoin=...` would remove all
versions of a delta, and `POST /predict/sst2?strategy=head` would be answered by another strategy.
Routes for probes and scrapers (`app.http.routes.operation`) take any query, because their clients
add parameters of their own. Read `app.http.json_route` next. Tested by tests/http/test_query.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from app.errors import InvalidInputError, Problem
from deltas.errors import did_you_mean

_SHOWN_CHARS = 64  # of a name that is refused


class QueryRoute(APIRoute):
    """A route whose query has its own parameters alone, each once."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the function that answers a request."""
        answer = super().get_route_handler()
        known = known_names(self.dependant)

        async def handle(request: Request) -> Response:
            if request.scope["query_string"]:
                check_query(request, known)
            return await answer(request)

        return handle


def known_names(dependant: Dependant) -> tuple[str, ...]:
    """Return the names of the parameters that an endpoint takes from the query, in their order."""
    names: list[str] = []
    for field in dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names += annotation.model_fields
        else:
            names.append(field.alias)
    return tuple(names)


def check_query(request: Request, known: Collection[str], in_body: Collection[str] = ()) -> None:
    """Refuse the first parameter of a query that is unknown, or there twice.

    Args:
        request: request with the query.
        known: names of the route's parameters.
        in_body: names of the fields of the route's body, which belong there.

    Raises:
        InvalidInputError: a parameter is unknown, or there twice.
    """
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name not in known:
            raise _problem(name, _unknown(name, known, in_body))
        if name in seen:
            raise _problem(name, "is twice in the query; give it once")
        seen.add(name)


def _unknown(name: str, known: Collection[str], in_body: Collection[str]) -> str:
    if name in in_body:
        return "is not a parameter of the query, but a field of the body; put it there"
    hint = did_you_mean(name[:_SHOWN_CHARS], known)
    allowed = ", ".join(known) or "none"
    return f"is not a parameter of the query.{hint} Allowed: {allowed}"


def _problem(name: str, problem: str) -> InvalidInputError:
    return InvalidInputError([Problem(row=None, field=name[:_SHOWN_CHARS], problem=problem)])
