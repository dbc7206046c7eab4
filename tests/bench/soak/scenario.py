"""Writes the deltas of a soak, and computes every answer alone.

The deltas are a copy of the shipped zoo and made-up ones of every kind of task, pooling and way to
read pairs. An engine with slots for all deltas answers each row by itself, without a server, a
queue or batch neighbours. `tests.bench.soak.calls` makes requests of the rows.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.engine.engine import Engine, has_low_margin
from app.pipeline import RowLogits
from app.pipeline.predictions import answer_of, scores_of
from deltas import Backbone, Record, Store, delta_path, write_delta, zoo_path
from tests.factories import POOLED_TASKS, TOY_TASKS, make_delta
from training.data.glue import load_task

PRECISION = "fp32"  # in which answers may differ by 1e-5 from those computed alone, no more
_STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")
_WITH_MATRICES = ("toy2", "toysplit")  # tasks that have a delta of strategy top:1, too
_SENTENCES = 6  # at most, in a text
_CLEAR = 1e-4  # least difference between the last score shown and the first one left out


@dataclass(frozen=True)
class Answers:
    """Holds a delta's logits of each text, computed alone.

    Attributes:
        record: the delta.
        logits: logits of each text, in the order of the texts.
        clear: numbers of the texts for which rounding cannot change a label.
    """

    record: Record
    logits: Sequence[RowLogits]
    clear: frozenset[int]

    def expected(self, numbers: Sequence[int], top_k: int | None = None) -> dict[str, Any]:
        """Return the delta's part of the server's answer to some of the texts."""
        chosen = [self.logits[number] for number in numbers]
        part: dict[str, Any] = answer_of(self.record, chosen, top_k).model_dump(mode="json")
        return part

    def allows(self, numbers: Sequence[int], top_k: int) -> bool:
        """Tell whether rounding cannot change which scores the answers show."""
        kind = self.record.manifest.task.kind
        for number in numbers:
            scores = sorted(scores_of(kind, self.logits[number].logits), reverse=True)
            if top_k < len(scores) and scores[top_k - 1] - scores[top_k] < _CLEAR:
                return False
        return True


@dataclass(frozen=True)
class Scenario:
    """Holds texts, and the answers of each delta to all of them.

    Attributes:
        backbone: id of the backbone.
        texts: two texts each; tasks with one text read the first.
        by_fields: answers of the tasks with one text, and of those with two.
    """

    backbone: str
    texts: Sequence[tuple[str, str]]
    by_fields: tuple[Sequence[Answers], Sequence[Answers]]

    @property
    def answers(self) -> list[Answers]:
        """Return the answers of all deltas."""
        return [*self.by_fields[0], *self.by_fields[1]]

    def row(self, answers: Answers, number: int) -> str | dict[str, str]:
        """Return a text as a delta's row of a request."""
        first, second = self.texts[number]
        is_pair = len(answers.record.manifest.task.text_fields) == 2
        return {"text": first, "text_pair": second} if is_pair else first


def write_soak_deltas(backbone: Backbone, root: Path) -> None:
    """Copy the zoo, if it belongs to the backbone, and write made-up deltas beside it."""
    shipped = zoo_path() / backbone.ref.id
    if shipped.is_dir():
        shutil.copytree(shipped, root / backbone.ref.id)
    for task in (*TOY_TASKS.values(), *POOLED_TASKS.values()):
        strategies = (*_STRATEGIES, "top:1") if task.name in _WITH_MATRICES else _STRATEGIES
        for strategy in strategies:
            path = delta_path(root, backbone.ref.id, task.name, strategy)
            write_delta(make_delta(backbone, task, strategy), path)


def sample_texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Make pairs of texts, of one sentence to several, from the generated sample."""
    chance = random.Random(seed)
    splits = load_task("mnli", "sample").validation.values()
    sentences = [sentence for split in splits for row in split.texts for sentence in row]

    def text() -> str:
        return " ".join(chance.choices(sentences, k=chance.randint(1, _SENTENCES)))

    return [(text(), text()) for _ in range(count)]


def compute_alone(backbone: Backbone, root: Path, texts: Sequence[tuple[str, str]]) -> Scenario:
    """Let each delta below a folder answer each text by itself.

    Leaves out deltas for which rounding could change the label of each of the texts.
    """
    store = Store([root], backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu", precision=PRECISION)
    if store.rejected:
        raise RuntimeError(f"deltas of the soak are refused, which is a fault: {store.rejected}")
    by_fields: tuple[list[Answers], list[Answers]] = [], []
    for record in store.records:
        num_fields = len(record.manifest.task.text_fields)
        logits = []
        for row in engine.tokenize(record, [text[:num_fields] for text in texts]):
            (alone,) = engine.predict([row])
            if isinstance(alone, Exception):
                raise alone
            logits.append(RowLogits(alone, row.tokens.truncated))
        clear = frozenset(
            number
            for number, row in enumerate(logits)
            if not has_low_margin(record.manifest, row.logits)
        )
        if clear:
            by_fields[num_fields - 1].append(Answers(record, logits, clear))
    return Scenario(backbone.ref.id, texts, by_fields)
