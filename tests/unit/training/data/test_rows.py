"""Digests depend on rows alone; subsets and held-out rows are drawn by the seed."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import pytest

from deltas.manifest import TaskKind
from training.data.rows import Labels, Rows, TaskData, digest_rows, hold_out
from training.data.tasks import TASKS
from training.errors import ConfigError


def make(labels: list[int], note: str = "") -> TaskData:
    train = Rows([(f"text {n}",) for n in range(len(labels))], list(labels))
    validation = {"validation": Rows([("dev",)], [0])}
    digest = digest_rows({"train": train, **validation})
    return TaskData(TASKS["sst2"], "folder", note, digest, train, validation)


def test_the_digest_is_a_promise() -> None:
    """Stored in every delta's manifest: it may not change between releases."""
    rows = Rows([("höhe", "b"), ("c", "")], [1, 0])
    written = b'train 2\n[["h\\u00f6he","b"],1]\n[["c",""],0]\n'
    assert digest_rows({"train": rows}) == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize(
    "other",
    [
        {"train": Rows([("a", "b"), ("c", "x")], [1, 0])},
        {"train": Rows([("a", "b"), ("c", "d")], [1, 1])},
        {"train": Rows([("c", "d"), ("a", "b")], [0, 1])},
        {"train": Rows([("ab", ""), ("c", "d")], [1, 0])},
        {"validation": Rows([("a", "b"), ("c", "d")], [1, 0])},
        {"train": Rows([("a", "b")], [1]), "validation": Rows([("c", "d")], [0])},
    ],
    ids=["text", "label", "order", "field border", "split name", "split border"],
)
def test_the_digest_sees_every_change(other: dict[str, Rows]) -> None:
    assert digest_rows(other) != digest_rows({"train": Rows([("a", "b"), ("c", "d")], [1, 0])})


def test_take_keeps_the_order_of_the_positions() -> None:
    taken = make([0, 1, 0, 1]).train.take([3, 0])
    assert taken == Rows([("text 3",), ("text 0",)], [1, 0])
    assert len(taken) == 2


def test_a_subset_is_drawn_by_its_seed() -> None:
    data = make([n % 2 for n in range(200)])
    assert data.subset(50, 1) == data.subset(50, 1)
    assert data.subset(50, 1).train != data.subset(50, 2).train
    assert len(data.subset(50, 1).train) == 50


def test_a_subset_has_a_note_and_leaves_validation_alone() -> None:
    data = make([0, 1] * 1000, note="sample of the GLUE train set: 2,000 of 67,349 rows")
    small = data.subset(100, 7)
    assert small.note == (
        "sample of the GLUE train set: 2,000 of 67,349 rows; "
        "100 of 2,000 train rows drawn with seed 7"
    )
    assert small.validation == data.validation
    assert small.digest == digest_rows({"train": small.train, **small.validation}) != data.digest


def test_smaller_subsets_are_part_of_larger_ones() -> None:
    data = make([n % 2 for n in range(300)])
    sizes = [set(data.subset(size, 3).train.texts) for size in (10, 40, 160, 300)]
    assert all(small < large for small, large in pairwise(sizes))


def test_every_label_is_in_the_smallest_subset() -> None:
    data = make([0] * 500 + [1])
    for seed in range(20):
        assert Counter(data.subset(2, seed).train.labels) == {0: 1, 1: 1}


def test_rows_and_labels_stay_together() -> None:
    data = make([n % 2 for n in range(100)])
    train = data.subset(30, 0).train
    for texts, label in zip(train.texts, train.labels, strict=True):
        assert int(texts[0].split()[1]) % 2 == label


@pytest.mark.parametrize("size", [-1, 0, 1, 11])
def test_an_impossible_size_is_an_error(size: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"--train-rows {size}: sst2 has 10 train rows"
    ) as caught:
        make([0, 1] * 5).subset(size, 0)
    assert "give a number from 2 to 10" in str(caught.value)


def test_regression_and_multi_label_rows_have_subsets_too() -> None:
    train = Rows([(str(n),) for n in range(9)], [[n % 2, 1] for n in range(9)])
    data = TaskData(TASKS["stsb"], "files", "", "", train, {})
    assert len(data.subset(1, 0).train) == 1


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("multi_label", [[1, int(n == 7), int(n < 2)] for n in range(20)]),
        ("single_label", [int(n == 7) for n in range(20)]),
    ],
)
def test_every_label_keeps_a_row(kind: TaskKind, labels: Labels) -> None:
    """A label of held-out rows alone would be evaluated and never learned."""
    # The single label's row shares its text with another label's, so both stay on one side.
    rows = Rows([(f"text {6 if n == 7 else n}",) for n in range(20)], labels)
    for seed in range(50):
        kept, held = hold_out(rows, kind, 0.4, seed)
        assert len(held)
        if kind == "single_label":
            assert 1 in kept.labels
        else:
            assert all(map(any, zip(*kept.labels, strict=True)))
