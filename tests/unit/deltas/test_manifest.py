"""The manifest, and the values that it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from deltas import Backbone, Delta, Manifest, TaskSpec
from tests.factories import training_facts

BAD_NAMES = ("", "A", "a b", "../a", ".a", "a/b", "ä", "a\n", "a" * 129)


@pytest.fixture(scope="module")
def manifest(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> Manifest:
    """A valid manifest."""
    delta: Delta = make_delta(tiny_backbone, toy_tasks["toy3"], "bitfit+random:0.01")
    return delta.manifest


def test_json_and_back(manifest: Manifest) -> None:
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_nothing_can_be_changed(manifest: Manifest) -> None:
    parts: list[BaseModel] = [
        manifest,
        manifest.backbone,
        manifest.task,
        manifest.strategy,
        manifest.entries[0],
        manifest.training,
        *manifest.metrics.values(),
    ]
    for part in parts:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, next(iter(type(part).model_fields)), "x")
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(part).model_validate(part.model_dump() | {"surprise": 1})


def test_key_and_split(manifest: Manifest) -> None:
    assert manifest.key == ("toy3", "bitfit+random:0.01")
    assert manifest.validation_split == "validation"
    alone = manifest.model_copy(update={"metrics": {"selection": manifest.metrics["selection"]}})
    assert alone.validation_split is None


@pytest.mark.parametrize(
    ("kind", "labels", "outputs"),
    [
        ("single_label", ("a", "b"), 2),
        ("single_label", tuple("abcdefg"), 7),
        ("multi_label", ("a",), 1),
        ("multi_label", ("a", "b", "c"), 3),
        ("regression", (), 1),
    ],
)
def test_width_of_the_head(kind: str, labels: tuple[str, ...], outputs: int) -> None:
    assert task(kind=kind, labels=labels).num_outputs == outputs


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": ("a",)}, "a single_label task can't have 1 labels"),
        ({"labels": ()}, "can't have 0 labels"),
        ({"kind": "multi_label", "labels": ()}, "can't have 0 labels"),
        ({"kind": "regression", "labels": ("a",)}, "can't have 1 labels"),
        ({"labels": ("a", "a")}, "labels are not distinct: a, a"),
        ({"labels": ("a", "")}, "labels.1"),
        ({"labels": ("a", "b" * 257)}, "labels.1"),
        ({"text_fields": ("a", "a")}, "text_fields are not distinct"),
        ({"text_fields": ()}, "text_fields"),
        ({"text_fields": ("a", "b", "c")}, "text_fields"),
        ({"max_length": 3}, "max_length"),
        ({"kind": "ranking"}, "kind"),
        *(({"name": name}, "name") for name in BAD_NAMES),
    ],
    ids=str,
)
def test_inconsistent_tasks_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        task(**changes)


@pytest.mark.parametrize("name", ["a", "0", "my-task_2.0", "a" * 128])
def test_names_that_tasks_may_have(name: str) -> None:
    assert task(name=name).name == name


def task(**changes: Any) -> TaskSpec:
    """A valid task with changes."""
    good: dict[str, Any] = {
        "name": "mine",
        "kind": "single_label",
        "labels": ("a", "b"),
        "text_fields": ("text",),
        "max_length": 32,
    }
    return TaskSpec.model_validate(good | changes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_metrics_are_numbers(manifest: Manifest, value: float) -> None:
    facts = manifest.model_dump()
    facts["metrics"]["selection"]["values"]["accuracy"] = value
    with pytest.raises(ValidationError, match="finite"):
        Manifest.model_validate(facts)


def test_what_is_not_calibrated_is_not_written(manifest: Manifest) -> None:
    """The text of older manifests, and with it their version, stays the same."""
    text = manifest.model_dump_json()
    for field in ("calibration", "decision", "reliability", "target", "coverage", "history"):
        assert f'"{field}"' not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": {"scale": (1.0, 2.0)}}, "2 scales and 0 shifts"),
        ({"calibration": {"scale": (1.0,), "shift": (1.0,)}}, "1 scales and 1 shifts"),
        ({"calibration": {"scale": (0.0,)}}, "greater than 0"),
        ({"calibration": {"scale": ()}}, "at least 1 item"),
        ({"decision": {"thresholds": (0.5, 0.5, 0.5)}}, "3 thresholds don't fit"),
        ({"decision": {"thresholds": (1.5,)}}, "less than or equal to 1"),
        ({"decision": {"confidence": "guess"}}, "max_logit"),
        ({"decision": {"limit": float("nan")}}, "finite"),
    ],
)
def test_a_decision_fits_its_task(
    manifest: Manifest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        Manifest.model_validate(manifest.model_dump() | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"step": (1, 2), "loss": (0.5,), "learning_rate": (0.1, 0.1)}}, "'loss': 1"),
        ({"train": {"step": (2, 2), "loss": (0.5, 0.4), "learning_rate": (0.1, 0.1)}}, "rise"),
        ({"selection": {"step": (-1,), "loss": (0.5,), "metric": (0.1,)}}, "greater than or equal"),
        ({"selection": {"step": (0,), "loss": (float("nan"),), "metric": (0.1,)}}, "finite"),
    ],
)
def test_the_curves_of_a_history_fit_together(changes: dict[str, Any], message: str) -> None:
    train: dict[str, Any] = {"step": (1, 3), "loss": (0.5, 0.4), "learning_rate": (0.1, 0.0)}
    good = {"train": train, "selection": {"step": (0, 3), "loss": (0.6, 0.5), "metric": (0, 1)}}
    assert training_facts(history=good).history is not None
    with pytest.raises(ValidationError, match=message):
        training_facts(history=good | changes)


def test_only_single_labels_have_a_limit(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    with pytest.raises(ValidationError, match="multi_label task can't have a limit"):
        make_delta(tiny_backbone, toy_tasks["toymulti"], "head", decision={"limit": 0.5})
