"""Scenes keep their meaning in other words, and change it in one slot at a time."""

from __future__ import annotations

import random

import pytest

from training.data.sample_grammar import (
    SEA,
    SENSES,
    SLOT_WEIGHTS,
    TOWN,
    Grammar,
    refill,
    sentence,
    similarity,
    verb_forms,
)


@pytest.fixture
def grammar() -> Grammar:
    return Grammar(random.Random(3), TOWN)


@pytest.mark.parametrize(
    ("base", "past", "participle"),
    [
        ("repair", "repaired", "repaired"),
        ("hire", "hired", "hired"),
        ("deny", "denied", "denied"),
        ("enjoy", "enjoyed", "enjoyed"),
        ("begin", "began", "begun"),
    ],
)
def test_verbs_have_their_forms(base: str, past: str, participle: str) -> None:
    assert verb_forms(base) == (past, participle)


def test_the_groups_of_the_tables_fit_each_other() -> None:
    for world in (TOWN, SEA):
        assert {sense.objects for sense in SENSES} <= set(world.nouns)
        nouns = {noun[0] for group in world.nouns.values() for noun in group}
        assert set(world.hypernyms) <= nouns


def test_one_scene_has_many_sentences(grammar: Grammar) -> None:
    scene = grammar.scene(detail=1)
    texts = {grammar.text(scene) for _ in range(50)}
    assert len(texts) > 5
    assert all(text[0].isupper() and text.endswith(".") for text in texts)


@pytest.mark.parametrize("slot", SLOT_WEIGHTS)
def test_a_change_touches_one_slot(grammar: Grammar, slot: str) -> None:
    for _ in range(20):
        scene = grammar.scene(detail=1)
        changed = grammar.change(scene, slot)
        assert changed != scene
        back = {name: getattr(scene, name) for name in (slot, "is_reversed")}
        assert refill(changed, back) == scene


def test_similarity_falls_with_each_slot(grammar: Grammar) -> None:
    scene = grammar.scene(detail=1)
    assert similarity(scene, scene) == 5
    assert similarity(scene, grammar.change(scene, "time")) == pytest.approx(4.6)
    assert similarity(scene, refill(scene, {"is_reversed": not scene.is_reversed})) == 4
    other = refill(scene, dict.fromkeys(SLOT_WEIGHTS, "nothing"))
    assert 0 <= similarity(scene, other) < 1


def test_a_sentence_begins_with_a_capital_letter() -> None:
    assert sentence("a cat sat") == "A cat sat."
    assert sentence("who sat", "?") == "Who sat?"
