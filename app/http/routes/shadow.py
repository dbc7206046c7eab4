"""Lets a second version see the rows that another one has answered, and counts where they agree.

The rows run only while nothing waits, after their answer is ready, and are given up when they would
be late. So a shadow neither delays nor fails an answer. Read `app.engine.traffic` for the rules.
Tested by tests/http/test_traffic.py.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from app.batching.batcher import Batcher
from app.engine.engine import EngineRow, Outcome
from app.engine.traffic import Traffic
from app.http.telemetry.metrics import Metrics
from app.pipeline import Pipeline, Trace
from app.pipeline.predictions import (
    Prediction,
    TargetPredictions,
    ValuePrediction,
    to_predictions,
)
from deltas import Record

logger = logging.getLogger(__name__)

_LANE = "shadow traffic"  # no task can have this name
_MOST = 2  # requests at a time
_WITHIN_S = 1.0
_SAME_VALUE = 0.1  # largest difference of two regressions that count as the same


class ShadowTraffic:
    """Compares the answers of shadow versions with those that clients got.

    Args:
        traffic: the rules.
        pipeline: computes the rows of a shadow.
        batcher: tells whether rows wait.
        metrics: counts the rows by outcome.
    """

    def __init__(
        self,
        traffic: Traffic,
        pipeline: Pipeline,
        batcher: Batcher[EngineRow, Outcome],
        metrics: Metrics,
    ) -> None:
        self._traffic = traffic
        self._pipeline = pipeline
        self._batcher = batcher
        self._metrics = metrics
        self._running: set[asyncio.Task[None]] = set()

    def compare(
        self, inputs: Any, named: Sequence[bool], answered: Sequence[TargetPredictions]
    ) -> None:
        """Start to run answered rows through the shadow versions of their deltas; never waits.

        Args:
            inputs: rows of the request.
            named: whether the request named the version of each answer, which has no shadow.
            answered: answers of the request, one for each delta.
        """
        for answer, is_named in zip(answered, named, strict=True):
            name = answer.task, answer.strategy
            rule = self._traffic.rules.get(name)
            if is_named or rule is None or rule.shadow is None:
                continue
            shadow = self._traffic.version_of(name, rule.shadow.version)
            if rule.shadow.version == answer.version:
                continue
            is_busy = self._batcher.queue.num_rows > 0 or len(self._running) >= _MOST
            if shadow is None or is_busy:
                self._metrics.on_shadow(*name, "skipped", len(answer.predictions))
                continue
            task = asyncio.create_task(self._run(inputs, shadow, answer))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, inputs: Any, shadow: Record, answer: TargetPredictions) -> None:
        deadline = time.monotonic() + _WITHIN_S
        spec, rule = shadow.manifest.task, shadow.manifest.decision
        outcome = {"same": 0, "different": 0, "skipped": len(answer.predictions)}
        try:
            (rows,) = await self._pipeline.predict(
                inputs, [shadow], key=_LANE, deadline=deadline, trace=Trace()
            )
            found = to_predictions(spec, rows, None, rule)
            pairs = list(zip(found, answer.predictions, strict=True))
            same = sum(_agree(one, other) for one, other in pairs)
            outcome = {"same": same, "different": len(pairs) - same}
        except Exception as error:  # noqa: BLE001 - no request waits for a shadow
            logger.debug("a shadow of %s failed: %s", shadow.key, error)
        for result, num_rows in outcome.items():
            if num_rows:
                self._metrics.on_shadow(answer.task, answer.strategy, result, num_rows)


def _agree(one: Prediction, other: Prediction) -> bool:
    """Tell whether two predictions decide the same."""
    if isinstance(one, ValuePrediction) and isinstance(other, ValuePrediction):
        return math.isclose(one.value, other.value, rel_tol=0, abs_tol=_SAME_VALUE)
    return one.decision == other.decision
