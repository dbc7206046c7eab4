"""Draws scenes and puts them into words: the grammar behind the generated sample.

A scene is a meaning: somebody did something, somewhere, at some time. One scene has many sentences
(synonyms, voice, word order), and a scene that differs in one slot has sentences that look alike
but mean something else. Words come from `sample.toml`, in which synonyms are separated by "/". The
rows of each task are made of scenes in `training.data.sample`.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

TABLES: dict[str, Any] = tomllib.loads(
    Path(__file__).with_name("sample.toml").read_text(encoding="utf-8")
)
_IRREGULAR: dict[str, list[str]] = TABLES["scene"]["irregular"]
_TIMES: list[str] = TABLES["scene"]["times"]
# By group of nouns: pairs of traits that exclude each other.
_TRAITS: dict[str, list[list[str]]] = TABLES["scene"]["traits"]

# How much the meaning changes with each slot; grades the similarity of two scenes.
SLOT_WEIGHTS = {
    "sense": 1.5,
    "agent": 1.2,
    "patient": 1.2,
    "place": 0.5,
    "time": 0.4,
    "agent_trait": 0.3,
    "patient_trait": 0.3,
}
_REVERSED_WEIGHT = 1.0  # of the opposite action: still about the same thing


@dataclass(frozen=True)
class Sense:
    """An action and its opposite, each as base forms of verbs that mean the same."""

    verbs: tuple[str, ...]
    opposites: tuple[str, ...]
    objects: str  # the group of nouns that the action can be done to


SENSES = tuple(
    Sense(tuple(row["verbs"].split("/")), tuple(row["opposites"].split("/")), row["objects"])
    for row in TABLES["scene"]["senses"]
)


@dataclass(frozen=True)
class World:
    """The nouns and places that scenes are made of."""

    nouns: dict[str, list[tuple[str, ...]]]  # by group, each noun with its synonyms
    hypernyms: dict[str, str]  # by a noun's first word; not every noun has a general term
    places: list[str]  # phrases that exclude each other


def _world(name: str) -> World:
    nouns: dict[str, list[tuple[str, ...]]] = {}
    hypernyms = {}
    for group, entries in TABLES[name]["nouns"].items():
        for entry in entries:
            words, _, hypernym = entry.partition(":")
            synonyms = tuple(words.split("/"))
            nouns.setdefault(group, []).append(synonyms)
            if hypernym:
                hypernyms[synonyms[0]] = hypernym
    return World(nouns, hypernyms, TABLES[name]["places"])


TOWN = _world("town")
SEA = _world("sea")


@dataclass(frozen=True)
class Scene:
    """The meaning of a sentence, as slots to fill; "" leaves an optional slot empty."""

    sense: int  # position in `SENSES`
    is_reversed: bool  # the sense's opposite was done
    agent: str  # first word of a noun in the group "person"
    agent_trait: str  # with its synonyms
    patient: str  # first word of a noun in the sense's group
    patient_trait: str
    place: str
    time: str


def refill(scene: Scene, slots: Mapping[str, Any]) -> Scene:
    """Return the scene with other values in the given slots."""
    return replace(scene, **slots)


def verb_forms(base: str) -> tuple[str, str]:
    """Return a verb's past tense and past participle."""
    if base in _IRREGULAR:
        past, participle = _IRREGULAR[base]
        return past, participle
    if base.endswith("e"):
        return base + "d", base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied", base[:-1] + "ied"
    return base + "ed", base + "ed"


def sentence(text: str, mark: str = ".") -> str:
    """Return the text with a capital letter first and a mark at the end."""
    return text[0].upper() + text[1:] + mark


def _another(rng: random.Random, choices: Sequence[T], current: T) -> T:
    return rng.choice([choice for choice in choices if choice != current])


