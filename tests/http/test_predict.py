"""Predictions over HTTP: shapes by kind of task, order, defaults, fan-out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.pipeline import pipeline
from deltas import Backbone, TaskSpec, delta_path, read_delta, write_delta

ROWS: dict[str, Any] = {
    "toy2": "a very good film",
    "toy3": {"premise": "the film is good", "hypothesis": "the film is not bad"},
    "toyreg": {"first": "a good film", "second": "a film"},
    "toymulti": "the film and the fee",
    "toy68": "not very good",
}


def post(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_a_single_label_task(client: TestClient, toy_tasks: dict[str, TaskSpec]) -> None:
    answer = post(client, "/predict/toy2", inputs=ROWS["toy2"])
    (prediction,) = answer.pop("predictions")
    assert answer.pop("version")
    assert answer == {
        "task": "toy2",
        "strategy": "bitfit",
        "backbone": "tiny-bert",
        "kind": "single_label",
    }
    assert set(prediction) == {"label", "decision", "score", "scores", "truncated"}
    assert prediction["decision"] == prediction["label"]
    assert list(prediction["scores"]) == list(toy_tasks["toy2"].labels)
    assert sum(prediction["scores"].values()) == pytest.approx(1.0)
    assert prediction["score"] == max(prediction["scores"].values())
    assert prediction["scores"][prediction["label"]] == prediction["score"]
    assert prediction["truncated"] is False


def test_a_multi_label_task(client: TestClient) -> None:
    answer = post(client, "/predict/toymulti", inputs=["good", "the bad film", "x"])
    assert answer["kind"] == "multi_label"
    for prediction in answer["predictions"]:
        assert set(prediction) == {"labels", "decision", "scores", "truncated"}
        assert prediction["decision"] == prediction["labels"]
        over_half = [name for name, score in prediction["scores"].items() if score >= 0.5]
        assert prediction["labels"] == over_half
    sums = [sum(prediction["scores"].values()) for prediction in answer["predictions"]]
    assert any(abs(total - 1) > 0.01 for total in sums), "a softmax where sigmoids belong"


def test_every_pooling_is_answered_as_alone(
    start: Callable[..., TestClient], pooled_deltas: Path
) -> None:
    """In one pass of a fan-out, whose targets read the same texts in three ways."""
    client = start(deltas=(pooled_deltas,))
    names = ("toy3", "toypairmean", "toysplit")
    rows = [ROWS["toy3"], {"premise": "the " * 25, "hypothesis": "film " * 25}]
    targets = [{"task": name} for name in names]
    answer = post(client, "/predict", inputs=rows, targets=targets)
    truncated = []
    for name, result in zip(names, answer["results"], strict=True):
        alone = post(client, f"/predict/{name}", inputs=rows)
        assert result["task"] == name
        for found, expected in zip(result["predictions"], alone["predictions"], strict=True):
            assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        truncated.append([found["truncated"] for found in result["predictions"]])
    scores = [result["predictions"][0]["scores"]["no"] for result in answer["results"]]
    assert len(set(scores)) == 3
    # Of 40 tokens, each text may have all if it is read by itself.
    assert truncated == [[False, True], [False, True], [False, False]]


def test_a_regression_task(client: TestClient) -> None:
    answer = post(client, "/predict/toyreg", inputs=ROWS["toyreg"])
    assert answer["kind"] == "regression"
    (prediction,) = answer["predictions"]
    assert set(prediction) == {"value", "decision", "truncated"}
    assert prediction["decision"] == prediction["value"]
    assert isinstance(prediction["value"], float)


def test_predictions_come_in_the_order_of_the_rows(client: TestClient) -> None:
    texts = ["good", "bad", "a very very long and not so good film", "film", "x y z"] * 3
    together = post(client, "/predict/toy68", inputs=texts)["predictions"]
    for text, prediction in zip(texts, together, strict=True):
        (alone,) = post(client, "/predict/toy68", inputs=text)["predictions"]
        assert prediction["label"] == alone["label"]
        assert prediction["scores"] == pytest.approx(alone["scores"], abs=1e-5)


def test_the_same_row_in_every_form_gets_the_same_answer(client: TestClient) -> None:
    def answers(task: str, *rows: Any) -> list[Any]:
        return [post(client, f"/predict/{task}", inputs=row)["predictions"] for row in rows]

    text = "a good film"
    first, *others = answers("toy2", text, [text], {"sentence": text}, [{"text": text}])
    assert all(other == first for other in others)
    own = {"premise": "a film", "hypothesis": "good"}
    pair = {"text": "a film", "text_pair": "good"}
    first, *others = answers("toy3", own, [own], pair, dict(reversed(own.items())))
    assert all(other == first for other in others)


def test_a_strategy_and_a_version_can_be_named(client: TestClient) -> None:
    default = post(client, "/predict/toy2", inputs="good")
    head = post(client, "/predict/toy2", inputs="good", strategy="head")
    assert head["strategy"] == "head"
    assert head["version"] != default["version"]
    assert head["predictions"] != default["predictions"]
    named = post(client, "/predict/toy2", inputs="good", strategy="head", version=head["version"])
    assert named == head


def test_an_older_version_is_still_served_next_to_the_default(
    start: Callable[..., TestClient],
    tiny_deltas: Path,
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    make_delta: Callable[..., Any],
    tmp_path: Path,
) -> None:
    newer = delta_path(tmp_path, tiny_backbone.ref.id, "toy2", "bitfit")
    write_delta(make_delta(tiny_backbone, toy_tasks["toy2"], "bitfit", seed=5), newer)
    client = start(deltas=(tmp_path, tiny_deltas))
    known = [
        delta
        for delta in client.get("/deltas").json()["deltas"]
        if (delta["task"], delta["strategy"]) == ("toy2", "bitfit")
    ]
    assert [delta["is_default"] for delta in known] == [True, False]
    assert known[0]["version"] == read_delta(newer).version
    answers = [
        post(client, "/predict/toy2", inputs="good", version=delta["version"]) for delta in known
    ]
    assert post(client, "/predict/toy2", inputs="good") == answers[0]
    assert answers[0]["predictions"] != answers[1]["predictions"]


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (3, 3), (68, 68), (1000, 68)])
def test_top_k_gives_the_best_scores_best_first(client: TestClient, top_k: int, count: int) -> None:
    (prediction,) = post(client, "/predict/toy68", inputs="film", top_k=top_k)["predictions"]
    (whole,) = post(client, "/predict/toy68", inputs="film")["predictions"]
    best = sorted(whole["scores"].items(), key=lambda item: -item[1])[:count]
    assert list(prediction["scores"].items()) == best
    assert prediction["label"] == whole["label"] == best[0][0]


def test_fan_out_answers_each_target_as_if_it_were_alone(client: TestClient) -> None:
    rows = ["good", "a bad film and a good one"]
    targets: list[dict[str, str]] = [
        {"task": "toy68"},
        {"task": "toy2", "strategy": "head"},
        {"task": "toymulti", "strategy": "random:0.05"},
        {"task": "toy2"},
        {"task": "toy68"},  # twice is fine
    ]
    answer = post(client, "/predict", inputs=rows, targets=targets)
    assert answer["backbone"] == "tiny-bert"
    assert answer["results"][0] == answer["results"][4]
    for target, result in zip(targets, answer["results"], strict=True):
        task = target["task"]
        alone = post(client, f"/predict/{task}", inputs=rows, strategy=target.get("strategy"))
        assert "backbone" not in result
        assert result["version"] == alone["version"]
        for one, other in zip(result["predictions"], alone["predictions"], strict=True):
            assert one.get("label") == other.get("label")
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_fan_out_over_tasks_with_other_field_names(client: TestClient) -> None:
    targets = [{"task": "toy3"}, {"task": "toyreg"}]
    row = {"text": "a film", "text_pair": "a good film"}
    answer = post(client, "/predict", inputs=row, targets=targets, top_k=2)
    first, second = answer["results"]
    assert len(first["predictions"][0]["scores"]) == 2
    assert "value" in second["predictions"][0]


def test_fan_out_checks_the_rows_once_for_each_task(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With the longest texts and most targets, more checks would block the event loop for 0.7 s.
    checked: list[str] = []

    def read_texts(task: TaskSpec, rows: list[Any], max_chars: int) -> pipeline.Texts:
        checked.append(task.name)
        return original(task, rows, max_chars)

    original = pipeline.read_texts
    monkeypatch.setattr(pipeline, "read_texts", read_texts)
    targets = [{"task": task} for task in ("toy2", "toymulti", "toy2", "toy2")]
    post(client, "/predict", inputs="good", targets=targets)
    assert checked == ["toy2", "toymulti"]


def test_calls_are_repeatable(client: TestClient) -> None:
    bodies = [client.post("/predict/toy2", json={"inputs": "good"}).content for _ in range(3)]
    assert len(set(bodies)) == 1


@pytest.mark.parametrize("strategy", ["bitfit", "layernorm", "random:0.05", "head", "top:1"])
@pytest.mark.parametrize("task", list(ROWS))
def test_every_delta_answers_with_its_name(client: TestClient, task: str, strategy: str) -> None:
    answer = post(client, f"/predict/{task}", inputs=ROWS[task], strategy=strategy)
    assert (answer["task"], answer["strategy"]) == (task, strategy)
