"""Laws of rows: files are read as written, splits are partitions, subsets nest, codes are names."""

from __future__ import annotations

import csv
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from training.data.files.columns import Columns
from training.data.files.reader import read_columns
from training.data.files.spelling import clean
from training.data.labels.forms import LabelForm
from training.data.labels.label_column import collect_labels, encode_labels
from training.data.labels.lists import ListForm
from training.data.rows import Rows, TaskData, digest_rows, hold_out
from training.data.tasks import TASKS
from training.errors import ConfigError, DataError

pytestmark = pytest.mark.law

# No deadline: how long an example takes depends on what else the machine does.
LAW = law(60)
# Any text a tokenizer takes: no half surrogate pairs; a NUL or a lone carriage return is no CSV.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
NAME = TEXT.filter(clean)
# A row without any character is left out.
ROW = st.tuples(TEXT, TEXT).filter(any)
ROWS = st.lists(ROW, min_size=1, max_size=20)
# Few different texts, so that repeats happen.
LABELLED = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=1, max_size=80)


@contextmanager
def file(name: str, content: str) -> Iterator[Path]:
    """A file that is gone after the example."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(content, encoding="utf-8", newline="")
        yield path


def as_rows(pairs: list[tuple[int, int]]) -> Rows:
    return Rows([(f"text {number}",) for number, _ in pairs], [label for _, label in pairs])


@LAW
@given(
    ROWS,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_delimited_text_is_read_as_it_was_written(
    rows: list[tuple[str, str]], separator: str, line_end: str, quoting: Any, encoding: str
) -> None:
    with file("a.csv", "") as path:
        with path.open("w", encoding=encoding, newline="") as out:
            options: Any = {"delimiter": separator, "lineterminator": line_end, "quoting": quoting}
            csv.writer(out, **options).writerows([("text", "y"), *rows])
        columns = read_columns(path, ("text", "y"))
    assert list(zip(columns.values["text"], columns.values["y"], strict=True)) == rows
    assert columns.warnings == ()


@LAW
@given(ROWS, st.sampled_from([",", ";", "\t", "|"]), st.booleans())
def test_delimited_text_is_read_as_pandas_wrote_it(
    rows: list[tuple[str, str]], separator: str, index: bool
) -> None:
    with file("a.tsv", "") as path:
        frame = pd.DataFrame(rows, columns=["text", "y"])
        frame.to_csv(path, sep=separator, index=index, lineterminator="\n")
        columns = read_columns(path, ("text", "y"))
    assert list(zip(columns.values["text"], columns.values["y"], strict=True)) == rows


@LAW
@given(st.lists(st.lists(NAME, max_size=4), min_size=2, max_size=12))
def test_lists_are_the_same_in_every_form(rows: list[list[str]]) -> None:
    """Lists with types, lists as text, and vectors give the same labels."""
    frame = pd.DataFrame({"text": [f"text {n}" for n in range(len(rows))], "y": rows})
    expected = encoded(Columns(Path("a.jsonl"), len(rows), {"y": rows}), ListForm())
    with file("a.csv", "") as path:
        frame.to_csv(path, index=False)
        columns = read_columns(path, ("text", "y"))
    assert encoded(columns, ListForm(is_literal=True)) == expected


def encoded(columns: Columns, lists: ListForm) -> Any:
    """The labels of a multi-label column and its codes, or the error's sentence."""
    form = LabelForm("multi_label", lists)
    try:
        labels = collect_labels(columns, "y", form, warn=lambda _: None)
    except DataError as error:
        return error.problem
    return labels, encode_labels(columns, "y", form, labels)


@LAW
@given(ROWS)
def test_jsonl_is_read_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    lines = "".join(
        json.dumps({"y": y, "text": text}, ensure_ascii=False) + "\n" for text, y in rows
    )
    with file("a.jsonl", lines) as path:
        columns = read_columns(path, ("text", "y"))
    assert list(zip(columns.values["text"], columns.values["y"], strict=True)) == rows


