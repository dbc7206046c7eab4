"""Sparse values added to rows of the frozen table equal rows of the slot's chosen table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltas.encoder.sparse import SparseWeights

ROWS, WIDTH = 7, 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    indices=st.sets(st.integers(0, ROWS * WIDTH - 1), min_size=1),
    ids=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=20),
    data=st.data(),
)
def test_adding_to_frozen_rows_equals_looking_up_in_the_merged_table(
    dtype: torch.dtype, indices: set[int], ids: list[int], data: st.DataObject
) -> None:
    """Also in the table's last rows, and with tokens of other slots in between."""
    generator = torch.Generator().manual_seed(len(indices))
    table = torch.randn(ROWS, WIDTH, generator=generator)
    values = torch.randn(len(indices), generator=generator)
    slot = SparseWeights.of(torch.tensor(sorted(indices)), values, table, dtype)
    frozen, all_ids = table.to(dtype), torch.tensor(ids)
    chosen = data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))
    tokens = torch.tensor(sorted(chosen))
    expected = frozen[all_ids]
    expected[tokens] = slot.merged_with(frozen)[all_ids[tokens]]
    wanted = all_ids[tokens].int()
    first, end = (torch.searchsorted(slot.rows, wanted, right=right) for right in (False, True))
    here, there, either = (frozen[all_ids] for _ in range(3))
    slot._add_values(here, tokens, first, end - first)
    slot._add_padded(there, tokens, first, end)  # what GPUs do
    slot.add_to_embedded(either, all_ids, tokens)
    for found in (here, there, either):
        assert torch.equal(found, expected)


def test_the_fullest_row_sets_the_padding() -> None:
    indices = torch.tensor([0, 1, 3, 12, 30, 31, 32, 33])
    slot = SparseWeights.of(indices, torch.ones(8), torch.zeros(ROWS, WIDTH), torch.float32)
    assert slot.most_in_row == 4
    assert slot.to(torch.device("meta")).most_in_row == 4
