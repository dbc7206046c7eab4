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

from hypothesis import given
from hypothesis import strategies as st

from tests.laws import law
from training.data.columns import Columns, read_columns
from training.data.labels import collect_labels, encode_labels
from training.data.rows import Rows, TaskData, digest_rows, hold_out
from training.data.tasks import TASKS
from training.errors import ConfigError, DataError

# No deadline: how long an example takes depends on what else the machine does.
LAW = law(60)
# Any text a tokenizer takes: no half surrogate pairs; a NUL or a lone carriage return is no CSV.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=20)
NAME = TEXT.filter(str.strip)
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=20)
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
@given(ROWS, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_csv_is_read_as_it_was_written(
    rows: list[tuple[str, str]], line_end: str, bom: bool
) -> None:
    with file("a.csv", "\ufeff" if bom else "") as path:
        with path.open("a", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator=line_end, quoting=csv.QUOTE_ALL)
            writer.writerows([("text", "y"), *rows])
        columns = read_columns(path, ("text", "y"))
    assert list(zip(columns.values["text"], columns.values["y"], strict=True)) == rows


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
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]))
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
@given(
    st.lists(NAME, min_size=2, max_size=12).filter(lambda names: len({*map(str.strip, names)}) > 1)
)
def test_codes_lead_back_to_names(names: list[str]) -> None:
    columns = Columns(Path("a.jsonl"), len(names), {"y": names})
    try:
        labels = collect_labels(columns, "y", "single_label")
    except DataError:
        assert len(set(map(str.strip, names))) == len(names) > 10
        return
    codes = encode_labels(columns, "y", "single_label", labels)
    assert [labels[code] for code in codes] == [name.strip() for name in names]  # type: ignore[index]
    assert len(set(labels)) == len(labels)


@LAW
@given(ROWS, ROWS)
def test_equal_digests_mean_equal_rows(
    first: list[tuple[str, str]], second: list[tuple[str, str]]
) -> None:
    one, two = (Rows(list(texts), [0] * len(texts)) for texts in (first, second))
    assert (digest_rows({"train": one}) == digest_rows({"train": two})) == (first == second)
    assert digest_rows({"train": one, "validation": two}) != digest_rows({"train": one})
