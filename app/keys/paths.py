"""Tells what the path and the method of a request say by themselves: its right, task and route.

Keys and load shedding decide from them alone, before a body is read. The routes of other clients'
protocols (`app.http.routes.clients`) are predictions like those below /predict. Tested by
tests/unit/app/keys/test_paths.py and tests/property/test_key_laws.py.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from starlette.types import Scope

from app.keys.key import Scope as KeyScope

READING = frozenset({"GET", "HEAD", "OPTIONS"})
MODEL_SEPARATOR = ":"  # between task and strategy in the name of a model
_TRAFFIC = "/traffic/"  # rules of traffic are for those who set them
_MODEL_INDEX = "/v2/repository/index"  # reads, although its method is POST
# The patterns of predictions by the first part of the path; `task` may be the name of a model.
_PREDICTIONS = {
    first: [(re.compile(pattern, re.DOTALL), route) for pattern, route in patterns]
    for first, patterns in {
        "predict": [(r"/predict", "/predict"), (r"/predict/(?P<task>[^/]*).*", "/predict/{task}")],
        "explain": [(r"/explain/(?P<task>[^/]*)", "/explain/{task}")],
        "hf": [
            (r"/hf/(?P<task>[^/]*)", "/hf/{task}"),
            (r"/hf/(?P<task>[^/]*)/.*", "/hf/{task}/{strategy}"),
        ],
        "tei": [(r"/tei/(?P<task>[^/]*)/predict", "/tei/{task}/predict")],
        "v2": [
            (r"/v2/models/(?P<task>[^/]*)/infer", "/v2/models/{model}/infer"),
            (
                r"/v2/models/(?P<task>[^/]*)/versions/[^/]*/infer",
                "/v2/models/{model}/versions/{version}/infer",
            ),
        ],
        "classify": [(r"/classify", "/classify")],
        "invocations": [(r"/invocations", "/invocations")],
    }.items()
}
# The number of parts before the task, and the fewest after it, by the first part of the path.
_TASKS = {
    **dict.fromkeys(("predict", "explain", "hf", "tei"), (1, 0)),
    **dict.fromkeys(("deltas", "traffic"), (1, 1)),
}


class PredictionPath(NamedTuple):
    """The route of a prediction, and its task if the path names one."""

    route: str
    task: str | None


def prediction_of(method: str, path: str) -> PredictionPath | None:
    """Return the route and task of a prediction, or None if a request is none."""
    if method != "POST":
        return None
    for pattern, route in _PREDICTIONS.get(first_part(path), ()):
        if found := pattern.fullmatch(path):
            task = found.groupdict().get("task")
            return PredictionPath(route, None if task is None else split_model(task)[0])
    return None


@lru_cache(256)  # each request asks before its body is read, and most paths come again and again
def prediction_at(path: str, root_path: str) -> PredictionPath | None:
    """Return the route and task of a POST to a path that may have the prefix of a proxy."""
    return prediction_of("POST", _without_prefix(path, root_path))


def first_part(path: str) -> str:
    """Return the first part of a path, which tells its protocol."""
    return path.split("/", 2)[1] if path.startswith("/") else ""


def split_model(name: str) -> tuple[str, str | None]:
    """Return task and strategy of a model's name: "sst2" or "sst2:layernorm"."""
    task, separator, strategy = name.partition(MODEL_SEPARATOR)
    return task, strategy if separator else None


def task_of(path: str) -> str | None:
    """Return the task that a path names, or None."""
    parts = path.split("/")[1:]
    first = parts[0] if parts else ""
    if first == "v2":
        models = parts[1:] if parts[1:2] == ["models"] else parts[2:]
        is_model = models[:1] == ["models"] and len(models) > 1
        return split_model(models[1])[0] if is_model else None
    before, after = _TASKS.get(first, (len(parts), 0))
    return parts[before] if len(parts) > before + after else None


def only_reads(method: str, path: str) -> bool:
    """Return True if a request needs no scope, as every key may read."""
    if path == _MODEL_INDEX:
        return True
    return method in READING and not path.startswith(_TRAFFIC)


def scope_of(method: str, path: str) -> KeyScope:
    """Return the scope that a request needs which does more than read."""
    return "predict" if prediction_of(method, path) is not None else "admin"


def route_path(scope: Scope) -> str:
    """Return the path that the routes match, without the prefix of a proxy.

    Their patterns end with `$`, which also matches before a newline at the end.
    """
    return _without_prefix(scope["path"], scope.get("root_path", ""))


def _without_prefix(path: str, prefix: str) -> str:
    path = path.removesuffix("\n")
    return path.removeprefix(prefix) if path.startswith(f"{prefix}/") else path