class Grammar:
    """Draws scenes from a world and puts them into words; `rng` makes every choice."""

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng = rng
        self.world = world
        self._synonyms = {noun[0]: noun for group in world.nouns.values() for noun in group}

    def scene(self, detail: float = 0.6) -> Scene:
        """Draw a scene; each optional slot is filled with the probability `detail`."""
        rng = self.rng
        sense = rng.randrange(len(SENSES))
        group = SENSES[sense].objects
        agent = rng.choice(self.nouns("person"))
        return Scene(
            sense=sense,
            is_reversed=rng.random() < 0.4,
            agent=agent,
            agent_trait=self._trait("person") if rng.random() < detail else "",
            patient=_another(rng, self.nouns(group), agent),
            patient_trait=self._trait(group) if rng.random() < detail else "",
            place=rng.choice(self.world.places) if rng.random() < detail else "",
            time=rng.choice(_TIMES) if rng.random() < detail else "",
        )

    def nouns(self, group: str) -> list[str]:
        """Return the first words of all nouns in a group."""
        return [noun[0] for noun in self.world.nouns[group]]

    def _trait(self, group: str) -> str:
        return self.rng.choice(self.rng.choice(_TRAITS[group]))

    def change(self, scene: Scene, slot: str) -> Scene:
        """Return the scene with another value in one slot.

        An action becomes its opposite, or another action on nouns of the same group.
        """
        rng = self.rng
        group = SENSES[scene.sense].objects
        if slot == "sense":
            same_group = [i for i, sense in enumerate(SENSES) if sense.objects == group]
            if rng.random() < 0.5:
                return refill(scene, {"is_reversed": not scene.is_reversed})
            return refill(scene, {"sense": _another(rng, same_group, scene.sense)})
        choices = {
            "agent": [noun for noun in self.nouns("person") if noun != scene.patient],
            "patient": [noun for noun in self.nouns(group) if noun != scene.agent],
            "place": self.world.places,
            "time": _TIMES,
            "agent_trait": [trait for pair in _TRAITS["person"] for trait in pair],
            "patient_trait": [trait for pair in _TRAITS[group] for trait in pair],
        }
        return refill(scene, {slot: _another(rng, choices[slot], getattr(scene, slot))})

    def opposite(self, scene: Scene, slot: str) -> Scene:
        """Return the scene with a value in one slot that can't be true at the same time."""
        if slot == "sense":
            return refill(scene, {"is_reversed": not scene.is_reversed})
        if not slot.endswith("_trait"):
            return self.change(scene, slot)
        group = "person" if slot == "agent_trait" else SENSES[scene.sense].objects
        trait = getattr(scene, slot)
        pair = next(pair for pair in _TRAITS[group] if trait in pair)
        return refill(scene, {slot: _another(self.rng, pair, trait)})

    def filled(self, scene: Scene, slots: Sequence[str] = tuple(SLOT_WEIGHTS)) -> list[str]:
        """Return the slots, out of the given ones, that have a value."""
        return [slot for slot in slots if getattr(scene, slot) != ""]

    def phrase(self, noun: str, trait: str, general: bool = False) -> str:
        """Put a noun into words; a general phrase names the hypernym, without a trait."""
        rng = self.rng
        if general and noun in self.world.hypernyms:
            hypernym = self.world.hypernyms[noun]
            return f"{'an' if hypernym[0] in 'aeiou' else 'a'} {hypernym}"
        word = rng.choice(self._synonyms[noun])
        return " ".join(["the", *([rng.choice(trait.split("/"))] if trait else []), word])

    def verb(self, scene: Scene) -> str:
        """Draw the base form of a verb for the scene's action."""
        sense = SENSES[scene.sense]
        return self.rng.choice(sense.opposites if scene.is_reversed else sense.verbs)

    def clause(self, scene: Scene, *, negated: bool = False, general: bool = False) -> str:
        """Put the scene into words, without capital letter and mark."""
        rng = self.rng
        base = self.verb(scene)
        past, participle = verb_forms(base)
        agent = self.phrase(scene.agent, scene.agent_trait, general)
        patient = self.phrase(scene.patient, scene.patient_trait, general)
        if rng.random() < 0.4:
            core = f"{patient} {'was not' if negated else 'was'} {participle} by {agent}"
        elif negated:
            core = f"{agent} {rng.choice(('did not', 'never'))} {base} {patient}"
            core = core.replace(f"never {base}", f"never {past}")
        else:
            core = f"{agent} {past} {patient}"
        place, time = scene.place, scene.time
        if time and rng.random() < 0.4:
            return " ".join(filter(None, [f"{time},", core, place]))
        return " ".join(filter(None, [core, place, time]))

    def text(self, scene: Scene, *, negated: bool = False, general: bool = False) -> str:
        """Put the scene into a sentence."""
        return sentence(self.clause(scene, negated=negated, general=general))


def similarity(first: Scene, second: Scene) -> float:
    """Grade how alike two scenes are, from 0 to 5; each slot that differs costs its weight."""
    differing = (slot for slot in SLOT_WEIGHTS if getattr(first, slot) != getattr(second, slot))
    lost = sum(SLOT_WEIGHTS[slot] for slot in differing)
    if first.sense == second.sense and first.is_reversed != second.is_reversed:
        lost += _REVERSED_WEIGHT
    return round(max(0.0, 5.0 - lost), 1)
