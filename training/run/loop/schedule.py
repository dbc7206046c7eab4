"""Batch order, learning-rate schedule and evaluation steps of a run.

All are pure functions of the options: random draws are seeded anew from the seed and the epoch, so
a resumed run needs no generator's state. The loop that uses them is `training.run.loop.loop`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltas.backbone.tokenizer import TokenizedRow
from training.options import CLIP_NORM, BatchOrder, Decay

_BUCKET_BATCHES = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class LoopConfig:
    """Options of the loop, resolved to numbers; `training.options.FitConfig` explains them."""

    steps: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    warmup: float
    weight_decay: float
    dropout: float
    evals: int
    seed: int
    decay: Decay = "linear"
    head_start: str = "random"  # or "solved", or "given" by another delta
    accumulate: int = 1
    batch_order: BatchOrder = "length"
    clip_norm: float = CLIP_NORM  # 0 clips nothing
    label_smoothing: float = 0.0
    patience: int | None = None

    @property
    def step_rows(self) -> int:
        """Rows of one step."""
        return self.batch_size * self.accumulate


def evaluation_steps(config: LoopConfig) -> set[int]:
    """Return the steps after which a run is evaluated; the last step is one of them."""
    return {math.ceil(config.steps * (n + 1) / config.evals) for n in range(config.evals)}


def rate_factor(step: int, config: LoopConfig) -> float:
    """Return the learning rate of a step as a share of its peak: a linear rise, then the decay.

    Linear decay reaches 0 one step after the last. Cosine decay follows half a wave (Loshchilov and
    Hutter 2017, arXiv:1608.03983, without restarts).
    """
    rising = max(1, round(config.warmup * config.steps))
    if step <= rising:
        return step / rising
    if config.decay == "constant":
        return 1.0
    left = max(0.0, (config.steps - step + 1) / (config.steps - rising + 1))
    return left if config.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def batches(rows: Sequence[TokenizedRow], config: LoopConfig) -> Iterator[list[int]]:
    """Yield the positions of each step's rows, each row once an epoch.

    Rows of like length stand together, unless the order is "random".
    """
    size = config.step_rows
    bucket = size * (_BUCKET_BATCHES if config.batch_order == "length" else 1)
    made, epoch = 0, 0
    while made < config.steps:
        draw = random.Random(f"{config.seed} {epoch}")
        order = list(range(len(rows)))
        draw.shuffle(order)
        cut: list[list[int]] = []
        for start in range(0, len(order), bucket):
            part = sorted(
                order[start : start + bucket], key=lambda position: rows[position].num_tokens
            )
            cut += [part[at : at + size] for at in range(0, len(part), size)]
        draw.shuffle(cut)
        yield from cut[: config.steps - made]
        made += len(cut)
        epoch += 1


def length_batches(rows: Sequence[TokenizedRow], max_tokens: int) -> Iterator[list[int]]:
    """Yield the positions of all rows, shortest rows first, in batches of at most `max_tokens`."""
    part: list[int] = []
    tokens = 0
    for position in sorted(range(len(rows)), key=lambda index: rows[index].num_tokens):
        if part and tokens + rows[position].num_tokens > max_tokens:
            yield part
            part, tokens = [], 0
        part.append(position)
        tokens += rows[position].num_tokens
    if part:
        yield part
