"""The generated sample is the same everywhere, never repeats a row, and can be learned."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import SGDClassifier
from sklearn.pipeline import make_pipeline

from training.data.rows import Rows, digest_rows
from training.data.sample import TRAIN_ROWS, VALIDATION_ROWS, sample_splits
from training.data.tasks import TASKS

ROOT = Path(__file__).parents[4]
PAIR_TASKS = ("mrpc", "qqp", "mnli", "qnli", "rte", "wnli")


@pytest.fixture(scope="module")
def sample() -> dict[str, dict[str, Rows]]:
    """All rows of all tasks."""
    return {name: sample_splits(task) for name, task in TASKS.items()}


def digests(sample: dict[str, dict[str, Rows]]) -> str:
    return " ".join(digest_rows(splits)[:8] for splits in sample.values())


def test_every_split_has_its_size(sample: dict[str, dict[str, Rows]]) -> None:
    for name, splits in sample.items():
        task = TASKS[name]
        assert tuple(splits) == (task.train_split, *task.validation_splits)
        for split, rows in splits.items():
            assert len(rows) == (TRAIN_ROWS if split == "train" else VALIDATION_ROWS)


def test_rows_have_the_shape_of_the_task(sample: dict[str, dict[str, Rows]]) -> None:
    for name, splits in sample.items():
        task = TASKS[name]
        for rows in splits.values():
            assert {len(texts) for texts in rows.texts} == {len(task.text_fields)}
            assert all(text.strip() == text != "" for texts in rows.texts for text in texts)
            if task.kind == "regression":
                assert all(isinstance(label, float) and 0 <= label <= 5 for label in rows.labels)
            else:
                counts = Counter(rows.labels)
                assert set(counts) == set(range(len(task.labels)))
                assert max(counts.values()) - min(counts.values()) <= 1


def test_no_placeholder_is_left(sample: dict[str, dict[str, Rows]]) -> None:
    for splits in sample.values():
        for rows in splits.values():
            for text in (text for texts in rows.texts for text in texts):
                assert not set(text) & set("{}[]~/_|"), text
                assert "  " not in text, text


def test_no_row_occurs_twice(sample: dict[str, dict[str, Rows]]) -> None:
    for splits in sample.values():
        rows = [
            tuple(text.casefold() for text in texts)
            for part in splits.values()
            for texts in part.texts
        ]
        assert len(set(rows)) == len(rows)
        assert not any(len(set(texts)) < len(texts) for texts in rows)


def test_the_rows_are_the_recorded_ones(sample: dict[str, dict[str, Rows]]) -> None:
    """Results on the sample compare only while its rows stay; a change here goes in CHANGELOG."""
    assert hashlib.sha256(digests(sample).encode()).hexdigest()[:16] == "bb626d3e724bd7fc"


def test_the_vocabulary_is_varied(sample: dict[str, dict[str, Rows]]) -> None:
    words = {
        word.strip(".,?;").casefold()
        for splits in sample.values()
        for rows in splits.values()
        for texts in rows.texts
        for text in texts
        for word in text.split()
    }
    assert len(words) > 600


def test_mismatched_rows_are_about_other_things(sample: dict[str, dict[str, Rows]]) -> None:
    def words(split: str) -> set[str]:
        rows = sample["mnli"][split]
        return {word for texts in rows.texts for word in " ".join(texts).split()}

    train, matched, mismatched = map(
        words, ("train", "validation_matched", "validation_mismatched")
    )
    assert not matched - train
    assert {"lighthouse", "anchor", "sailor"} <= mismatched - train


def accuracy(splits: dict[str, Rows], field: int, length: int) -> float:
    """Return the accuracy of word n-grams of one text alone on the first validation split."""
    train, validation = list(splits.values())[:2]
    classifier = make_pipeline(
        CountVectorizer(ngram_range=(1, length), token_pattern=r"\S+"),
        SGDClassifier(loss="log_loss", random_state=0),
    )
    classifier.fit([texts[field] for texts in train.texts], train.labels)
    return float(classifier.score([texts[field] for texts in validation.texts], validation.labels))


@pytest.mark.parametrize(("name", "length"), [("cola", 3), ("sst2", 2)])
def test_single_texts_can_be_learned(
    name: str, length: int, sample: dict[str, dict[str, Rows]]
) -> None:
    assert accuracy(sample[name], 0, length) > 0.8


@pytest.mark.parametrize("name", PAIR_TASKS)
def test_one_text_of_a_pair_gives_little_away(
    name: str, sample: dict[str, dict[str, Rows]]
) -> None:
    chance = 1 / len(TASKS[name].labels)
    for field in (0, 1):
        assert accuracy(sample[name], field, 2) < chance + 0.15


def overlap(texts: tuple[str, ...]) -> float:
    first, second = (set(text.casefold().strip(".?").split()) for text in texts)
    return len(first & second) / len(first | second)


def test_similar_texts_share_more_words(sample: dict[str, dict[str, Rows]]) -> None:
    rows = sample["stsb"]["train"]
    correlation = spearmanr([overlap(texts) for texts in rows.texts], rows.labels).statistic
    assert 0.4 < correlation < 0.98
    assert np.percentile(rows.labels, 20) < 2.5 < np.percentile(rows.labels, 80)


@pytest.mark.parametrize(("name", "alike"), [("mrpc", 1), ("qqp", 1)])
def test_shared_words_alone_do_not_solve_a_paraphrase_task(
    name: str, alike: int, sample: dict[str, dict[str, Rows]]
) -> None:
    rows = sample[name]["train"]
    values = np.array([overlap(texts) for texts in rows.texts])
    same = np.array(rows.labels) == alike
    best = max(float(np.mean((values > cut) == same)) for cut in np.linspace(0, 1, 50))
    assert best < 0.85


def test_no_text_of_the_sample_is_in_glue(
    sample: dict[str, dict[str, Rows]], glue_dir: Path
) -> None:
    def plain(text: str) -> str:
        return " ".join(text.casefold().strip(" .?!").split())

    generated = {
        plain(text)
        for splits in sample.values()
        for rows in splits.values()
        for texts in rows.texts
        for text in texts
    }
    for path in sorted(glue_dir.glob("*/*.parquet")):
        table = pq.read_table(path)
        fields = [name for name in table.column_names if name not in ("label", "idx")]
        found = generated & {plain(text) for name in fields for text in table[name].to_pylist()}
        assert not found, f"{len(found)} generated texts are in {path.parent.name}/{path.name}"
