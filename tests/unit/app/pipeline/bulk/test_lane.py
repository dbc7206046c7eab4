"""The lane of streams: one short batch at a time, turns, and errors in the places of their rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from app.batching.batcher import Batcher
from app.batching.queue import BatchLimits
from app.batching.workers import Parallelism
from app.errors import BatchFailedError
from app.pipeline.bulk.lane import BackgroundLane

ROW_TOKENS = 16


class Row:
    """A row of a stream."""

    num_tokens = ROW_TOKENS

    def __init__(self, name: str) -> None:
        self.name = name


class Observer:
    """Hears of batches and forgets them."""

    def on_batch(self, *_: Any) -> None: ...

    def on_answer(self, *_: Any) -> None: ...

    def on_drop(self, *_: Any) -> None: ...


class Engine:
    """Answers each row by its name, and notes its batches; its clock counts their time alone."""

    def __init__(self, seconds_a_row: float = 0.0) -> None:
        self.batches: list[list[str]] = []
        self.now = 0.0
        self._seconds_a_row = seconds_a_row

    def predict(self, rows: Sequence[Any]) -> list[str]:
        self.batches.append([row.name for row in rows])
        self.now += self._seconds_a_row * len(rows)
        if any(row.name.endswith("bad") for row in rows):
            raise RuntimeError("a bug")
        return [row.name for row in rows]


def answers(engine: Engine, *streams: list[str], beside: int = 0) -> list[list[Any]]:
    """Run streams at the same time, and requests of one row beside them."""

    async def run() -> list[list[Any]]:
        limits = BatchLimits(512, 4096, 1000, 100_000)
        batcher: Any = Batcher(
            Parallelism(engine.predict), limits, Observer(), clock=lambda: engine.now
        )
        batcher.start()
        lane = BackgroundLane(batcher)
        jobs = [lane.logits([Row(name) for name in names]) for names in streams]  # type: ignore[misc]
        running = [asyncio.ensure_future(job) for job in jobs]
        for number in range(beside):
            await asyncio.sleep(0.001)
            deadline = time.monotonic() + 60
            await batcher.submit([Row(f"single{number}")], key="single", deadline=deadline)
        found = list(await asyncio.gather(*running))
        await batcher.stop(5.0)
        return found

    return asyncio.run(run())


def test_each_stream_gets_its_answers_in_order_and_they_take_turns() -> None:
    engine = Engine()
    streams = [[f"{name}{n}" for n in range(100)] for name in "ab"]
    assert answers(engine, *streams) == streams
    begins = [batch[0][0] for batch in engine.batches]
    assert begins[:3] == ["a", "b", "a"]
    assert all(len({name[0] for name in batch}) == 1 for batch in engine.batches)


@pytest.mark.parametrize(("seconds_a_row", "rows"), [(0.01, 2), (0.002, 6), (0.0, 128)])
def test_batches_are_as_short_as_the_engine_is_slow(seconds_a_row: float, rows: int) -> None:
    engine = Engine(seconds_a_row)
    answers(engine, [f"a{n}" for n in range(600)])
    sizes = [len(batch) for batch in engine.batches]
    assert sizes[0] == 8  # 128 tokens, while the speed is not known
    assert set(sizes[1:-1]) == {rows}


def test_requests_beside_a_stream_wait_for_one_batch_of_it_at_most() -> None:
    engine = Engine(seconds_a_row=0.01)
    answers(engine, [f"a{n}" for n in range(400)], beside=10)
    singles = [batch for batch in engine.batches if batch[0].startswith("single")]
    assert singles == [[f"single{number}"] for number in range(10)]


def test_a_row_that_breaks_the_engine_costs_no_other_row() -> None:
    (found,) = answers(Engine(), ["a", "bad", "b"])
    assert [type(outcome) for outcome in found] == [str, BatchFailedError, str]
