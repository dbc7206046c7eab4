"""A packed batch has every token once, keeps rows apart and has little padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deltas import PackedBatch, pack, packed_sizes
from tests.laws import law

LAW = law(60)

Row = tuple[list[int], list[int]]


def row(length: int, mark: int) -> Row:
    """A row whose tokens say which row they belong to and where they are."""
    return [1000 * mark + place + 1 for place in range(length)], [mark % 2] * length


lengths = st.lists(st.integers(1, 300), min_size=1, max_size=30)
pooled = st.lists(st.tuples(st.integers(1, 80), st.booleans()), min_size=1, max_size=30)
keyed = st.lists(st.tuples(st.integers(1, 80), st.integers(0, 3)), min_size=1, max_size=30)


@pytest.mark.parametrize("windows", [True, False])
@LAW
@given(sizes=lengths)
def test_every_row_is_where_the_batch_says(sizes: list[int], windows: bool) -> None:
    rows = [row(length, mark) for mark, length in enumerate(sizes)]
    batch = pack(rows, windows=windows)
    assert int((batch.input_ids > 0).sum()) == sum(sizes)
    for mark, (ids, types) in enumerate(rows):
        packed = batch.pooled_of_row[mark]
        assert batch.row_at_position[packed] == mark
        start = int(batch.first_token_of_row[mark])
        assert batch.token_at_position[packed] == start
        place = slice(start, start + len(ids))
        assert batch.input_ids[place].tolist() == ids
        assert batch.token_type_ids[place].tolist() == types
        assert batch.position_ids[place].tolist() == list(range(len(ids)))
        assert set(batch.row_of_token[place].tolist()) == {mark}


@pytest.mark.parametrize("windows", [True, False])
@pytest.mark.parametrize("keyed", [True, False])
@LAW
@given(pairs=pooled)
def test_a_mean_reads_each_token_of_its_row_once(
    pairs: list[tuple[int, bool]], windows: bool, keyed: bool
) -> None:
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    mean = [is_mean for _, is_mean in pairs]
    keys = [2 - is_mean for is_mean in mean] if keyed else None
    batch = pack(rows, keys=keys, mean=mean, windows=windows)
    ends = batch.num_cls + batch.mean_offsets
    assert int(ends[-1]) == len(batch.token_at_position)
    for mark, is_mean in enumerate(mean):
        place, first = int(batch.pooled_of_row[mark]), int(batch.first_token_of_row[mark])
        assert (place >= batch.num_cls) == is_mean
        if is_mean:
            number = place - batch.num_cls
            read = slice(int(ends[number]), int(ends[number + 1]))
            tokens = list(range(first, first + len(rows[mark][0])))
            assert batch.token_at_position[read].tolist() == tokens
            assert set(batch.row_at_position[read].tolist()) == {mark}
        else:
            assert batch.token_at_position[place] == first


@pytest.mark.parametrize("windows", [True, False])
@LAW
@given(sizes=lengths)
def test_if_all_rows_have_means_the_positions_are_the_tokens(
    sizes: list[int], windows: bool
) -> None:
    """The last layer then gathers nothing."""
    keys = [mark % 3 for mark in range(len(sizes))]
    rows = [row(length, mark) for mark, length in enumerate(sizes)]
    batch = pack(rows, keys=keys, mean=True, windows=windows)
    assert batch.num_cls == 0
    assert torch.equal(batch.token_at_position, torch.arange(len(batch.input_ids)))
    assert torch.equal(batch.row_at_position, batch.row_of_token)
    assert all(span.tokens == span.positions for span in batch.key_spans.values())


@LAW
@given(pooled)
def test_rows_of_both_poolings_have_sizes_that_are_compiled(
    pairs: list[tuple[int, bool]],
) -> None:
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    batch = pack(rows, mean=[is_mean for _, is_mean in pairs], windows=False)
    sizes = {0, *packed_sizes(sum(length for length, _ in pairs))}
    assert {len(batch.input_ids), len(batch.token_at_position), batch.num_cls} <= sizes


def test_only_one_key_may_have_both_poolings() -> None:
    rows = [row(3, mark) for mark in range(4)]
    with pytest.raises(ValueError, match=r"keys \[5, 7\] can't all lie side by side"):
        pack(rows, keys=[5, 5, 7, 7], mean=[True, False, True, False])
    batch = pack(rows, keys=[5, 9, 7, 7], mean=[True, False, True, False])
    assert list(batch.key_spans) == [9, 7, 5]


@LAW
@given(lengths)
def test_tokens_see_their_own_row_and_nothing_else(sizes: list[int]) -> None:
    batch = pack([row(length, mark) for mark, length in enumerate(sizes)])
    mark = torch.where(batch.input_ids > 0, batch.input_ids // 1000, -1)
    for block in batch.blocks:
        owner = mark[block.tokens].view(block.count, 1, block.width)
        same = owner.unsqueeze(-1) == owner.unsqueeze(-2)
        allowed = torch.ones_like(same) if block.allowed is None else block.allowed
        assert torch.equal(allowed, same)


@LAW
@given(keyed, st.integers(0, 4))
def test_blocks_cover_the_tokens_and_hold_their_positions(
    pairs: list[tuple[int, int]], first_mean: int
) -> None:
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    keys = [key for _, key in pairs]
    batch = pack(rows, keys=keys, mean=[key >= first_mean for key in keys])
    token = 0
    held: set[int] = set()
    for block in batch.blocks:
        assert block.tokens == slice(token, token + block.count * block.width)
        token = block.tokens.stop
        first = batch.token_at_position[block.positions].view(block.count, -1)
        window = (first - block.tokens.start) // block.width
        assert torch.equal(window, torch.arange(block.count)[:, None].expand_as(window))
        held.update(batch.row_at_position[block.positions].tolist())
    assert token == len(batch.input_ids)
    assert held == set(range(len(rows)))


@pytest.mark.parametrize("windows", [True, False])
@LAW
@given(pairs=keyed)
def test_rows_of_a_key_lie_side_by_side(pairs: list[tuple[int, int]], windows: bool) -> None:
    keys = torch.tensor([key for _, key in pairs])
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    batch = pack(rows, keys=keys.tolist(), windows=windows)
    assert sorted(batch.key_spans) == sorted(set(keys.tolist()))
    token = packed = 0
    for key, span in batch.key_spans.items():
        assert (span.tokens.start, span.positions.start) == (token, packed)
        assert set(keys[batch.row_of_token[span.tokens]].tolist()) == {key}
        assert set(keys[batch.row_at_position[span.positions]].tolist()) == {key}
        token, packed = span.tokens.stop, span.positions.stop
    assert (token, packed) == (len(batch.input_ids), len(batch.token_at_position))


@LAW
@given(st.lists(st.integers(1, 128), min_size=40, max_size=120))
def test_there_is_little_padding_in_a_full_batch(sizes: list[int]) -> None:
    """A window is left unfilled only if every other row is longer than its free tokens."""
    batch = pack([row(length, mark) for mark, length in enumerate(sizes)])
    assert len(batch.input_ids) <= 1.35 * sum(sizes) + 128


@LAW
@given(keyed)
def test_end_to_end_segments_cover_the_tokens(pairs: list[tuple[int, int]]) -> None:
    """Attention reads them; the segment of a row begins at its first token."""
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    batch = pack(rows, keys=[key for _, key in pairs], windows=False)
    assert batch.blocks == ()
    assert int(batch.segment_lengths.sum()) == len(batch.input_ids)
    starts = (batch.segment_lengths.cumsum(0) - batch.segment_lengths).tolist()
    lengths_at = dict(zip(starts, batch.segment_lengths.tolist(), strict=True))
    for packed, first in enumerate(batch.token_at_position.tolist()):
        assert lengths_at[first] == pairs[int(batch.row_at_position[packed])][0]


@LAW
@given(pooled)
def test_runs_cover_the_positions_in_order(pairs: list[tuple[int, bool]]) -> None:
    """Attention lets each position see the tokens of its run's segment."""
    rows = [row(length, mark) for mark, (length, _) in enumerate(pairs)]
    batch = pack(rows, mean=[is_mean for _, is_mean in pairs], windows=False)
    segments = torch.arange(len(batch.segment_lengths)).repeat_interleave(batch.segment_lengths)
    of_position = batch.run_segments.repeat_interleave(batch.run_lengths)
    assert torch.equal(of_position, segments[batch.token_at_position])


