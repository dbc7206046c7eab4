"""Encoded batches have few shapes, and decoding finds every row again."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.cuda.batch import (
    BatchShape,
    batch_shapes,
    decode_batch,
    encode_batch,
    first_fitting,
)

row_sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), min_size=1, max_size=30)


def row_of(length: int, mark: int = 0) -> tuple[list[int], list[int]]:
    """A row whose ids tell its number and their places in it."""
    return [100 * mark + place + 1 for place in range(length)], [mark % 2] * length


@given(
    sizes=row_sizes,
    more=st.tuples(st.integers(0, 40), st.integers(0, 9), st.booleans()),
    keyed=st.booleans(),
    first_mean=st.integers(0, 4),
)
def test_decoding_finds_every_row_again(
    sizes: list[tuple[int, int]], more: tuple[int, int, bool], keyed: bool, first_mean: int
) -> None:
    rows = [row_of(length, mark) for mark, (length, _) in enumerate(sizes)]
    keys = [key for _, key in sizes] if keyed else None
    tokens = sum(length for length, _ in sizes)
    longest = max(length for length, _ in sizes)
    mean = [key >= first_mean for _, key in sizes]
    with_means = more[2] or any(mean)
    shape = BatchShape(tokens + more[0], len(rows) + more[1], longest + more[1], with_means)
    encoded = encode_batch(rows, shape, keys, mean, extra=[[7, 8], [9]])
    assert encoded.numbers.dtype == torch.int64
    assert encoded.numbers[shape.num_numbers :].tolist() == [7, 8, 9]
    batch = decode_batch(encoded.numbers, shape, encoded.spans)
    assert batch.longest == shape.longest
    cu_seqlens = batch.cu_seqlens.tolist()
    for mark, (ids, types) in enumerate(rows):
        place = int(batch.pooled_of_row[mark])
        assert (place >= batch.num_cls) == mean[mark]
        position = place % batch.num_cls
        assert batch.row_at_position[position] == mark
        assert batch.token_at_position[position] == cu_seqlens[position]
        tokens_of_row = slice(cu_seqlens[position], cu_seqlens[position + 1])
        assert batch.input_ids[tokens_of_row].tolist() == ids
        assert batch.token_type_ids[tokens_of_row].tolist() == types
        assert batch.position_ids[tokens_of_row].tolist() == list(range(len(ids)))
        assert batch.row_of_token[tokens_of_row].tolist() == [mark] * len(ids)
        assert batch.mean_offsets[position : position + 2].tolist() == [
            tokens_of_row.start,
            tokens_of_row.stop,
        ]
        if mean[mark]:
            # The positions of a mean are its row's tokens.
            read = batch.num_cls + torch.arange(tokens_of_row.start, tokens_of_row.stop)
            assert batch.token_at_position[read].tolist() == (read - batch.num_cls).tolist()
            assert set(batch.row_at_position[read].tolist()) == {mark}
    assert batch.num_cls == shape.rows
    assert int(batch.mean_offsets[-1]) == shape.tokens
    assert cu_seqlens[len(rows) :] == [tokens] * (1 + more[1])
    for name in ("input_ids", "token_type_ids"):
        assert getattr(batch, name).shape == (shape.tokens,)
        assert not getattr(batch, name)[tokens:].any()
    # Tokens and rows that fill the batch up read valid indices.
    for name, end in (("position_ids", shape.longest), ("row_of_token", len(rows))):
        values = getattr(batch, name)
        assert values.shape == (shape.tokens,)
        assert bool(((values >= 0) & (values < end)).all())
    for name in ("token_at_position", "row_at_position", "pooled_of_row"):
        values = getattr(batch, name)
        is_longer = with_means and name != "pooled_of_row"
        assert values.shape == (shape.rows + is_longer * shape.tokens,)
        assert not values[len(rows) : shape.rows].any()


@given(row_sizes)
def test_rows_of_a_key_are_neighbours(sizes: list[tuple[int, int]]) -> None:
    """Rows keep their order, the lowest key comes first, and there are no gaps."""
    keys = [key for _, key in sizes]
    encoded = encode_batch(
        [row_of(length, mark) for mark, (length, _) in enumerate(sizes)], keys=keys
    )
    batch = decode_batch(encoded.numbers, encoded.shape, encoded.spans)
    assert list(batch.key_spans) == sorted(set(keys))
    token = packed = 0
    for key, span in batch.key_spans.items():
        assert (span.tokens.start, span.positions.start) == (token, packed)
        marks = [mark for mark, other in enumerate(keys) if other == key]
        assert batch.row_at_position[span.positions].tolist() == marks
        assert sorted(set(batch.row_of_token[span.tokens].tolist())) == marks
        token, packed = span.tokens.stop, span.positions.stop
    assert (token, packed) == encoded.shape[:2]


@given(row_sizes)
def test_a_key_with_means_covers_the_positions_of_its_tokens(
    sizes: list[tuple[int, int]],
) -> None:
    keys = [key + 1 for _, key in sizes]
    rows = [row_of(length, mark) for mark, (length, _) in enumerate(sizes)]
    encoded = encode_batch(rows, keys=keys, mean=[key == 2 for key in keys])
    batch = decode_batch(encoded.numbers, encoded.shape, encoded.spans)
    for key, span in batch.key_spans.items():
        marks = [mark for mark, other in enumerate(keys) if other == key]
        of_key = batch.row_at_position[span.positions].tolist()
        if key == 2:
            tokens = torch.arange(span.tokens.start, span.tokens.stop)
            assert torch.equal(batch.token_at_position[span.positions], tokens)
            assert sorted(set(of_key)) == marks
        else:
            assert of_key == marks


def test_without_a_shape_nothing_is_filled_up() -> None:
    assert encode_batch([row_of(3, 0), row_of(4, 1)]).shape == BatchShape(7, 2, 4)


@pytest.mark.parametrize("shape", [BatchShape(6, 2, 4), BatchShape(7, 1, 4), BatchShape(7, 2, 3)])
def test_rows_that_do_not_fit_the_shape_are_an_error(shape: BatchShape) -> None:
    needed = r"BatchShape\(tokens=7, rows=2, longest=4, with_means=False, every_layer=False\)"
    with pytest.raises(ValueError, match=f"{needed} does not fit BatchShape"):
        encode_batch([row_of(3, 0), row_of(4, 1)], shape)


def test_rows_with_means_do_not_fit_a_shape_without() -> None:
    with pytest.raises(
        ValueError, match=r"with_means=True, every_layer=False\) does not fit BatchShape"
    ):
        encode_batch([row_of(3)], BatchShape(3, 1, 3), mean=[True])


def test_token_counts_grow_by_a_half_at_most() -> None:
    found = sorted({size.tokens for size in batch_shapes(512)})
    assert found[:6] == [64, 96, 128, 192, 256, 384]
    assert found[-1] == 16384
    assert all(size < after <= 1.5 * size for size, after in pairwise(found))


def test_long_rows_have_larger_shapes() -> None:
    """Attention kernels are launched for the longest row of the shape."""
    found = {
        tokens: [
            size.longest
            for size in batch_shapes(512)
            if size.tokens == tokens and not size.with_means
        ]
        for tokens in (64, 256, 4096)
    }
    assert found == {64: [64], 256: [128, 256], 4096: [128, 512]}
    assert {size.longest for size in batch_shapes(100)} == {64, 96, 100}  # the encoder's limit


@pytest.mark.parametrize(
    ("needed", "expected"),
    [
        (BatchShape(1, 1, 1), BatchShape(64, 4, 64)),
        (BatchShape(64, 4, 64), BatchShape(64, 4, 64)),
        (BatchShape(65, 2, 40), BatchShape(96, 6, 96)),
        (BatchShape(64, 5, 20), BatchShape(96, 6, 96)),  # many short rows
        (BatchShape(300, 10, 128), BatchShape(384, 24, 128)),
        (BatchShape(300, 10, 129), BatchShape(384, 24, 384)),
        (BatchShape(300, 10, 128, True), BatchShape(384, 24, 128, True)),
        (BatchShape(4000, 100, 77), BatchShape(4096, 256, 128)),
        (BatchShape(4000, 100, 512), BatchShape(4096, 256, 512)),
        (BatchShape(16384, 1024, 512), BatchShape(16384, 1024, 512)),
        (BatchShape(16385, 1, 1), None),
        (BatchShape(3000, 1025, 9), None),
        (BatchShape(1000, 1, 513), None),
    ],
)
def test_the_smallest_fitting_shape_is_chosen(
    needed: BatchShape, expected: BatchShape | None
) -> None:
    assert first_fitting(batch_shapes(512), needed) == expected
