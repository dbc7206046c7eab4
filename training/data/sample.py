"""Generates rows for every GLUE task: the built-in sample, for when no real data can be had.

Rows resemble a task enough to learn something, not enough to say anything about GLUE. The same rows
come out on every machine. Each task has one generator, which makes a row with a given label; rows
of different labels look alike, so that the words of one text alone give little away. Scenes and
their sentences are in `training.data.sample_grammar`, words and patterns in `sample.toml`.
"""

from __future__ import annotations

import random
import re

from training.data.rows import Labels, Rows
from training.data.sample_grammar import (
    SEA,
    SLOT_WEIGHTS,
    TABLES,
    TOWN,
    Grammar,
    Scene,
    refill,
    sentence,
    similarity,
    verb_forms,
)
from training.data.tasks import Task

TRAIN_ROWS = 3000
VALIDATION_ROWS = 400
# Attempts at a row before giving up on finding a new one; tables that small are a mistake here.
_MOST_REPEATS = 1000

Row = tuple[tuple[str, ...], float]

_OPTIONAL = ("agent_trait", "patient_trait", "place", "time")
_SOURCES = ("", "", "officials said that ", "according to a witness, ", "it is reported that ")


def cola(grammar: Grammar, label: int) -> Row:
    """Fill a pattern; label 1 makes the right choice at every spot, label 0 a wrong one at one."""
    rng = grammar.rng
    pattern = _fill_grammar(grammar, rng.choice(TABLES["cola"]["patterns"]))
    spots = re.findall(r"\[[^\]]*\]", pattern)
    wrong = rng.randrange(len(spots)) if label == 0 else None
    for number, spot in enumerate(spots):
        good, *bad = spot[1:-1].split("~")
        pattern = pattern.replace(spot, rng.choice(bad) if number == wrong else good, 1)
    return (sentence(" ".join(pattern.replace(" .", ".").split()), ""),), label


def _fill_grammar(grammar: Grammar, pattern: str) -> str:
    rng = grammar.rng
    people = [noun for noun in grammar.nouns("person") if not noun.endswith("man")]
    base, third, past, participle, ing = rng.choice(TABLES["cola"]["verbs"]).split()
    things = rng.sample(grammar.nouns("thing"), 3)
    persons = rng.sample(people, 2)
    return pattern.format(
        m=rng.choice(TABLES["men"]),
        f=rng.choice(TABLES["women"]),
        p=persons[0],
        ps=persons[1] + "s",
        t=things[0],
        u=things[1],
        ts=re.sub(r"(s|ch|sh|x)$", r"\1e", things[2]) + "s",
        a=rng.choice(TABLES["cola"]["adjectives"]),
        w=rng.choice(grammar.world.places),
        b=base,
        s=third,
        d=past,
        n=participle,
        g=ing,
    )


def sst2(grammar: Grammar, label: int) -> Row:
    """Write an opinion that leaves the label's feeling; many patterns name the opposite, too."""
    rng = grammar.rng
    tables = TABLES["sst2"]
    feelings = (tables["negative"], tables["positive"])
    pattern = rng.choice(tables["patterns"])
    wanted = 1 - label if pattern.startswith("! ") else label
    first, second = rng.sample(feelings[wanted], 2)
    text = pattern.removeprefix("! ").format(
        g=first,
        g2=second,
        o=rng.choice(feelings[1 - wanted]),
        x=rng.choice(tables["aspects"]),
        k=rng.choice(tables["genres"]),
    )
    return (text,), label


def mrpc(grammar: Grammar, label: int) -> Row:
    """Word one scene twice (label 1), or two scenes that differ in one or two slots (label 0)."""
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
    """Change any number of a scene's slots, and grade the pair by what the scenes share."""
    rng = grammar.rng
    first = second = grammar.scene(detail=0.7)
    slots = grammar.filled(first)
    for slot in rng.sample(slots, rng.randint(0, len(slots))):
        second = grammar.change(second, slot)
    return (grammar.text(first), grammar.text(second)), similarity(first, second)


def qqp(grammar: Grammar, label: int) -> Row:
    """Word one question twice (label 1), or two questions that differ in one part (label 0)."""
    rng = grammar.rng
    first = _question_parts(rng)
    second = list(first)
    if label == 0:
        part = rng.randrange(4)
        while second[part] == first[part]:
            second = [*first[:part], _question_parts(rng)[part], *first[part + 1 :]]
        if part == 1:  # another action has other objects
            second[2] = rng.randrange(1, len(TABLES["qqp"]["actions"][second[1]]))
    return (_question(rng, first), _question(rng, second)), label


