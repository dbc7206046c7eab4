"""Paths and methods tell task, route and right of a request, for the clients of every protocol."""

from __future__ import annotations

import pytest

from app.keys.paths import (
    only_reads,
    prediction_at,
    prediction_of,
    scope_of,
    split_model,
    task_of,
)


@pytest.mark.parametrize(
    ("path", "route", "task"),
    [
        ("/predict", "/predict", None),
        ("/predict/sst2", "/predict/{task}", "sst2"),
        ("/predict/sst2/more", "/predict/{task}", "sst2"),
        ("/predict/a\nb", "/predict/{task}", "a\nb"),
        ("/hf/sst2", "/hf/{task}", "sst2"),
        ("/hf/sst2/top:1", "/hf/{task}/{strategy}", "sst2"),
        ("/tei/sst2/predict", "/tei/{task}/predict", "sst2"),
        ("/v2/models/sst2/infer", "/v2/models/{model}/infer", "sst2"),
        ("/v2/models/sst2:top:1/infer", "/v2/models/{model}/infer", "sst2"),
        (
            "/v2/models/sst2/versions/ab/infer",
            "/v2/models/{model}/versions/{version}/infer",
            "sst2",
        ),
        ("/classify", "/classify", None),
        ("/invocations", "/invocations", None),
    ],
)
def test_predictions_are_known_by_their_path(path: str, route: str, task: str | None) -> None:
    assert prediction_of("POST", path) == (route, task)
    assert prediction_of("GET", path) is None
    assert scope_of("POST", path) == "predict"
    assert not only_reads("POST", path)
    assert task_of(path) == task
    for prefix in ("", "/api"):
        assert prediction_at(f"{prefix}{path}\n", prefix) == (route, task)
    assert prediction_at(path, "/api") == (route, task)  # the proxy has removed the prefix


@pytest.mark.parametrize(
    ("path", "task"),
    [
        ("/deltas/sst2/head", "sst2"),
        ("/deltas/reload", None),
        ("/traffic/sst2/head", "sst2"),
        ("/tei/sst2/info", "sst2"),
        ("/v2/models/sst2:head/ready", "sst2"),
        ("/v2/models/sst2", "sst2"),
        ("/v2/models", None),
        ("/v2/repository/models/sst2:head/unload", "sst2"),
        ("/v2/repository/index", None),
        ("/v2", None),
        ("/v2/health/live", None),
        ("/classify/sst2", None),
        ("/tasks", None),
        ("/", None),
        ("", None),
        ("predict/sst2", None),
    ],
)
def test_other_paths_are_no_predictions(path: str, task: str | None) -> None:
    assert prediction_of("POST", path) is None
    assert scope_of("POST", path) == "admin"
    assert task_of(path) == task


def test_the_index_of_models_reads_although_it_is_posted() -> None:
    assert only_reads("POST", "/v2/repository/index")
    assert not only_reads("POST", "/v2/repository/models/sst2/load")
    assert only_reads("GET", "/tasks")
    assert not only_reads("GET", "/traffic/sst2/head")


def test_the_first_colon_of_a_model_separates() -> None:
    assert split_model("sst2") == ("sst2", None)
    assert split_model("sst2:random:0.05") == ("sst2", "random:0.05")
    assert split_model("sst2:") == ("sst2", "")