@LAW
@given(lengths)
def test_end_to_end_rows_have_hardly_any_padding(sizes: list[int]) -> None:
    batch = pack([row(length, mark) for mark, length in enumerate(sizes)], windows=False)
    assert len(batch.input_ids) - sum(sizes) <= max(3, min(31, 0.031 * sum(sizes)))
    assert len(batch.input_ids) in packed_sizes(sum(sizes))
    assert len(batch.token_at_position) in packed_sizes(sum(sizes))


def test_a_batch_as_long_as_its_windows_has_no_padding_and_no_mask() -> None:
    batch = pack([row(32, 0), row(64, 1), row(32, 2), row(128, 3)])
    assert len(batch.input_ids) == 256
    narrow, wide = batch.blocks
    assert narrow.allowed is not None  # 32 and 32 share a window
    assert wide.allowed is None
    assert pack([row(128, 0), row(128, 1)]).blocks[0].allowed is None


def test_a_lone_row_is_hardly_padded() -> None:
    assert len(pack([row(5, 0)]).input_ids) == 16
    assert len(pack([row(39, 0)]).input_ids) == 48
    assert len(pack([row(130, 0)]).input_ids) == 144


def test_a_few_rows_end_to_end_are_hardly_padded() -> None:
    """A product takes longer with every token."""
    found = {
        count: len(pack([row(count, 0)], windows=False).input_ids)
        for count in (5, 20, 39, 130, 257, 513, 1025)
    }
    assert found == {5: 8, 20: 20, 39: 40, 130: 132, 257: 264, 513: 528, 1025: 1056}


