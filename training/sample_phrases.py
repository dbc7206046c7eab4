"""Sentence patterns of the generated sample for tasks that need more than scenes.

Grammar, opinions, questions and pronouns, as tables that `training.sample_tasks` fills in. Written
for this project; nothing is taken from a data set.
"""

from __future__ import annotations

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
