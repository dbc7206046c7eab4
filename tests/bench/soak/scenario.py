"""Writes the deltas of a soak, and computes every answer alone.

The deltas are a copy of the shipped zoo and made-up ones of every kind of task, pooling and way to
read pairs; these stay as they are. A few more, in several versions, are published, replaced and
removed during the soak (`tests.bench.soak.changing`). An engine with slots for all deltas answers
each row by itself, without a server, a queue or batch neighbours. `tests.bench.soak.calls` makes
requests of the rows.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from app.engine.engine import Engine, has_low_margin
from app.pipeline import RowLogits
from app.pipeline.predictions import answer_of, scores_of
from deltas import Backbone, Record, Store, delta_path, write_delta, zoo_path
from tests.bench.soak.changing import ChangingDelta
from tests.factories import POOLED_TASKS, TOY_TASKS, make_delta
from training.data.glue import load_task

PRECISION = "fp32"  # in which answers may differ by 1e-5 from those computed alone, no more
_STRATEGIES = ("bitfit", "layernorm", "random:0.001", "head")
_WITH_MATRICES = ("toy2", "toysplit")  # tasks that have a delta of strategy top:1, too
_SENTENCES = 6  # at most, in a text
_CHANGING = (
    ("toy2", "bitfit"),
    ("toymulti", "top:1"),
    ("toyreg", "layernorm"),
    ("toysplit", "random:0.001"),
    ("toy3", "head"),
)
_NUM_VERSIONS = 5  # of a changing delta, more than the server keeps
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

    @property
    def num_fields(self) -> int:
        """Return the number of texts that the delta reads."""
        return len(self.record.manifest.task.text_fields)

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
        changing: deltas whose versions come and go.
    """

    backbone: str
    texts: Sequence[tuple[str, str]]
    by_fields: tuple[Sequence[Answers], Sequence[Answers]]
    changing: Sequence[ChangingDelta[Answers]] = ()

    @property
    def answers(self) -> list[Answers]:
        """Return the answers of all deltas."""
        return [*self.by_fields[0], *self.by_fields[1]]

    def row(self, answers: Answers, number: int) -> str | dict[str, str]:
        """Return a text as a delta's row of a request."""
        first, second = self.texts[number]
        return {"text": first, "text_pair": second} if answers.num_fields == 2 else first


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
    by_fields: tuple[list[Answers], list[Answers]] = [], []
    for answers in _answers_alone(backbone, [root], texts):
        if answers.clear:
            by_fields[answers.num_fields - 1].append(answers)
    return Scenario(backbone.ref.id, texts, by_fields)


def make_changing(
    backbone: Backbone, folder: Path, texts: Sequence[tuple[str, str]]
) -> list[ChangingDelta[Answers]]:
    """Write the versions of the changing deltas into a folder, and let each answer each text.

    Raises:
        RuntimeError: there is no text whose label is beyond rounding in all versions.
    """
    roots = [folder / str(seed) for seed in range(_NUM_VERSIONS)]
    tasks = TOY_TASKS | POOLED_TASKS
    for seed, root in enumerate(roots):
        for name, strategy in _CHANGING:
            task = tasks[name].model_copy(update={"name": f"changing-{name}"})
            path = delta_path(root, backbone.ref.id, task.name, strategy)
            write_delta(make_delta(backbone, task, strategy, seed), path)
    of_name: dict[tuple[str, str], dict[str, Answers]] = {}
    for answers in _answers_alone(backbone, roots, texts):
        record = answers.record
        of_name.setdefault(record.manifest.key, {})[record.version] = answers
    changing = []
    for found_name, found in sorted(of_name.items()):
        clear = frozenset.intersection(*(answers.clear for answers in found.values()))
        if not clear:
            raise RuntimeError(f"no text is clear for all versions of {found_name}; --texts more")
        contents = {version: each.record.path.read_bytes() for version, each in found.items()}
        alone = {version: replace(each, clear=clear) for version, each in found.items()}
        changing.append(ChangingDelta(found_name, contents, alone))
    return changing


def _answers_alone(
    backbone: Backbone, roots: Sequence[Path], texts: Sequence[tuple[str, str]]
) -> Iterator[Answers]:
    """Yield the answers of each delta below some folders, each row computed by itself."""
    store = Store(roots, backbone=backbone.ref)
    engine = Engine(backbone, store, device="cpu", precision=PRECISION)
    if store.rejected:
        raise RuntimeError(f"deltas of the soak are refused, which is a fault: {store.rejected}")
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
        yield Answers(record, logits, clear)
