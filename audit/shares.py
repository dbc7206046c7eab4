"""Counts with the interval that they leave for the true share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


def percent(rate: float) -> str:
    """Return a share as a percentage with one decimal."""
    return f"{100 * rate:.1f} %"


@dataclass(frozen=True)
class Share:
    """A number of rows among others, `total` of which is at least 1."""

    count: int
    total: int

    @property
    def rate(self) -> float:
        """The share itself, 0 to 1."""
        return self.count / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927), which holds for few rows and shares near 0, too."""
        n, rate = self.total, self.rate
        spread = _Z * math.sqrt(rate * (1 - rate) / n + (_Z / (2 * n)) ** 2)
        middle, scale = rate + _Z**2 / (2 * n), 1 + _Z**2 / n
        return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.count:,} of {self.total:,} ({percent(self.rate)}, "
            f"95 % interval {100 * low:.1f} to {percent(high)})"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the share for a report in JSON."""
        return {
            "count": self.count,
            "rows": self.total,
            "rate": self.rate,
            "interval": list(self.interval),
        }