def test_numbers_of_tokens_are_few() -> None:
    assert len(packed_sizes(4096)) < 230


def test_numbers_of_positions_are_few() -> None:
    """Compiling a kernel for each number takes milliseconds."""
    found = {
        len(pack([row(128, mark) for mark in range(count)]).token_at_position)
        for count in range(1, 100)
    }
    assert found == {1, 2, 4, 8, *range(16, 113, 16)}


def test_everything_is_int64() -> None:
    batch: PackedBatch = pack([row(3, 0), row(1, 1)], torch.device("cpu"))
    names = ["input_ids", "token_type_ids", "position_ids", "row_of_token", "row_at_position"]
    names += ["token_at_position", "first_token_of_row", "pooled_of_row", "mean_offsets"]
    names += ["segment_lengths", "run_segments", "run_lengths"]
    assert {getattr(batch, name).dtype for name in names} == {torch.int64}


@pytest.mark.parametrize("lengths", [[3], [40], [100, 30], [9] * 50, [64, 128, 7, 90, 33]])
def test_the_sizes_compiled_are_those_that_batches_have(lengths: list[int]) -> None:
    batch = pack([([1] * length, [0] * length) for length in lengths], windows=False)
    sizes = packed_sizes(sum(lengths))
    assert len(batch.input_ids) in sizes
    assert len(batch.token_at_position) in sizes


class Copies(TorchDispatchMode):
    """Counts copies from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.count += any(leaf.device != result.device for leaf in given)
        return result


def test_one_copy_brings_a_batch_to_its_device() -> None:
    """On a device that holds no values, which every machine has."""
    rows = [([2, 5, 3], [0, 0, 0]), ([2, 7, 8, 3], [0, 0, 1, 1]), ([2, 3], [0, 0])]
    with Copies() as copies:
        batch = pack(rows, "meta", keys=[0, 1, 0], mean=[True, False, False])
    assert copies.count == 1
    here = pack(rows, keys=[0, 1, 0], mean=[True, False, False])
    for name, value in vars(here).items():
        if isinstance(value, Tensor):
            there = getattr(batch, name)
            assert (there.shape, there.dtype) == (value.shape, value.dtype), name
            stays = name in ("segment_lengths", "run_segments", "run_lengths")
            assert there.device.type == ("cpu" if stays else "meta"), name
    assert batch.key_spans == here.key_spans
    assert [b.allowed is None for b in batch.blocks] == [b.allowed is None for b in here.blocks]
