"""The built-in sample: generated rows for every GLUE task, for when no real data can be had.

Rows come from the project's own grammar and resemble the task enough to learn something, not enough
to say anything about GLUE. The same on every machine. The grammar is in `training.data.sample`.

One rule for each GLUE task that makes a row with a given label, for the generated sample.

A rule makes what the label means and near misses of it, so that the words of one text alone give
little away. Scenes and their sentences: `training.data.sample_grammar`; rows: `training.data.sample`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from training.data.rows import Labels, Rows
from training.data.sample_grammar import (
    ACTIONS,
    ADJECTIVES,
    ASPECTS,
    FEELINGS,
    GRAMMAR_PATTERNS,
    KINDS,
    MEN,
    OPINION_PATTERNS,
    PEOPLE_SCHEMAS,
    QUALIFIERS,
    QUESTION_TEMPLATES,
    SCHEMA_THINGS,
    SEA,
    SLOT_WEIGHTS,
    THING_SCHEMAS,
    TOWN,
    VERB_FORMS,
    WOMEN,
    Grammar,
    Scene,
    refill,
    sentence,
    similarity,
    verb_forms,
)
from training.data.tasks import Task

Row = tuple[tuple[str, ...], float]
Rule = Callable[[Grammar, int], Row]

_OPTIONAL = ("agent_trait", "patient_trait", "place", "time")
_SOURCES = ("", "", "officials said that ", "according to a witness, ", "it is reported that ")


def cola(grammar: Grammar, label: int) -> Row:
    """1: every choice of a pattern is right. 0: exactly one is wrong."""
    rng = grammar.rng
    pattern = _fill_grammar(grammar, rng.choice(GRAMMAR_PATTERNS))
    spots = re.findall(r"\[[^\]]*\]", pattern)
    wrong = rng.randrange(len(spots)) if label == 0 else None
    for number, spot in enumerate(spots):
        good, *bad = spot[1:-1].split("~")
        pattern = pattern.replace(spot, rng.choice(bad) if number == wrong else good, 1)
    return (sentence(" ".join(pattern.replace(" .", ".").split()), ""),), label


def _fill_grammar(grammar: Grammar, pattern: str) -> str:
    rng = grammar.rng
    people = [noun for noun in grammar.nouns("person") if not noun.endswith("man")]
    base, third, past, participle, ing = rng.choice(VERB_FORMS)
    things = rng.sample(grammar.nouns("thing"), 3)
    persons = rng.sample(people, 2)
    return pattern.format(
        m=rng.choice(MEN),
        f=rng.choice(WOMEN),
        p=persons[0],
        ps=persons[1] + "s",
        t=things[0],
        u=things[1],
        ts=re.sub(r"(s|ch|sh|x)$", r"\1e", things[2]) + "s",
        a=rng.choice(ADJECTIVES),
        w=rng.choice(grammar.world.places),
        b=base,
        s=third,
        d=past,
        n=participle,
        g=ing,
    )


def sst2(grammar: Grammar, label: int) -> Row:
    """The feeling that the whole phrase leaves; half of the patterns also name the opposite."""
    rng = grammar.rng
    pattern = rng.choice(OPINION_PATTERNS)
    turned = pattern.startswith("! ")
    wanted = 1 - label if turned else label
    first, second = rng.sample(FEELINGS[wanted], 2)
    text = pattern.removeprefix("! ").format(
        g=first,
        g2=second,
        o=rng.choice(FEELINGS[1 - wanted]),
        x=rng.choice(ASPECTS),
        k=rng.choice(KINDS),
    )
    return (text,), label


def mrpc(grammar: Grammar, label: int) -> Row:
    """1: one scene in two wordings. 0: the scenes differ in one or two slots."""
    rng = grammar.rng
    first = second = grammar.scene(detail=0.7)
    if label == 0:
        slots = grammar.filled(first)
        weights = [SLOT_WEIGHTS[slot] for slot in slots]
        for slot in dict.fromkeys(rng.choices(slots, weights, k=2)):
            second = grammar.change(second, slot)
    texts = [sentence(rng.choice(_SOURCES) + grammar.clause(scene)) for scene in (first, second)]
    return tuple(texts), label


def stsb(grammar: Grammar, _label: int) -> Row:
    """From no slot changed to all, graded by what is left in common."""
    rng = grammar.rng
    first = second = grammar.scene(detail=0.7)
    slots = grammar.filled(first)
    for slot in rng.sample(slots, rng.randint(0, len(slots))):
        second = grammar.change(second, slot)
    return (grammar.text(first), grammar.text(second)), similarity(first, second)


def qqp(grammar: Grammar, label: int) -> Row:
    """1: the same question in other words. 0: one of intent, action, object, condition differs."""
    rng = grammar.rng
    first = _question_meaning(rng)
    second = list(first)
    if label == 0:
        part = rng.randrange(4)
        while second[part] == first[part]:
            second = [*first[:part], _question_meaning(rng)[part], *first[part + 1 :]]
        if part == 1:  # another action needs an object of its own
            second[2] = rng.randrange(1, len(ACTIONS[second[1]]))
    return (_question(rng, first), _question(rng, second)), label


def _question_meaning(rng: random.Random) -> list[int]:
    sizes = (len(QUESTION_TEMPLATES), len(ACTIONS), 4, len(QUALIFIERS))
    intent, action, thing, qualifier = (rng.randrange(size) for size in sizes)
    return [intent, action, thing + 1, qualifier]


def _question(rng: random.Random, meaning: list[int]) -> str:
    intent, action, thing, qualifier = meaning
    words = (ACTIONS[action][0], ACTIONS[action][thing], QUALIFIERS[qualifier])
    phrase = " ".join(rng.choice(word.split("/")) for word in words).strip()
    return rng.choice(QUESTION_TEMPLATES[intent]).format(x=phrase)


def mnli(grammar: Grammar, label: int) -> Row:
    """0 follows, 1 may or may not be, 2 can't be."""
    rng = grammar.rng
    premise = grammar.scene(detail=0.7)
    if rng.random() < 0.25:
        return _negated_pair(grammar, premise, label), label
    if label == 1:
        premise = refill(premise, {rng.choice(_OPTIONAL): ""})
    texts = (grammar.text(premise), _hypothesis(grammar, premise, label))
    return texts, label


