"""Which answers int8 may have turned: they are computed once more, without rounding."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from deltas.manifest import TaskKind

# On the packaged backbone rounding moves the margin between two labels by 0.05 (root mean square;
# docs/performance.md). Two labels that far apart score 0.5125 and 0.4875.
LIMIT = 0.05


def is_close(kind: TaskKind, logits: Sequence[float]) -> bool:
    """Whether a row's labels would be others if its logits moved by a little.

    Args:
        kind: a regression's value has no labels that could turn.
        logits: [C]; not close if some are not finite, since a second look would not mend them.
    """
    if kind == "regression" or not all(map(math.isfinite, logits)):
        return False
    if kind == "multi_label":
        return any(abs(logit) < LIMIT for logit in logits)
    best, second = heapq.nlargest(2, logits)
    return best - second < LIMIT
