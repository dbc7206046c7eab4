"""Laws of plans: any rows that a task may have can be counted, judged and written down."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from tests.unit.training.run.plan.test_facts import METRICS, facts_of
from tests.unit.training.run.plan.test_render import plan_of
from training.data.rows import Rows
from training.data.tasks import Task
from training.run.plan.oddities import find_oddities
from training.run.plan.render import plan_json, plan_lines

pytestmark = pytest.mark.law

LAW = law(100)
CHARACTERS = st.characters(exclude_categories=["Cs"])
# Real words beside any characters, so that repeats and checks of whole columns are reached.
TEXT = st.one_of(
    st.sampled_from(["", " ", "a", "A", "1", "2.5", "n/a", "http://a.b", "Ã©", "<br>", "x y z"]),
    st.text(CHARACTERS, max_size=30),
)
LABEL = st.text(CHARACTERS, min_size=1, max_size=12)


@st.composite
def tasks_and_splits(draw: Any) -> tuple[Task, dict[str, Rows]]:
    """Draw a task of any kind with rows for each split."""
    kind = draw(st.sampled_from(sorted(METRICS)))
    fewest = {"regression": 0, "multi_label": 1, "single_label": 2}[kind]
    most = 0 if kind == "regression" else 30
    labels = tuple(draw(st.lists(LABEL, min_size=fewest, max_size=most, unique=True)))
    fields = draw(st.sampled_from([("text",), ("first", "second")]))
    task = Task("mine", kind, labels, fields, METRICS[kind])
    of_kind = {
        "single_label": st.integers(0, max(0, len(labels) - 1)),
        "multi_label": st.lists(st.integers(0, 1), min_size=len(labels), max_size=len(labels)),
        "regression": st.floats(-1e18, 1e18),
    }
    row = st.tuples(st.tuples(*[TEXT] * len(fields)), of_kind[kind])
    splits = {}
    for split, size in (("train", 60), ("selection", 5), ("validation", 60)):
        pairs = draw(st.lists(row, min_size=1, max_size=size))
        if draw(st.booleans()):
            pairs = pairs * draw(st.integers(1, 30))
        splits[split] = Rows([texts for texts, _ in pairs], [label for _, label in pairs])
    return task, splits


@LAW
@given(tasks_and_splits())
def test_any_rows_have_a_plan(drawn: tuple[Task, dict[str, Rows]]) -> None:
    task, splits = drawn
    facts = facts_of(task, **splits)
    oddities = find_oddities(facts, splits)
    assert len(set(oddities)) == len(oddities) < 40
    for sentence in oddities:
        assert sentence.strip() == sentence
        assert "nan" not in sentence.split()
        assert len(sentence) < 2000
        assert sentence.isprintable()
    plan = replace(plan_of(), facts=facts, oddities=tuple(oddities))
    assert json.loads(plan_json(plan))["rows"] == {
        split: len(rows) for split, rows in splits.items()
    }
    assert all(line and line.isprintable() for line in plan_lines(plan).values())


@LAW
@given(tasks_and_splits())
def test_counts_add_up(drawn: tuple[Task, dict[str, Rows]]) -> None:
    task, splits = drawn
    facts = facts_of(task, **splits)
    learnt = len(splits["train"]) + len(splits["selection"])
    keys = {
        tuple(" ".join(text.casefold().split()) for text in texts)
        for split in ("train", "selection")
        for texts in splits[split].texts
    }
    assert facts.repeats.repeated == learnt - len(keys)
    assert facts.repeats.contradicting <= learnt
    assert (facts.repeats.example is None) == (facts.repeats.contradicting == 0)
    if task.kind == "single_label":
        assert sum(facts.labels.values()) == len(splits["train"])
    for split, count in facts.repeats.shared.items():
        assert 0 <= count <= len(splits[split])
