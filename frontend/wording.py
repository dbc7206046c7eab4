"""Numbers and verdicts as people read them: sizes, shares, and whether strategies disagree."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.answers import Prediction
from frontend.glossary import Scale

_NOTABLE_SHARE_OF_SCALE = 0.1  # regression values further apart than this are called a disagreement


def literal(text: str) -> str:
    """Text from outside, with Markdown's special characters taken literally."""
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+!|~$:" else char for char in text)


def human_bytes(count: int) -> str:
    """Decimal units and two digits at least: "102 KB", "4.2 KB", "91 MB"."""
    size, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    if unit == "B":
        return f"{count} B"
    return f"{size:.0f} {unit}" if size >= 9.95 else f"{size:.1f} {unit}"


def percent(share: float) -> str:
    """Two significant digits below ten percent: "0.11 %", "3.4 %", "42 %"."""
    value = share * 100
    if value == 0 or value >= 9.95:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value >= 0.001 else "<0.001 %"


def probability(value: float) -> str:
    """Whole percents, but never 0 % or 100 % for something that is neither."""
    if value > 0.995:
        return ">99 %" if value < 1 else "100 %"
    if value < 0.005:
        return "<1 %" if value > 0 else "0 %"
    return f"{value:.0%}".replace("%", " %")


def milliseconds(value: float) -> str:
    """Whole milliseconds, seconds from one second up."""
    return f"{value / 1000:.1f} s" if value >= 1000 else f"{value:.0f} ms"


def disagreement(predictions: Sequence[Prediction], scale: Scale | None) -> str:
    """How the strategies of one task differ on one row; empty where they agree.

    Args:
        predictions: all of one task.
        scale: of a regression task; without it two values can't be called far apart.
    """
    values = [item.value for item in predictions if item.value is not None]
    if values:
        spread = max(values) - min(values)
        if scale is None or spread <= _NOTABLE_SHARE_OF_SCALE * (scale.high - scale.low):
            return ""
        return f"Strategies differ by {spread:.2f}"
    verdicts = [frozenset(item.labels) for item in predictions]
    counts = sorted((verdicts.count(verdict) for verdict in set(verdicts)), reverse=True)
    if len(counts) <= 1:
        return ""
    return f"Strategies disagree {' : '.join(map(str, counts))}"