@LAW
@given(
    st.binary(max_size=200),
    st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".arrow"]),
)
def test_a_broken_file_gives_rows_or_a_data_error(content: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        for start in (b"", b"text,y\n", b'{"text": "a", "y": 1}\n'):
            path.write_bytes(start + content)
            try:
                columns = read_columns(path, ("text", "y"))
            except DataError:
                continue
            assert {len(values) for values in columns.values.values()} == {columns.num_rows}


@LAW
@given(LABELLED, st.floats(0.01, 0.99), st.integers(0, 5))
def test_holding_out_is_a_partition_by_text(
    pairs: list[tuple[int, int]], share: float, seed: int
) -> None:
    rows = as_rows(pairs)
    kept, held = hold_out(rows, "single_label", share, seed)
    parts = [Counter(zip(part.texts, part.labels, strict=True)) for part in (kept, held)]
    assert parts[0] + parts[1] == Counter(zip(rows.texts, rows.labels, strict=True))
    assert not set(kept.texts) & set(held.texts)
    # The stratum of a text is its first row's label; each keeps one text, and gives one if it can.
    first = dict(zip(rows.texts[::-1], rows.labels[::-1], strict=True))
    for label, num_texts in Counter(map(str, first.values())).items():
        num_held = sum(str(first[texts]) == label for texts in set(held.texts))
        assert num_held == min(num_texts - 1, max(1, round(share * num_texts)))


@LAW
@given(LABELLED, st.integers(0, 5), st.data())
def test_subsets_nest_and_hold_every_label(
    pairs: list[tuple[int, int]], seed: int, data: Any
) -> None:
    # Numbered, so that every row is another.
    train = Rows([(f"text {n}",) for n in range(len(pairs))], [label for _, label in pairs])
    whole = TaskData(TASKS["mnli"], "folder", "", "", train, {})
    fewest = len(set(train.labels))
    large = data.draw(st.integers(fewest, len(train)))
    small = data.draw(st.integers(fewest, large))
    subsets = [whole.subset(size, seed).train for size in (small, large)]
    assert [len(subset) for subset in subsets] == [small, large]
    assert set(subsets[0].texts) <= set(subsets[1].texts) <= set(train.texts)
    assert set(subsets[0].labels) == set(train.labels)
    label_of = dict(zip(train.texts, train.labels, strict=True))
    for texts, label in zip(subsets[0].texts, subsets[0].labels, strict=True):
        assert label_of[texts] == label


@LAW
@given(st.integers(-5, 50))
def test_a_subset_has_the_size_asked_for_or_none(size: int) -> None:
    whole = TaskData(TASKS["sst2"], "folder", "", "", as_rows([(n, n % 2) for n in range(20)]), {})
    try:
        assert len(whole.subset(size, 0).train) == size
    except ConfigError:
        assert not 2 <= size <= 20


@LAW
@given(st.lists(NAME, min_size=2, max_size=12).filter(lambda names: len({*map(clean, names)}) > 1))
def test_codes_lead_back_to_names(names: list[str]) -> None:
    columns = Columns(Path("a.jsonl"), len(names), {"y": names})
    single = LabelForm("single_label")
    try:
        labels = collect_labels(columns, "y", single, warn=lambda _: None)
    except DataError:
        assert len(set(map(clean, names))) == len(names) > 10
        return
    codes = encode_labels(columns, "y", single, labels)
    assert [labels[code] for code in codes] == [clean(name) for name in names]  # type: ignore[index]
    assert len(set(labels)) == len(labels)


@LAW
@given(ROWS, ROWS)
def test_equal_digests_mean_equal_rows(
    first: list[tuple[str, str]], second: list[tuple[str, str]]
) -> None:
    one, two = (Rows(list(texts), [0] * len(texts)) for texts in (first, second))
    assert (digest_rows({"train": one}) == digest_rows({"train": two})) == (first == second)
    assert digest_rows({"train": one, "validation": two}) != digest_rows({"train": one})
