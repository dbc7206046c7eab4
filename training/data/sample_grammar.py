"""Scenes, which are meanings, and their sentences: the grammar behind the pair tasks of the sample.

One scene has many sentences (synonyms, voice, word order), and a scene that differs in one slot has
sentences that look alike and mean something else. Tasks built on this: `training.data.sample`.

The words of the generated sample, as tables. `training.data.sample_grammar` makes sentences of them.

Synonyms stand together, separated by "/"; the first is the one that scenes are made of. Nothing
here or in the grammar is taken from a data set.

Sentence patterns of the generated sample for tasks that need more than scenes.

Grammar, opinions, questions and pronouns, as tables that `training.data.sample` fills in. Written
for this project; nothing is taken from a data set.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar


@dataclass(frozen=True)
class Sense:
    """One thing that can be done, and its opposite.

    Attributes:
        verbs: base forms that mean the same.
        opposites: base forms that mean the reverse.
        objects: the group of nouns that it can be done to.
    """

    verbs: tuple[str, ...]
    opposites: tuple[str, ...]
    objects: str


def _sense(verbs: str, opposites: str, objects: str) -> Sense:
    return Sense(tuple(verbs.split("/")), tuple(opposites.split("/")), objects)


SENSES = (
    _sense("repair/mend/fix", "break/damage/wreck", "thing"),
    _sense("buy/purchase", "sell", "thing"),
    _sense("clean/wash/scrub", "stain/soil", "thing"),
    _sense("lift/raise/hoist", "lower", "thing"),
    _sense("find/discover/locate", "lose/misplace", "thing"),
    _sense("hide/conceal", "show/display", "thing"),
    _sense("send/ship", "receive", "thing"),
    _sense("keep/retain", "discard/dump", "thing"),
    _sense("praise/applaud", "criticise/blame", "person"),
    _sense("hire/recruit", "dismiss/fire", "person"),
    _sense("help/assist/aid", "hinder/obstruct", "person"),
    _sense("trust/believe", "doubt/distrust", "person"),
    _sense("invite/welcome", "avoid/shun", "person"),
    _sense("rescue/save", "abandon/desert", "person"),
    _sense("build/construct", "demolish/destroy", "building"),
    _sense("open/unlock", "close/shut", "building"),
    _sense("enter", "leave/exit", "building"),
    _sense("start/begin/launch", "stop/halt/end", "event"),
    _sense("win", "lose", "event"),
    _sense("enjoy/like/love", "dislike/hate", "event"),
    _sense("remember/recall", "forget", "event"),
    _sense("accept/approve", "reject/refuse", "plan"),
    _sense("support/back", "oppose/resist", "plan"),
    _sense("announce/reveal", "withdraw/cancel", "plan"),
)

# base: past, participle; all other verbs are regular.
IRREGULAR = {
    "begin": ("began", "begun"),
    "break": ("broke", "broken"),
    "build": ("built", "built"),
    "buy": ("bought", "bought"),
    "cancel": ("cancelled", "cancelled"),
    "find": ("found", "found"),
    "forget": ("forgot", "forgotten"),
    "hide": ("hid", "hidden"),
    "keep": ("kept", "kept"),
    "leave": ("left", "left"),
    "lose": ("lost", "lost"),
    "scrub": ("scrubbed", "scrubbed"),
    "sell": ("sold", "sold"),
    "send": ("sent", "sent"),
    "show": ("showed", "shown"),
    "shut": ("shut", "shut"),
    "stop": ("stopped", "stopped"),
    "ship": ("shipped", "shipped"),
    "shun": ("shunned", "shunned"),
    "win": ("won", "won"),
    "withdraw": ("withdrew", "withdrawn"),
}


@dataclass(frozen=True)
class World:
    """Who and what there is, where and when. Worlds share senses but few nouns.

    Attributes:
        nouns: by group; each noun with its synonyms.
        kinds: what a noun is a case of.
        places: phrases that exclude each other.
    """

    nouns: dict[str, tuple[tuple[str, ...], ...]]
    kinds: dict[str, str]
    places: tuple[str, ...]


def _world(people: str, things: str, buildings: str, events: str, plans: str, places: str) -> World:
    nouns: dict[str, tuple[tuple[str, ...], ...]] = {}
    kinds: dict[str, str] = {}
    groups = {
        "person": people,
        "thing": things,
        "building": buildings,
        "event": events,
        "plan": plans,
    }
    for group, text in groups.items():
        entries = []
        for entry in text.split(", "):
            words, _, kind = entry.partition(":")
            entries.append(tuple(words.split("/")))
            if kind:
                kinds[entries[-1][0]] = kind
        nouns[group] = tuple(entries)
    return World(nouns, kinds, tuple(places.split(", ")))


TOWN = _world(
    people="baker:tradesman, teacher/instructor, doctor/physician, lawyer/attorney, singer/vocalist"
    ", farmer, carpenter:tradesman, nurse, plumber:tradesman, tailor:tradesman, journalist/reporter"
    ", gardener, judge, butcher:tradesman, librarian, policeman/constable, mayor:politician"
    ", senator:politician, violinist:musician, pianist:musician, chemist:scientist"
    ", biologist:scientist, shopkeeper, barber, painter:artist, sculptor:artist, author/writer"
    ", tenant, neighbour, clerk",
    things="car/automobile:vehicle, bicycle/bike:vehicle, van:vehicle, tractor:vehicle"
    ", sofa/couch:piece of furniture, wardrobe:piece of furniture, desk:piece of furniture"
    ", cupboard:piece of furniture, bucket/pail:container, basket:container, jar:container"
    ", guitar:instrument, piano:instrument, trumpet:instrument, hammer:tool, saw:tool, ladder:tool"
    ", spanner/wrench:tool, necklace:piece of jewellery, ring:piece of jewellery, carpet/rug"
    ", camera:device, radio:device, telephone:device, painting/picture, statue, coat/jacket:garment"
    ", scarf:garment, skirt:garment, parcel/package",
    buildings="school, hospital/clinic, bakery/bake shop, library, theatre/playhouse, museum"
    ", factory/plant, garage, cottage, church/chapel, stadium/arena, hotel/inn, warehouse"
    ", supermarket",
    events="concert, race, meeting/conference, debate, festival, trial/hearing, football match"
    ", election, party/celebration, lecture/talk, chess game, auction, parade/procession",
    plans="proposal/suggestion, tax, contract/agreement, new timetable/new schedule, budget"
    ", street closure, rent increase/rent rise, merger, building permit, refund",
    places="in the market, near the bridge, behind the church, at the station, beside the river"
    ", in the village, outside the town hall, on the main square, in the park, next to the pharmacy"
    ", at the crossroads, in the suburbs",
)

SEA = _world(
    people="sailor/mariner, captain/skipper, diver, fisherman/angler, pirate/buccaneer"
    ", harbour pilot, shipwright:craftsman, sailmaker:craftsman, cook/galley chef"
    ", lighthouse keeper, smuggler:criminal, stowaway, navigator:officer, boatswain:officer"
    ", marine geologist:scientist, oceanographer:scientist, ferryman, passenger/traveller"
    ", whaler, castaway, deckhand, admiral:officer",
    things="anchor, rope/line, lantern/lamp:light, barrel/cask:container, crate/chest:container"
    ", compass:instrument, telescope/spyglass:instrument, sextant:instrument, rowing boat:vessel"
    ", canoe:vessel, raft:vessel, net:piece of gear, harpoon:weapon, cutlass:weapon, flag/ensign"
    ", chart/map, rudder, lifebelt:piece of gear, oar/paddle, telegraph:device, pump:device",
    buildings="lighthouse, boathouse, cannery/fish factory, dockyard/shipyard, customs house"
    ", sea wall, pier/jetty, fort/fortress, tavern/pub",
    events="regatta/boat race, voyage/crossing, mutiny, salvage operation, diving course"
    ", naval exercise/naval drill, captain's dinner, fishing season",
    plans="new route/new course, surrender, fishing quota, harbour fee/port charge, salvage claim"
    ", shore leave, treaty/pact",
    places="on the deck, below the waterline, in the cabin, near the reef, at the quay"
    ", off the coast, on the island, in the lagoon, beside the mast, at the river mouth",
)

TIMES = (
    *("on Monday", "on Tuesday", "on Friday", "in April", "in November", "last winter"),
    *("last summer", "before dawn", "at noon", "after lunch", "at midnight", "two years ago"),
    *("this morning", "yesterday evening"),
)

# Pairs that exclude each other, with synonyms.
PERSON_TRAITS = (
    ("young/youthful", "old/elderly"),
    ("tall", "short"),
    ("rich/wealthy", "poor/penniless"),
    ("friendly/kind", "rude/unfriendly"),
    ("famous/well-known", "unknown"),
    ("experienced/seasoned", "untrained"),
)
THING_TRAITS = (
    ("big/large/huge", "small/little/tiny"),
    ("new", "old/ancient"),
    ("expensive/costly", "cheap/inexpensive"),
    ("beautiful/lovely", "ugly"),
    ("red", "green"),
    ("white", "black"),
)
GROUP_TRAITS = {
    "person": PERSON_TRAITS,
    "thing": THING_TRAITS,
    "building": THING_TRAITS,
    "event": (("long/lengthy", "short/brief"), ("important/major", "minor"), ("annual", "first")),
    "plan": (("controversial/disputed", "popular"), ("important/major", "minor")),
}

WOMEN = (
    *("Agnes", "Brenda", "Clara", "Dora", "Edith", "Flora"),
    *("Greta", "Hazel", "Ingrid", "Judith", "Karla", "Lena"),
)
MEN = (
    *("Albert", "Bruno", "Conrad", "Dennis", "Edgar", "Felix"),
    *("Gordon", "Hugo", "Igor", "Julian", "Kurt", "Leonard"),
)

# Acceptability. A "[good~bad~bad]" is a place where a sentence can go wrong; an unacceptable
# sentence goes wrong at exactly one. Fields: m, f names; p, q persons; ps plural; t, u things;
# ts plural; a adjective; w place; verbs in base b, third person s, past d, participle n, ing g.
GRAMMAR_PATTERNS = (
    "The {p} [has~have~is] {n} the {t} {w}.",
    "The {ps} [have~has] {n} [the {t}~{t} the] {w}.",
    "The {a} {p} [{s}~{b}~{g}] the {t} every day.",
    "The {ps} [{b}~{s}~{g}] the {a} {t} every week.",
    "[The {a} {p}~The {p} {a}~{a} the {p}] will [{b}~{d}~{s}~{g}] the {t}.",
    "[Did~Does~Was~Had] the {p} {b} the {t} yesterday?",
    "What [did the {p}~the {p} did] {b} {w}?",
    "The {t} [was~were~has] {n} by the {p} {w}.",
    "The {ts} [were~was] [{n}~{b}~{s}] by the {a} {p}.",
    "{f} [blamed herself~blamed himself~blamed themselves] for the loss of the {t}.",
    "{m} [saw himself~saw herself~himself saw] in the mirror {w}.",
    "The {p} who {d} the {t} [is~are~be] very {a}.",
    "The {ps} who {d} the {t} [are~is~being] [very {a}~{a} very].",
    "{f} wants [to {b}~{b}~to {d}] the {a} {t}.",
    "{m} enjoys [{g}~{b}~to {g}] [the {t}~the {t} it] {w}.",
    "The {p} must [{b}~to {b}~{n}] the {t} before Friday.",
    "There [is~are~has] a {t} {w} that nobody wants to {b}.",
    "There [are~is] [many~much] {ts} {w}.",
    "{f} is [taller than~taller as~more taller than~tall than] the {p}.",
    "This is the [oldest~most oldest~older of] {t} that {m} ever {d}.",
    "{m} placed [the {t}~] on the {u} {w}.",
    "{f} [gave~gave to] the {p} a {a} {t}.",
    "If {m} {s} the {t}, the {p} [will be~was being~be] angry.",
    "{f} said [that the {p}~the {p} that~that] had {n} the {t}.",
    "[Nobody has~Nobody have~Nobody having] {n} the {t} {w}.",
    "Neither {m} nor {f} [has~have been] {n} the {t}.",
    "The {p} asked [whether~that whether~if whether] {m} had {n} the {t}.",
    "[Every~All~Many] {p} {w} has {n} a {t}.",
    "These {ts} [belong~belongs~are belong] to the {a} {p}.",
    "That {t} [belongs to~belongs~belong to] {m}.",
    "{m} and {f} [like~likes] [each other~each others~himself] very much.",
    "The {p} [seems to~seems] have {n} the {a} {t}.",
    "The {t} on the {u} [looks~look~looking] {a}.",
    "{f} [has lived~lives~is living] {w} since 1990, and she owns the {t}.",
    "It is the {p} [that~what~which he] {d} the {t}.",
    "The {p} left [without {g}~without {b}~without to {b}] the {t}.",
    "{m} let the {p} [{b}~to {b}~{s}~{n}] the {t}.",
    "[Whose {t}~Who {t}~Whose the {t}] did {f} {b} {w}?",
    "The more {ts} {m} {s}, [the happier~happier~the happy] the {p} becomes.",
    "{f} hardly [ever~never~not] {s} the {t}.",
)
VERB_FORMS = tuple(
    tuple(row.split())
    for row in (
        "repair repairs repaired repaired repairing",
        "hide hides hid hidden hiding",
        "draw draws drew drawn drawing",
        "break breaks broke broken breaking",
        "carry carries carried carried carrying",
        "steal steals stole stolen stealing",
        "choose chooses chose chosen choosing",
        "shake shakes shook shaken shaking",
        "forget forgets forgot forgotten forgetting",
        "take takes took taken taking",
        "throw throws threw thrown throwing",
        "examine examines examined examined examining",
        "drop drops dropped dropped dropping",
        "paint paints painted painted painting",
        "borrow borrows borrowed borrowed borrowing",
    )
)
ADJECTIVES = ("heavy", "dirty", "small", "quiet", "strange", "tall", "nice", "famous", "clean")

# Opinions. {g} a phrase with the wanted feeling, {o} one with the opposite feeling, {x} an aspect,
# {k} a kind of film. "!" marks patterns that turn the feeling of {g} round.
OPINION_PATTERNS = (
    "the {x} is {g} from the first scene to the last",
    "a {g} {k} with {x} that stays {g2}",
    "despite its {o} {x} , this {k} turns out to be {g}",
    "the {k} begins {o} but ends up {g} and {g2}",
    "i found the {x} of this {k} thoroughly {g}",
    "rarely has a {k} been this {g}",
    "thanks to {g} {x} , the whole {k} feels {g2}",
    "what a {g} {k} , carried by its {g2} {x}",
    "some will call it {o} , yet the {k} is {g} where it counts",
    "! the {k} is never {g} and its {x} is anything but {g2}",
    "! nothing about the {x} of this {k} could be called {g}",
    "! it wants to be a {g} {k} with {g2} {x} , and it fails",
    "! far from {g} , the {k} leaves its {x} to do the work",
    "its {x} makes this {k} {g} , never {o}",
    "{g} {x} , {g2} ending : that is this {k}",
)
FEELINGS = (
    (
        *("dull", "clumsy", "tedious", "lifeless", "annoying", "predictable", "shallow", "sloppy"),
        *("painful", "bland", "pointless", "awful", "forgettable", "confused", "stale", "dreary"),
        *("incoherent", "unfunny", "grating", "hollow"),
    ),
    (
        *("moving", "brilliant", "delightful", "gripping", "charming", "inventive", "witty"),
        *("graceful", "touching", "superb", "thrilling", "wonderful", "memorable", "clever"),
        *("fresh", "radiant", "absorbing", "hilarious", "warm", "rich"),
    ),
)
ASPECTS = (
    *("dialogue", "acting", "camera work", "music", "editing", "plot", "humour", "pacing"),
    *("set design", "lighting", "narration", "choreography"),
)
KINDS = (
    *("comedy", "western", "drama", "thriller", "documentary", "musical", "romance", "road movie"),
    *("heist film", "costume drama", "satire", "ghost story"),
)

# Questions. Every row of templates asks the same thing; {x} is what is to be done.
QUESTION_TEMPLATES = (
    ("How do I {x}?", "How can I {x}?", "What is the best way to {x}?", "How should one {x}?"),
    ("Why should I {x}?", "What are good reasons to {x}?", "Why would anyone {x}?"),
    ("How long does it take to {x}?", "How much time do I need to {x}?"),
    ("How much does it cost to {x}?", "What do people pay to {x}?", "Is it expensive to {x}?"),
    ("Where can I {x}?", "Which place is best to {x}?", "Where do people {x}?"),
    ("Is it dangerous to {x}?", "What are the risks if I {x}?", "Can it go wrong to {x}?"),
)
ACTIONS = (
    ("learn/study", "Frisian/the Frisian language", "Basque", "bookbinding", "sheep shearing"),
    ("repair/fix/mend", "a wooden accordion", "a loom/a weaving loom", "a barometer", "a sundial"),
    ("sell/get rid of", "an antique globe/an old globe", "a used canoe", "a beehive", "a tandem"),
    ("clean/wash", "a felt hat", "a tapestry/a wall tapestry", "a chandelier", "a saxophone"),
    ("build/make", "a dry stone wall", "a clay oven/a loam oven", "a kite", "a rain barrel"),
    ("grow/cultivate", "saffron", "artichokes", "chicory/endive", "oyster mushrooms"),
    ("buy/purchase", "a spinning wheel", "a goat/a dairy goat", "a telescope", "a fountain pen"),
    ("move/transport", "a grand piano", "an aquarium/a fish tank", "a marble bust", "a safe"),
)
QUALIFIERS = (
    *("", "as a beginner/without experience", "in winter/during the winter", "in a small flat"),
    *("without much money/on a small budget", "with two children", "in the mountains"),
    *("in a foreign country/abroad", "within a month/in less than a month", "after an injury"),
)

# Pronouns: what links two people, what is true of the first, what is true of the second.
PEOPLE_SCHEMAS = (
    ("thanked", "was glad to have the present", "had brought a present"),
    ("apologised to", "had behaved badly", "had been treated badly"),
    ("hired", "needed an assistant", "was looking for a job"),
    ("paid", "owed a month of rent", "had finished painting the kitchen"),
    ("visited", "had found the address", "was lying ill in bed"),
    ("outran", "had trained for months", "was limping"),
    ("comforted", "is a caring friend", "was in tears"),
    ("questioned", "was curious about the secret", "knew the secret"),
    ("envied", "owned almost nothing", "owned a castle"),
    ("carried", "was strong enough", "had twisted an ankle"),
    ("lent money to", "had plenty to spare", "was broke"),
    ("borrowed an umbrella from", "had forgotten to bring one", "had brought two"),
    ("beat", "had studied every opening", "made a blunder in the endgame"),
    ("taught", "was an expert", "was a beginner"),
    ("followed", "did not know the way", "knew the way"),
    ("avoided", "did not want to be seen", "told boring stories"),
)
# Things: what the first does to the second, what explains it in the first, and in the second.
THING_SCHEMAS = (
    ("could not pass under", "was much too high", "was much too low"),
    ("would not go through", "was too wide", "was too narrow"),
    ("did not fit onto", "was too long", "was too short"),
    ("scratched", "was rough", "was delicate"),
    ("crushed", "was made of lead", "was made of paper"),
    ("slid off", "was slippery", "was tilted"),
    ("could not be tied to", "was too slack", "had no hooks"),
    ("stained", "was covered in ink", "was made of white silk"),
)
SCHEMA_THINGS = (
    *("cart", "cupboard", "pipe", "plank", "crate", "table", "shelf", "cable", "board", "frame"),
    *("tray", "ladder", "barrel", "panel"),
)


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