def _question_parts(rng: random.Random) -> list[int]:
    """Draw positions of an intent, an action, the action's object and a condition."""
    tables = TABLES["qqp"]
    sizes = (len(tables["templates"]), len(tables["actions"]), 4, len(tables["conditions"]))
    intent, action, thing, condition = (rng.randrange(size) for size in sizes)
    return [intent, action, thing + 1, condition]


def _question(rng: random.Random, parts: list[int]) -> str:
    tables = TABLES["qqp"]
    intent, action, thing, condition = parts
    words = tables["actions"][action]
    chosen = (words[0], words[thing], tables["conditions"][condition])
    phrase = " ".join(rng.choice(word.split("/")) for word in chosen).strip()
    template: str = rng.choice(tables["templates"][intent])
    return template.format(x=phrase)


def mnli(grammar: Grammar, label: int) -> Row:
    """Make a hypothesis that follows (0), may be true or not (1), or can't be true (2)."""
    rng = grammar.rng
    premise = grammar.scene(detail=0.7)
    if rng.random() < 0.25:
        return _negated_pair(grammar, premise, label), label
    if label == 1:
        premise = refill(premise, {rng.choice(_OPTIONAL): ""})
    texts = (grammar.text(premise), _hypothesis(grammar, premise, label))
    return texts, label


def _negated_pair(grammar: Grammar, scene: Scene, label: int) -> tuple[str, str]:
    """Make a pair in which both texts can hold a "not", so that the word itself tells nothing."""
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
    """Drop details from a scene; the result is true whenever the scene is."""
    dropped = [slot for slot in _OPTIONAL if slot != keep and grammar.rng.random() < 0.3]
    return refill(scene, dict.fromkeys(dropped, ""))


def rte(grammar: Grammar, label: int) -> Row:
    """Make a hypothesis that follows from one of two clauses (0), or does not (1)."""
    rng = grammar.rng
    first, second = grammar.scene(detail=0.4), grammar.scene(detail=0.4)
    about, unrelated = rng.choice(((first, second), (second, first)))
    if label == 0 or rng.random() < 0.5:
        hypothesis = _hypothesis(grammar, about, 2 * label)
    else:
        mixed = refill(about, {"agent": unrelated.agent, "agent_trait": ""})
        if unrelated.agent in (about.agent, about.patient):
            mixed = grammar.change(refill(about, {"agent_trait": ""}), "agent")
        hypothesis = grammar.text(_less(grammar, mixed))
    joint = rng.choice((", and ", ", while ", "; meanwhile, "))
    return (sentence(grammar.clause(first) + joint + grammar.clause(second)), hypothesis), label


def qnli(grammar: Grammar, label: int) -> Row:
    """Make a sentence with the answer (0), or one about the same things without it (1)."""
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
    """Replace a pronoun by the noun that it stands for (1), or by the other noun (0)."""
    rng = grammar.rng
    if rng.random() < 0.7:
        names, pronoun = rng.choice(((TABLES["women"], "she"), (TABLES["men"], "he")))
        nouns = rng.sample(names, 2)
        link, *reasons = rng.choice(TABLES["wnli"]["people"])
    else:
        nouns = [f"the {noun}" for noun in rng.sample(TABLES["wnli"]["nouns"], 2)]
        pronoun = "it"
        link, *reasons = rng.choice(TABLES["wnli"]["things"])
    meant = rng.randrange(2)
    named = meant if label == 1 else 1 - meant
    joint = rng.choice(("because", "since", "as"))
    whole = f"{nouns[0]} {link} {nouns[1]} {joint} {pronoun} {reasons[meant]}"
    return (sentence(whole), sentence(f"{nouns[named]} {reasons[meant]}")), label


_GENERATORS = {make.__name__: make for make in (cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli)}


def sample_splits(task: Task) -> dict[str, Rows]:
    """Generate train and validation rows of a GLUE task; no two rows have the same texts.

    As in MNLI, the rows of "validation_mismatched" are about other things than the train rows.
    """
    seen: set[tuple[str, ...]] = set()
    splits = {}
    for split in task.splits:
        size = TRAIN_ROWS if split == task.train_split else VALIDATION_ROWS
        # A text as seed gives the same numbers everywhere; hash() would not.
        world = SEA if split.endswith("mismatched") else TOWN
        grammar = Grammar(random.Random(f"{task.name}/{split}"), world)
        splits[split] = _draw(task, grammar, size, seen)
    return splits


def _draw(task: Task, grammar: Grammar, size: int, seen: set[tuple[str, ...]]) -> Rows:
    rows: list[Row] = []
    repeats = 0
    while len(rows) < size:
        texts, label = _GENERATORS[task.name](grammar, len(rows) % max(1, len(task.labels)))
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
