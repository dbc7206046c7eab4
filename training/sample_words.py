"""The words of the generated sample, as tables. `training.sample_scenes` makes sentences of them.

Synonyms stand together, separated by "/"; the first is the one that scenes are made of. Nothing
here or in the grammar is taken from a data set.
"""

from __future__ import annotations

from dataclasses import dataclass


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