def _negated_pair(grammar: Grammar, scene: Scene, label: int) -> tuple[str, str]:
    """Both texts can hold a "not", so that the word itself tells nothing."""
    premise = grammar.text(scene, negated=True)
    if label == 0:
        return premise, grammar.text(scene, negated=True)
    if label == 2:
        return premise, grammar.text(scene)
    unrelated = grammar.change(scene, "patient")
    return premise, grammar.text(unrelated, negated=grammar.rng.random() < 0.5)


def _hypothesis(grammar: Grammar, premise: Scene, label: int) -> str:
    rng = grammar.rng
    if label == 0:
        return grammar.text(_less(grammar, premise), general=rng.random() < 0.25)
    if label == 2:
        slot = rng.choice(grammar.filled(premise, ("sense", "sense", *_OPTIONAL)))
        scene = grammar.opposite(premise, slot)
        kept = _less(grammar, scene, keep=slot)
        return grammar.text(kept, negated=False)
    empty = [slot for slot in _OPTIONAL if getattr(premise, slot) == ""]
    slot = rng.choice(empty)
    return grammar.text(_less(grammar, grammar.change(premise, slot), keep=slot))


def _less(grammar: Grammar, scene: Scene, keep: str = "") -> Scene:
    """The scene with fewer details, which is true whenever the scene is."""
    dropped = [slot for slot in _OPTIONAL if slot != keep and grammar.rng.random() < 0.3]
    return refill(scene, dict.fromkeys(dropped, ""))


def rte(grammar: Grammar, label: int) -> Row:
    """0: follows from one of two clauses. 1: contradicts it, adds to it, or mixes the two."""
    rng = grammar.rng
    first, second = grammar.scene(detail=0.4), grammar.scene(detail=0.4)
    about, mate = rng.choice(((first, second), (second, first)))
    if label == 0:
        hypothesis = _hypothesis(grammar, about, 0)
    elif rng.random() < 0.5:
        hypothesis = _hypothesis(grammar, about, 2)
    else:
        mixed = refill(about, {"agent": mate.agent, "agent_trait": ""})
        if mate.agent in (about.agent, about.patient):
            mixed = grammar.change(refill(about, {"agent_trait": ""}), "agent")
        hypothesis = grammar.text(_less(grammar, mixed))
    joint = rng.choice((", and ", ", while ", "; meanwhile, "))
    return (sentence(grammar.clause(first) + joint + grammar.clause(second)), hypothesis), label


