"""When what happens in a run: which rows each step sees, its learning rate, when it is judged.

All of it is a function of the options: no generator runs along with the training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltas.backbone.tokenizer import TokenizedRow
from training.options import Decay

_POOL_BATCHES = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class LoopConfig:
    """Options of the loop, resolved to numbers.

    Attributes:
        steps: of the optimiser.
        batch_size: rows that are computed together.
        learning_rate: highest, of the overlay.
        head_learning_rate: highest, of the head.
        warmup: share of the steps in which the rate rises.
        weight_decay: AdamW's.
        dropout: probability.
        evals: judgements in the whole run.
        seed: of the order of rows and of dropout.
        decay: how the rate goes on after it has risen.
        accumulate: batches that make one step.
        label_smoothing: share of each label's probability that is spread over all.
        patience: judgements without a better one after which the run ends; None is never.
    """

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
    accumulate: int = 1
    label_smoothing: float = 0.0
    patience: int | None = None

    @property
    def step_rows(self) -> int:
        """Rows of one step."""
        return self.batch_size * self.accumulate


def evaluation_steps(config: LoopConfig) -> set[int]:
    """The steps after which a run is judged; the last one is among them."""
    return {math.ceil(config.steps * (n + 1) / config.evals) for n in range(config.evals)}


def rate(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate at a step: a linear rise, then the decay.

    Linear falls to 0 a step after the last, cosine along half a wave (Loshchilov and Hutter 2017,
    arXiv:1608.03983, without restarts), constant not at all.
    """
    rising = max(1, round(config.warmup * config.steps))
    if step <= rising:
        return step / rising
    if config.decay == "constant":
        return 1.0
    left = max(0.0, (config.steps - step + 1) / (config.steps - rising + 1))
    return left if config.decay == "linear" else 0.5 * (1.0 - math.cos(math.pi * left))


def batches(rows: Sequence[TokenizedRow], config: LoopConfig) -> Iterator[list[int]]:
    """Positions of each step's rows: each once an epoch, in random batches of like length."""
    size = config.step_rows
    made, epoch = 0, 0
    while made < config.steps:
        draw = random.Random(f"{config.seed} {epoch}")
        order = list(range(len(rows)))
        draw.shuffle(order)
        pool = _POOL_BATCHES * size
        cut: list[list[int]] = []
        for start in range(0, len(order), pool):
            part = sorted(
                order[start : start + pool], key=lambda position: rows[position].num_tokens
            )
            cut += [part[at : at + size] for at in range(0, len(part), size)]
        draw.shuffle(cut)
        yield from cut[: config.steps - made]
        made += len(cut)
        epoch += 1
