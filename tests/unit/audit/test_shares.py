"""Shares and their intervals, against published values."""

from __future__ import annotations

import pytest

from audit.shares import Share


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (1, 10, 0.01788, 0.40415),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72247, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilson_s(count: int, total: int, low: float, high: float) -> None:
    assert Share(count, total).interval == pytest.approx((low, high), abs=1e-4)


def test_a_share_is_told_with_its_counts() -> None:
    assert str(Share(1031, 4000)) == "1,031 of 4,000 (25.8 %, 95 % interval 24.4 to 27.2 %)"
    assert Share(1, 4).as_json()["rate"] == 0.25
