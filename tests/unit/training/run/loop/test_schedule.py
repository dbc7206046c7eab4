"""Order of rows, batches by length, and the course of the learning rate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas import TokenizedRow
from tests.laws import law
from tests.unit.training.run.loop.test_loop import OPTIONS
from training.run.loop.schedule import batches, length_batches, rate_factor

LAW = law(60)


def rows_of(lengths: Sequence[int]) -> list[TokenizedRow]:
    """Rows that differ in length only."""
    return [TokenizedRow([2] * length, [0] * length, False) for length in lengths]


@LAW
@given(st.lists(st.integers(1, 9), min_size=1, max_size=300), st.integers(1, 7), st.integers(0, 9))
def test_every_row_once_an_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    rows = rows_of(lengths)
    an_epoch = sum(1 for _ in range(0, len(rows), batch_size))
    full = replace(OPTIONS, batch_size=batch_size, seed=seed, steps=3 * an_epoch)
    cut = list(batches(rows, full))
    # Buckets are cut one by one, so an epoch may have a few short batches more, never one less.
    seen: Counter[int] = Counter()
    for positions in cut:
        assert 1 <= len(positions) <= batch_size
        seen.update(positions)
    assert len(cut) == full.steps
    assert max(seen.values()) - min(seen.get(row, 0) for row in range(len(rows))) <= 1


def test_epochs_are_shuffled_anew_and_repeatable() -> None:
    rows = rows_of([3, 5, 4, 6] * 25)
    options = replace(OPTIONS, steps=50)
    cut = list(batches(rows, options))
    assert cut == list(batches(rows, options))
    assert cut[:25] != cut[25:]
    assert cut[:25] != list(batches(rows, replace(options, seed=8)))[:25]
    for epoch in (cut[:25], cut[25:]):
        assert sorted(row for positions in epoch for row in positions) == list(range(100))


def test_fewer_steps_are_the_beginning_of_more() -> None:
    """The order does not depend on where a run stops."""
    rows = rows_of([3, 5, 4, 6] * 25)
    longer = list(batches(rows, replace(OPTIONS, steps=60)))
    assert list(batches(rows, replace(OPTIONS, steps=33))) == longer[:33]


def test_rows_of_a_batch_are_of_similar_length() -> None:
    """The lengths of batches are shuffled, so that short rows do not always come first."""
    rows = rows_of([*range(1, 65)] * 4)
    cut = list(batches(rows, replace(OPTIONS, steps=64)))
    spread = [max(part) - min(part) for part in ([rows[i].num_tokens for i in b] for b in cut)]
    assert np.mean(spread) < 8
    means = [np.mean([rows[i].num_tokens for i in positions]) for positions in cut]
    assert abs(float(np.corrcoef(means, range(len(means)))[0, 1])) < 0.5


def test_batches_of_any_rows_have_every_length() -> None:
    rows = rows_of([*range(1, 65)] * 4)
    mixed = replace(OPTIONS, steps=64, batch_order="random")
    cut = list(batches(rows, mixed))
    assert sorted(row for positions in cut for row in positions) == list(range(256))
    spread = [max(part) - min(part) for part in ([rows[i].num_tokens for i in b] for b in cut)]
    # Of four uniform draws from 64 lengths, the expected range is 3 / 5 of it.
    assert 30 < np.mean(spread) < 47


@LAW
@given(st.integers(1, 400), st.floats(0, 1))
def test_rate_rises_then_falls(steps: int, warmup: float) -> None:
    options = replace(OPTIONS, steps=steps, warmup=warmup)
    rates = [rate_factor(step, options) for step in range(1, steps + 1)]
    assert all(0 < value <= 1 for value in rates)
    peak = rates.index(1.0)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak + 1 == max(1, round(warmup * steps))
    if peak + 1 < steps:
        assert rates[-1] == pytest.approx(1 / (steps - peak))


@LAW
@given(st.lists(st.integers(1, 9), max_size=60), st.integers(1, 30))
def test_length_batches_hold_every_row_once_shortest_first(
    lengths: list[int], max_tokens: int
) -> None:
    parts = list(length_batches(rows_of(lengths), max_tokens))
    order = [position for part in parts for position in part]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths)
    for part in parts:
        assert len(part) == 1 or sum(lengths[position] for position in part) <= max_tokens
