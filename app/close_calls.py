"""Which answers int8 may have turned: they are computed once more, without rounding."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

from deltas.manifest import Manifest, TaskKind

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


@dataclass
class Int8Counts:
    """What int8 computed so far, by task and strategy.

    Attributes:
        rows: of all kinds, the readiness check's and those that nobody waited for any more too.
        close_calls: those of them that were computed once more.
    """

    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    close_calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def judge(self, manifest: Manifest, logits: Sequence[float]) -> bool:
        """Count a row that int8 computed; gives whether it is a close call."""
        close = is_close(manifest.task.kind, logits)
        with self._lock:
            self.rows[manifest.key] += 1
            if close:
                self.close_calls[manifest.key] += 1
        return close
