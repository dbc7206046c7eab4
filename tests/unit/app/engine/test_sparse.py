"""A few values of a slot's own: added to what was looked up, they give what its own table gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.engine.sparse import SparseWeights

ROWS, WIDTH = 7, 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(
    places=st.sets(st.integers(0, ROWS * WIDTH - 1), min_size=1),
    ids=st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=20),
    data=st.data(),
)
def test_looking_up_and_adding_is_looking_up_in_the_slots_own_table(
    dtype: torch.dtype, places: set[int], ids: list[int], data: st.DataObject
) -> None:
    """Also in the table's last rows, and where lines of other slots lie between."""
    generator = torch.Generator().manual_seed(len(places))
    table = torch.randn(ROWS, WIDTH, generator=generator)
    values = torch.randn(len(places), generator=generator)
    slot = SparseWeights.of(torch.tensor(sorted(places)), values, table, dtype)
    frozen, all_ids = table.to(dtype), torch.tensor(ids)
    own = data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))
    lines = torch.tensor(sorted(own))
    expected = frozen[all_ids]
    expected[lines] = slot.merged_with(frozen)[all_ids[lines]]
    asked = all_ids[lines].int()
    first, end = (torch.searchsorted(slot.rows, asked, right=right) for right in (False, True))
    here, there, either = (frozen[all_ids] for _ in range(3))
    slot._add_each(here, lines, first, end - first)
    slot._add_filled_up(there, lines, first, end)  # what GPUs do
    slot.add_to_embedded(either, all_ids, lines)
    for found in (here, there, either):
        assert torch.equal(found, expected)


def test_no_row_takes_more_places_than_the_fullest() -> None:
    places = torch.tensor([0, 1, 3, 12, 30, 31, 32, 33])
    slot = SparseWeights.of(places, torch.ones(8), torch.zeros(ROWS, WIDTH), torch.float32)
    assert slot.most_in_row == 4
    assert slot.to(torch.device("meta")).most_in_row == 4
