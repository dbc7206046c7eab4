"""Flat batches: every row lies where its numbers say, whatever fills the batch up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltas import Size, flatten, unflatten

shapes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=30)


def row(length: int, mark: int) -> tuple[list[int], list[int]]:
    """Ids that tell which row and place they are of."""
    return [100 * mark + place + 1 for place in range(length)], [mark % 2] * length


@given(shapes=shapes, more=st.tuples(st.integers(0, 40), st.integers(0, 9)), keyed=st.booleans())
def test_rows_are_found_again(
    shapes: list[tuple[int, int]], more: tuple[int, int], keyed: bool
) -> None:
    rows = [row(length, mark) for mark, (length, _) in enumerate(shapes)]
    keys = [key for _, key in shapes] if keyed else None
    tokens = sum(length for length, _ in shapes)
    longest = max(length for length, _ in shapes)
    size = Size(tokens + more[0], len(rows) + more[1], longest + more[1])
    flat = flatten(rows, size, keys, along=[[7, 8], [9]])
    assert flat.numbers.dtype == torch.int64
    assert flat.numbers[size.num_numbers :].tolist() == [7, 8, 9]
    batch = unflatten(flat.numbers, size, flat.spans)
    assert batch.longest == size.longest
    bounds = batch.bounds.tolist()
    for mark, (ids, types) in enumerate(rows):
        packed = int(batch.position_of_row[mark])
        assert batch.row_at_position[packed] == mark
        assert batch.first_token[packed] == bounds[packed]
        own = slice(bounds[packed], bounds[packed + 1])
        assert batch.input_ids[own].tolist() == ids
        assert batch.token_type_ids[own].tolist() == types
        assert batch.position_ids[own].tolist() == list(range(len(ids)))
        assert batch.row_of_token[own].tolist() == [mark] * len(ids)
    assert bounds[len(rows) :] == [tokens] * (1 + more[1])
    for name in ("input_ids", "token_type_ids"):
        assert getattr(batch, name).shape == (size.tokens,)
        assert not getattr(batch, name)[tokens:].any()
    # What fills up reads what is always there.
    for name, end in (("position_ids", size.longest), ("row_of_token", len(rows))):
        values = getattr(batch, name)
        assert values.shape == (size.tokens,)
        assert bool(((values >= 0) & (values < end)).all())
    for name in ("first_token", "row_at_position", "position_of_row"):
        assert getattr(batch, name).shape == (size.rows,)
        assert not getattr(batch, name)[len(rows) :].any()


@given(shapes)
def test_rows_of_a_key_lie_side_by_side(shapes: list[tuple[int, int]]) -> None:
    """Lowest key first, and in the order of the input; nothing lies between."""
    keys = [key for _, key in shapes]
    flat = flatten([row(length, mark) for mark, (length, _) in enumerate(shapes)], keys=keys)
    batch = unflatten(flat.numbers, flat.size, flat.spans)
    assert list(batch.key_spans) == sorted(set(keys))
    token = packed = 0
    for key, span in batch.key_spans.items():
        assert (span.tokens.start, span.positions.start) == (token, packed)
        marks = [mark for mark, other in enumerate(keys) if other == key]
        assert batch.row_at_position[span.positions].tolist() == marks
        assert sorted(set(batch.row_of_token[span.tokens].tolist())) == marks
        token, packed = span.tokens.stop, span.positions.stop
    assert (token, packed) == flat.size[:2]


def test_a_size_is_just_enough_if_none_is_given() -> None:
    assert flatten([row(3, 0), row(4, 1)]).size == Size(7, 2, 4)


@pytest.mark.parametrize("size", [Size(6, 2, 4), Size(7, 1, 4), Size(7, 2, 3)])
def test_what_does_not_fit_is_said(size: Size) -> None:
    with pytest.raises(ValueError, match=r"Size\(tokens=7, rows=2, longest=4\) does not fit Size"):
        flatten([row(3, 0), row(4, 1)], size)
