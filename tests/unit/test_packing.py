"""Packed batches: every token once, in its row, and results back in the order of the input."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltas import PackedBatch, pack

# Machines that run tests are busy: how long an example takes says nothing.
LAW = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])

Row = tuple[list[int], list[int]]


def row(length: int, mark: int) -> Row:
    """A row whose tokens say which row they belong to and where they are."""
    return [100 * mark + place for place in range(length)], [mark % 2] * length


lengths = st.lists(st.integers(1, 6), min_size=1, max_size=20)


@LAW
@given(lengths)
def test_every_token_is_where_the_batch_says(sizes: list[int]) -> None:
    rows = [row(length, mark) for mark, length in enumerate(sizes)]
    batch = pack(rows)
    assert len(batch.input_ids) == sum(sizes)
    for packed, start, length in zip(
        batch.order.tolist(), batch.first.tolist(), batch.lengths.tolist(), strict=True
    ):
        ids, types = rows[packed]
        assert batch.input_ids[start : start + length].tolist() == ids
        assert batch.token_type_ids[start : start + length].tolist() == types
        assert batch.position_ids[start : start + length].tolist() == list(range(len(ids)))


@LAW
@given(lengths)
def test_groups_cover_the_batch_without_gaps(sizes: list[int]) -> None:
    batch = pack([row(length, mark) for mark, length in enumerate(sizes)])
    token = packed = 0
    for group in batch.groups:
        assert (group.start, group.row) == (token, packed)
        assert set(batch.lengths[packed : packed + group.num_rows].tolist()) == {group.length}
        token += group.length * group.num_rows
        packed += group.num_rows
    assert (token, packed) == (sum(sizes), len(sizes))
    assert len({group.length for group in batch.groups}) == len(batch.groups)


@LAW
@given(lengths)
def test_restore_gives_input_order(sizes: list[int]) -> None:
    batch = pack([row(length, mark) for mark, length in enumerate(sizes)])
    marks = batch.input_ids[batch.first] // 100
    assert batch.restore(marks[:, None])[:, 0].tolist() == list(range(len(sizes)))


def test_rows_of_one_length_keep_their_order() -> None:
    batch = pack([row(length, mark) for mark, length in enumerate([3, 2, 3, 2, 1, 3])])
    assert batch.order.tolist() == [4, 1, 3, 0, 2, 5]


def test_everything_is_on_the_device_and_whole_numbers() -> None:
    batch: PackedBatch = pack([row(3, 0), row(1, 1)], torch.device("cpu"))
    names = ("input_ids", "token_type_ids", "position_ids", "first", "order", "lengths")
    assert {getattr(batch, name).dtype for name in names} == {torch.int64}
