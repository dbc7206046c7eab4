"""Says what is doubtful about the labels of train rows: one sentence each, with the remedy.

Nothing is refused here, and nothing changes: `training.data.labels.label_column` reads the labels
and hands the sentences to the user, because a wrongly read label column still gives good scores.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from training.data.files.columns import Columns
from training.data.files.spelling import clean, look_alikes
from training.data.labels.cells import parse_number, resembles_number
from training.data.labels.forms import LabelForm
from training.data.labels.lists import SEPARATOR
from training.errors import listing

# Programs write missing values so, and spreadsheets errors; a label can have such a name, too.
_MISSING = re.compile(
    r"nan|<?na>?|#?n/?a|none|[<(]?null[>)]?|nil|nat|#[a-z0/]+[!?]|\\n|tbd|missing|undefined"
    r"|(un|not )label?led",
    re.IGNORECASE,
)
_SIGNS = re.compile(r"[-?.*_\u2013\u2014]+")  # such a name is a missing value beside real names
# Brackets or quotes around a whole name, or a spreadsheet's marks before it: ="007", '007.
_CODE = re.compile(
    r"\[.*[,'\"].*\]|\(.*[,'\"].*\)|\{.*[:,'\"].*\}|\w[\w.]*\(.*\)|(?P<quote>['\"]).*(?P=quote)"
    r"|[='].+|[\u201c\u201e\u00ab].+[\u201c\u201d\u00bb]|__label__.+",
    re.DOTALL,
)
_BITS = re.compile("[01]{3,}")


def find_doubts(
    columns: Columns,
    column: str,
    form: LabelForm,
    rows: Sequence[Sequence[str]],
    stated: Sequence[str],
) -> Iterator[str]:
    """Yield a sentence for each doubt about a label column.

    Args:
        columns: the train rows.
        column: their label column.
        form: its form.
        rows: the names of each row's labels.
        stated: the names that a data set or a form states, of which some may not occur.
    """
    counts = Counter(name for names in rows for name in names)
    where = f"{columns.name}, column {column!r}"
    for doubt in (
        _merged(columns, column, form),
        *_doubtful_names(counts),
        *((_one_each(rows), _joined(counts)) if form.kind == "multi_label" else ()),
    ):
        if doubt:
            yield f"{where}: {doubt}"
    if set(counts) < set(stated):
        absent = [name for name in stated if name not in counts]
        yield f"{where}: no row has the label {listing(absent)}, so it can't be learnt or answered"
    once = sorted(name for name, count in counts.items() if count == 1)
    if once:
        row = 1 + next(number for number, names in enumerate(rows) if once[0] in names)
        occur = "occurs" if len(once) == 1 else "occur"
        yield (
            f"{columns.where(column, row)}: {len(once)} of {len(counts)} labels "
            f"{occur} in one row only and can't be evaluated: {listing(once)}"
        )


def _merged(columns: Columns, column: str, form: LabelForm) -> str:
    """Return a sentence on names that are spelled in ways that look the same, or ""."""
    spellings = defaultdict(set)
    for value in columns.values[column]:
        parts = form.lists.split(value) if form.lists else [value]
        for part in parts or ():
            if isinstance(part, str) and not (part.isascii() and part.isprintable()):
                spellings[clean(part)].add(part.strip())
            elif isinstance(part, str) and (name := part.strip()) in spellings:
                spellings[name].add(name)
    merged = {name: found for name, found in spellings.items() if found - {name}}
    if not merged:
        return ""
    shown = (f"{name!r} (written {listing(sorted(map(ascii, merged[name])))})" for name in merged)
    return f"spellings that look the same were read as one label: {listing(shown)}"


def _doubtful_names(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each oddity of the names."""
    if alike := look_alikes(counts):
        shown = (
            " and ".join(f"{name!r} ({counts[name]:,} rows)" for name in group) for group in alike
        )
        yield (
            f"labels that look alike were kept apart: {listing(shown)}; write them in one way if "
            "they mean the same"
        )
    if missing := [
        *filter(_MISSING.fullmatch, counts),
        *_unlabelled(counts),
        *_signs(counts),
    ]:
        yield (
            f"{listing(map(repr, missing))} may stand for a missing label; drop these rows unless "
            "it is a label"
        )
    if code := list(filter(_CODE.fullmatch, counts)):
        yield (
            "labels with a program's brackets, quotes or signs were taken for names: "
            f"{listing(map(repr, code))}; write names alone, and several labels of a row joined by "
            f"{SEPARATOR!r}"
        )
    if all(map(_BITS.fullmatch, counts)) and len(set(map(len, counts))) == 1:
        yield (
            f"labels that look like vectors of 0 and 1 were taken for names: "
            f"{listing(map(repr, counts))}; write vectors with commas, like 0,1,1"
        )
    numbers = [name for name in counts if resembles_number(name)]
    plain = [parse_number(name) for name in numbers]
    if 2 * len(numbers) > len(counts) and any(n is None or not n.is_integer() for n in plain):
        yield (
            f"labels that look like numbers were taken for names: {listing(map(repr, numbers))}; "
            "to predict numbers write them plainly, like 12.5, and use --kind regression"
        )


def _unlabelled(counts: Mapping[str, int]) -> list[str]:
    """Return the name -1 if the others are codes from 0 on, of which -1 is none."""
    codes = {str(code) for code in range(len(counts) - 1)}
    return ["-1"] if len(codes) > 1 and set(counts) == {"-1", *codes} else []


def _signs(counts: Mapping[str, int]) -> list[str]:
    """Return the names that are signs alone, if all others have letters or digits."""
    signs = list(filter(_SIGNS.fullmatch, counts))
    are_names = all(any(map(str.isalnum, name)) for name in counts if name not in signs)
    return signs if are_names and len(signs) < len(counts) else []


def _joined(counts: Mapping[str, int]) -> str:
    """Return a sentence on items of lists that join other items, or ""."""
    joined = [
        name
        for name in counts
        for sign in ",;|"
        if sign in name and {*map(clean, name.split(sign))} <= counts.keys()
    ]
    if not joined:
        return ""
    return (
        f"{listing(map(repr, joined))} was read as one name, though its parts are labels of other "
        "rows; write each label as an item of its own"
    )


def _one_each(rows: Sequence[Sequence[str]]) -> str:
    """Return a sentence on lists of which each holds one label, or ""."""
    if any(len(names) != 1 for names in rows):
        return ""
    return (
        "each row has exactly one label, though rows may have several; if no row ever does, use "
        "--kind single_label"
    )
