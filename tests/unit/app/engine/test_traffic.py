"""The share of a sticky key: one number for each key, uniform, and other for other deltas."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from app.engine.traffic import sticky_share

NAME = "toy2", "head"


@given(st.text(max_size=50))
def test_a_key_has_one_share(key: str) -> None:
    assert 0 <= sticky_share(NAME, key) < 1
    assert sticky_share(NAME, key) == sticky_share(NAME, key)


def test_shares_are_uniform_and_independent() -> None:
    shares = sorted(sticky_share(NAME, f"user {n}") for n in range(10_000))
    farthest = max(abs(share - n / 10_000) for n, share in enumerate(shares))
    assert farthest < 0.0195  # Kolmogorov-Smirnov, one in a thousand
    both = sum(
        sticky_share(NAME, f"user {n}") < 0.5 and sticky_share(("toy3", "head"), f"user {n}") < 0.5
        for n in range(10_000)
    )
    assert 2300 < both < 2700