def qnli(grammar: Grammar, label: int) -> Row:
    """0: the sentence holds the answer. 1: it is about the same people or things without it."""
    rng = grammar.rng
    asked = rng.choice(("agent", "patient", "place", "time"))
    told = grammar.scene(detail=0.6)
    if asked in ("place", "time") and getattr(told, asked) == "":
        told = grammar.change(told, asked)
    question = _ask(grammar, told, asked)
    if label == 1:
        if asked in ("place", "time") and rng.random() < 0.6:
            told = refill(told, {asked: ""})
        else:
            told = grammar.change(told, "patient" if asked == "agent" else "agent")
    return (question, grammar.text(told)), label


def _ask(grammar: Grammar, scene: Scene, asked: str) -> str:
    base = grammar.verb(scene)
    agent = grammar.phrase(scene.agent, scene.agent_trait)
    patient = grammar.phrase(scene.patient, scene.patient_trait)
    if asked == "agent":
        return f"Who {verb_forms(base)[0]} {patient}?"
    if asked == "patient":
        return f"Who or what did {agent} {base}?"
    word = "Where" if asked == "place" else "When"
    return f"{word} did {agent} {base} {patient}?"


def wnli(grammar: Grammar, label: int) -> Row:
    """1: the pronoun is replaced by what it stands for. 0: by the other noun."""
    rng = grammar.rng
    if rng.random() < 0.7:
        names, pronoun = rng.choice(((WOMEN, "she"), (MEN, "he")))
        nouns = rng.sample(names, 2)
        link, *reasons = rng.choice(PEOPLE_SCHEMAS)
    else:
        nouns = [f"the {noun}" for noun in rng.sample(SCHEMA_THINGS, 2)]
        pronoun = "it"
        link, *reasons = rng.choice(THING_SCHEMAS)
    meant = rng.randrange(2)
    named = meant if label == 1 else 1 - meant
    joint = rng.choice(("because", "since", "as"))
    whole = f"{nouns[0]} {link} {nouns[1]} {joint} {pronoun} {reasons[meant]}"
    return (sentence(whole), sentence(f"{nouns[named]} {reasons[meant]}")), label


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli)
}

TRAIN_ROWS = 3000
VALIDATION_ROWS = 400
# Attempts at a row before giving up on finding a new one; tables that small are a mistake here.
_MOST_REPEATS = 1000


def sample_splits(task: Task) -> dict[str, Rows]:
    """Train and validation rows of a GLUE task; no two rows have the same texts.

    As in MNLI, "validation_mismatched" is about other things than the train set.
    """
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in (task.train_split, *task.validation_splits):
        size = TRAIN_ROWS if split == task.train_split else VALIDATION_ROWS
        # A text as seed gives the same numbers everywhere; hash() would not.
        world = SEA if split.endswith("mismatched") else TOWN
        grammar = Grammar(random.Random(f"{task.name}/{split}"), world)
        splits[split] = _draw(task, grammar, size, seen)
    return splits


def _draw(task: Task, grammar: Grammar, size: int, seen: set[tuple[str, ...]]) -> Rows:
    rows: list[tuple[tuple[str, ...], float]] = []
    repeats = 0
    while len(rows) < size:
        texts, label = RULES[task.name](grammar, len(rows) % max(1, len(task.labels)))
        key = tuple(text.casefold() for text in texts)
        if key in seen or len(set(key)) < len(key):
            repeats += 1
            if repeats > _MOST_REPEATS:
                raise RuntimeError(f"the grammar of {task.name} has fewer than {size} rows")
            continue
        repeats = 0
        seen.add(key)
        rows.append((texts, label))
    grammar.rng.shuffle(rows)
    values = [label for _, label in rows]
    labels: Labels = values if task.kind == "regression" else [int(value) for value in values]
    return Rows([texts for texts, _ in rows], labels)
