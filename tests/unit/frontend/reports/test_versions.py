"""Differences of two manifests, and the sentences that say what a change will do."""

from __future__ import annotations

from deltas import Backbone
from frontend.reports.versions import (
    Difference,
    clear_effect,
    differences,
    remove_effect,
    roll_back_effect,
    split_effect,
    upload_effect,
)
from tests.factories import RUN_HISTORY, TOY_TASKS, make_delta, training_facts


def test_equal_manifests_have_no_difference(tiny_backbone: Backbone) -> None:
    manifest = make_delta(tiny_backbone, TOY_TASKS["toy2"], "head").manifest.model_dump(mode="json")
    assert differences(manifest, dict(manifest)) == []


def test_the_fields_that_differ_are_found(tiny_backbone: Backbone) -> None:
    first, second = (
        make_delta(tiny_backbone, TOY_TASKS["toy2"], "head", training=facts).manifest.model_dump(
            mode="json"
        )
        for facts in (training_facts(seed=0), training_facts(seed=7, history=RUN_HISTORY))
    )
    found = {each.field: each for each in differences(first, second)}
    assert found["training.seed"] == Difference("training.seed", "0", "7")
    assert found["training.history"].first == ""
    assert found["training.history"].second.endswith(" points"), "a history is not spelled out"
    assert set(found) == {"training.seed", "training.history"}


def test_values_are_short() -> None:
    long = {"labels": [f"label {number}" for number in range(77)], "note": "x" * 500, "rate": 1 / 3}
    found = {each.field: each.first for each in differences(long, {})}
    assert found["labels"].endswith(" ...") or found["labels"].endswith("and 65 more")
    assert max(map(len, found.values())) <= 124
    assert found["rate"] == "0.333333"
    assert differences({"a": None}, {"a": 1}) == [Difference("a", "none", "1")]


def test_every_change_names_the_versions_it_is_about() -> None:
    assert "in place of `abc`" in upload_effect("cola/head", "6 KB", "abc")
    assert "doesn't serve yet" in upload_effect("cola/head", "6 KB", None)
    assert "`new` instead of `old`" in roll_back_effect("cola/head", "old", "new")
    split = split_effect("cola/head", "old", "new", 10, shadow=False)
    assert "`new` answers 10 % of the requests" in split
    shadow = split_effect("cola/head", "old", "new", 0, shadow=True)
    assert "Clients notice nothing" in shadow
    assert "`old` answers every request" in clear_effect("cola/head", "old")
    for versions, version, words in (
        (3, None, "all 3 versions"), (1, None, "the only version"), (3, "abc", "`abc`")
    ):  # fmt: skip
        said = remove_effect("cola/head", versions, version)
        assert words in said
        assert "can't be undone" in said
