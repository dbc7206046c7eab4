"""The labels on which a task fires: by name, by rarity, by flag, or by asking."""

from __future__ import annotations

from typing import Any

import pytest

from audit.firing import firing_of, parse_fires
from deltas import Backbone, Manifest, SplitMetrics
from deltas.manifest import LabelMetrics
from tests.factories import TOY_TASKS, make_delta
from tests.unit.audit.conftest import yes_no
from training.errors import ConfigError


def manifest_of(backbone: Backbone, task: Any, counts: dict[str, int] | None = None) -> Manifest:
    by_label = {
        label: LabelMetrics(rows=rows, precision=1, recall=1, f1=1)
        for label, rows in (counts or {}).items()
    }
    metrics = {
        "selection": SplitMetrics(rows=10, values={"accuracy": 0.5}),
        "validation": SplitMetrics(rows=10, values={"accuracy": 0.5}, by_label=by_label),
    }
    return make_delta(backbone, task, "head", metrics=metrics).manifest


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("no", "yes"), "yes"),
        (("yes", "no"), "yes"),
        (("False", "True"), "True"),
        (("0", "1"), "1"),
        (("negative", "positive"), "positive"),
        (("spam", "not spam"), "spam"),
        (("not_spam", "spam"), "spam"),
        (("Non-Toxic", "toxic"), "toxic"),
        (("nontoxic", "toxic"), "toxic"),
        (("no_joy", "joy"), "joy"),
    ],
)
def test_of_two_labels_the_affirmative_one_fires(
    tiny_backbone: Backbone, labels: tuple[str, str], expected: str
) -> None:
    firing = firing_of(manifest_of(tiny_backbone, yes_no("t", *labels)), {})
    assert (firing.labels, firing.reason) == ((expected,), "by its name")


def test_if_names_say_nothing_the_rarer_label_fires(tiny_backbone: Backbone) -> None:
    task = yes_no("t", "ham", "spam")
    firing = firing_of(manifest_of(tiny_backbone, task, {"ham": 13, "spam": 87}), {})
    assert firing.labels == ("ham",)
    assert firing.reason == "the rarer label, 13 of 100 validation rows"
    for counts in ({"ham": 5, "spam": 5}, {}, {"ham": 5}):
        with pytest.raises(
            ConfigError, match=r"'t' has the labels 'ham', 'spam'; .*--fires t=spam"
        ):
            firing_of(manifest_of(tiny_backbone, task, counts), {})


def test_several_labels_are_never_guessed(tiny_backbone: Backbone) -> None:
    manifest = manifest_of(tiny_backbone, yes_no("t", "no", "maybe", "yes"))
    with pytest.raises(ConfigError, match=r"once for each label, or --fires 't=\*' for any"):
        firing_of(manifest, {})
    named = firing_of(manifest, {"t": ["yes", "maybe"], "other": ["no"]})
    assert (named.labels, named.reason) == (("maybe", "yes"), "by --fires")
    every = firing_of(manifest, {"t": ["*"]})
    assert every.labels == ("no", "maybe", "yes")


def test_a_flag_overrules_a_name(tiny_backbone: Backbone) -> None:
    manifest = manifest_of(tiny_backbone, yes_no("t"))
    assert firing_of(manifest, {"t": ["no"]}).labels == ("no",)
    with pytest.raises(ConfigError, match=r"--fires 't=nope': .* Did you mean 'no'"):
        firing_of(manifest, {"t": ["nope"]})


def test_a_multi_label_task_fires_on_any_label(tiny_backbone: Backbone) -> None:
    manifest = manifest_of(tiny_backbone, TOY_TASKS["toymulti"])
    firing = firing_of(manifest, {})
    assert firing.reason == "any label"
    assert [firing.fires(decision) for decision in (["a"], ["d", "b"], [])] == [True, True, False]
    one = firing_of(manifest, {"toymulti": ["c"]})
    assert [one.fires(decision) for decision in (["a"], ["a", "c"], [])] == [False, True, False]


def test_no_answer_fires_nothing(tiny_backbone: Backbone) -> None:
    firing = firing_of(manifest_of(tiny_backbone, yes_no("t")), {"t": ["*"]})
    assert [firing.fires(decision) for decision in ("no", "yes", None)] == [True, True, False]


def test_a_regression_never_fires(tiny_backbone: Backbone) -> None:
    delta = make_delta(tiny_backbone, TOY_TASKS["toyreg"], "head")
    with pytest.raises(ConfigError, match="'toyreg' is a regression"):
        firing_of(delta.manifest, {"toyreg": ["*"]})


def test_labels_may_contain_signs_of_the_flag() -> None:
    given = parse_fires(["a=x=y", "b=p, q", "a=z"], ["a", "b"])
    assert given == {"a": ["x=y", "z"], "b": ["p, q"]}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("joy", "--fires 'joy': write it as task=label, such as joy=yes"),
        ("joy=", "write it as task=label"),
        ("jooy=yes", "no such task here. Did you mean 'joy'"),
    ],
)
def test_a_flag_of_another_form_is_explained(value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fires([value], ["joy"])
    assert problem in str(caught.value)
