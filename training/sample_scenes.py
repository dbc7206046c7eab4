"""Scenes, which are meanings, and their sentences: the grammar behind the pair tasks of the sample.

One scene has many sentences (synonyms, voice, word order), and a scene that differs in one slot has
sentences that look alike and mean something else. Tasks built on this: `training.sample_tasks`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from training.sample_words import GROUP_TRAITS, IRREGULAR, SENSES, TIMES, World

T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """Who did what to whom, where and when.

    Attributes:
        sense: position in `SENSES`.
        reverse: the sense's opposite was done.
        agent: first word of a noun in the group "person".
        agent_trait: a trait with its synonyms, or "".
        patient: first word of a noun in the sense's group.
        patient_trait: a trait with its synonyms, or "".
        place: a phrase, or "".
        time: a phrase, or "".
    """

    sense: int
    reverse: bool
    agent: str
    agent_trait: str
    patient: str
    patient_trait: str
    place: str
    time: str


# What a reader would miss most if it were another; used to grade similarity.
SLOT_WEIGHTS = {
    "sense": 1.5,
    "agent": 1.2,
    "patient": 1.2,
    "place": 0.5,
    "time": 0.4,
    "agent_trait": 0.3,
    "patient_trait": 0.3,
}


def refill(scene: Scene, slots: Mapping[str, Any]) -> Scene:
    """The scene with other values in these slots."""
    return replace(scene, **slots)


def verb_forms(base: str) -> tuple[str, str]:
    """Past tense and past participle."""
    if base in IRREGULAR:
        return IRREGULAR[base]
    if base.endswith("e"):
        return base + "d", base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied", base[:-1] + "ied"
    return base + "ed", base + "ed"


def sentence(text: str, mark: str = ".") -> str:
    """Capital letter first, a mark at the end."""
    return text[0].upper() + text[1:] + mark


def other(rng: random.Random, choices: Sequence[T], current: T) -> T:
    """Any choice but the current one."""
    return rng.choice([choice for choice in choices if choice != current])


class Grammar:
    """Draws scenes from a world and puts them into words.

    Args:
        rng: source of every choice.
        world: the nouns and places to choose from.
    """

    def __init__(self, rng: random.Random, world: World) -> None:
        self.rng = rng
        self.world = world
        self._synonyms = {n[0]: n for group in world.nouns.values() for n in group}

    def scene(self, detail: float = 0.6) -> Scene:
        """A new scene; each of the optional slots is filled with the probability `detail`."""
        rng = self.rng
        sense = rng.randrange(len(SENSES))
        group = SENSES[sense].objects
        agent = self.noun("person")
        return Scene(
            sense=sense,
            reverse=rng.random() < 0.4,
            agent=agent,
            agent_trait=self.trait("person") if rng.random() < detail else "",
            patient=other(rng, self.nouns(group), agent),
            patient_trait=self.trait(group) if rng.random() < detail else "",
            place=rng.choice(self.world.places) if rng.random() < detail else "",
            time=rng.choice(TIMES) if rng.random() < detail else "",
        )

    def nouns(self, group: str) -> list[str]:
        """First words of all nouns in a group."""
        return [noun[0] for noun in self.world.nouns[group]]

    def noun(self, group: str) -> str:
        """Some noun of a group."""
        return self.rng.choice(self.nouns(group))

    def trait(self, group: str) -> str:
        """Some trait that nouns of this group can have."""
        return self.rng.choice(self.rng.choice(GROUP_TRAITS[group]))

    def change(self, scene: Scene, slot: str) -> Scene:
        """The scene with another value in one slot; an action becomes its opposite or another."""
        rng = self.rng
        group = SENSES[scene.sense].objects
        if slot == "sense":
            same_group = [i for i, s in enumerate(SENSES) if s.objects == group]
            if rng.random() < 0.5:
                return refill(scene, {"reverse": not scene.reverse})
            return refill(scene, {"sense": other(rng, same_group, scene.sense)})
        choices = {
            "agent": [n for n in self.nouns("person") if n != scene.patient],
            "patient": [n for n in self.nouns(group) if n != scene.agent],
            "place": list(self.world.places),
            "time": list(TIMES),
            "agent_trait": [t for pair in GROUP_TRAITS["person"] for t in pair],
            "patient_trait": [t for pair in GROUP_TRAITS[group] for t in pair],
        }
        value = other(rng, choices[slot], getattr(scene, slot))
        return refill(scene, {slot: value})

    def opposite(self, scene: Scene, slot: str) -> Scene:
        """The scene with a value in one slot that can't be true at the same time."""
        if slot == "sense":
            return refill(scene, {"reverse": not scene.reverse})
        if not slot.endswith("_trait"):
            return self.change(scene, slot)
        group = "person" if slot == "agent_trait" else SENSES[scene.sense].objects
        trait = getattr(scene, slot)
        pair = next(pair for pair in GROUP_TRAITS[group] if trait in pair)
        return refill(scene, {slot: other(self.rng, pair, trait)})

    def filled(self, scene: Scene, slots: Sequence[str] = tuple(SLOT_WEIGHTS)) -> list[str]:
        """Those of the slots that have a value."""
        return [slot for slot in slots if getattr(scene, slot) != ""]

    def phrase(self, noun: str, trait: str, general: bool = False) -> str:
        """A noun phrase; a general one names what kind of thing the noun is, without a trait."""
        rng = self.rng
        if general and noun in self.world.kinds:
            kind = self.world.kinds[noun]
            return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
        word = rng.choice(self._synonyms[noun])
        return " ".join(["the", *([rng.choice(trait.split("/"))] if trait else []), word])

    def verb(self, scene: Scene) -> str:
        """Base form of what was done."""
        sense = SENSES[scene.sense]
        return self.rng.choice(sense.opposites if scene.reverse else sense.verbs)

    def clause(self, scene: Scene, *, negated: bool = False, general: bool = False) -> str:
        """The scene in words, without capital letter and mark."""
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
        """The scene as a sentence."""
        return sentence(self.clause(scene, negated=negated, general=general))


def similarity(first: Scene, second: Scene) -> float:
    """How alike two scenes are, from 0 to 5: five less the weight of every slot that differs."""
    lost = sum(
        weight
        for slot, weight in SLOT_WEIGHTS.items()
        if getattr(first, slot) != getattr(second, slot)
    )
    if first.sense == second.sense and first.reverse != second.reverse:
        lost += 1.0  # still about the same thing, so less than another sense
    return round(max(0.0, 5.0 - lost), 1)
