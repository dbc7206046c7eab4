"""Counts how often several tasks fire on innocent rows: `python -m deltas joint ROWS DELTA...`.

A fan-out of yes/no tasks fires wrongly more often than each of them: the rate that counts is that
of rows on which at least one task fires. The rows of the file are innocent because the user says
so; nothing is read but their texts. Read `audit.firing` for the labels that count, and
`audit.answers` for the answers.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audit.options import delimited_options, parser_of, run_audit
from audit.shares import Share, percent
from deltas.errors import home_path, one_line

if TYPE_CHECKING:
    from audit.firing import Decision, Firing
    from audit.rows import AuditedRows
    from deltas.store.store import Record

_SHOWN_ROWS = 10


@dataclass(frozen=True)
class TaskCount:
    """The number of rows on which one task fires, and of those that it gives no answer."""

    name: str
    record: Record
    firing: Firing
    fired: Share
    no_answer: int
    truncated: int


@dataclass(frozen=True)
class JointCount:
    """The counts of all tasks; `fired_rows` has the tasks that fire, by number of the row."""

    rows: AuditedRows
    computed: str  # precision and device
    tasks: list[TaskCount]
    fired: Share  # rows on which at least one task fires
    fired_rows: dict[int, list[str]]

    @property
    def independent_rate(self) -> float:
        """The rate to expect if the tasks fired independently of each other."""
        return 1 - math.prod(1 - task.fired.rate for task in self.tasks)

    def as_json(self) -> dict[str, object]:
        """Return the report for programs."""
        return {
            "file": str(self.rows.path),
            "rows": len(self.rows),
            "computed": self.computed,
            "tasks": [
                {
                    "task": task.record.manifest.task.name,
                    "strategy": task.record.manifest.strategy.served_as,
                    "version": task.record.version,
                    "fires_on": list(task.firing.labels),
                    "chosen": task.firing.reason,
                    "fired": task.fired.as_json(),
                    "no_answer": task.no_answer,
                    "truncated": task.truncated,
                }
                for task in self.tasks
            ],
            "at_least_one": self.fired.as_json(),
            "independent_rate": self.independent_rate,
            "fired_rows": [
                {"row": number, "tasks": names} for number, names in self.fired_rows.items()
            ],
        }

    def as_text(self) -> str:
        """Return the report for people."""
        tasks = self.tasks
        lines = [f"{len(self.rows):,} rows of {self.rows.path.name}, {self.computed}"]
        width = max(len(task.name) for task in tasks)
        for task in tasks:
            labels = task.firing.labels
            shown = ", ".join(map(one_line, labels[:3])) + (" ..." if len(labels) > 3 else "")
            lines.append(
                f"{task.name:{width}}  fires on {shown} ({task.firing.reason}): {task.fired}"
            )
            if task.no_answer:
                lines.append(f"{'':{width}}  no answer: {Share(task.no_answer, len(self.rows))}")
            if task.truncated:
                lines.append(f"{'':{width}}  {task.truncated:,} rows are cut to the maximum length")
        lines.append(f"at least one task fires: {self.fired}")
        lines.append(f"to expect if the tasks were independent: {percent(self.independent_rate)}")
        if numbers := list(self.fired_rows):
            more = len(numbers) - _SHOWN_ROWS
            rest = f" and {more:,} more (--json has all)" if more > 0 else ""
            lines.append(
                f"rows: {', '.join(f'{number:,}' for number in numbers[:_SHOWN_ROWS])}{rest}"
            )
        if not all("--fires" in task.firing.reason for task in tasks):
            lines.append("--fires TASK=LABEL names another label")
        return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deltas joint") -> int:
    """Run the command; returns the exit code: 0 done, 1 unusable data, 2 misuse."""
    parser = parser_of(
        prog,
        "Count how often tasks fire on rows that you know to be innocent: each task, and at least "
        "one of them.",
    )
    add = parser.add_argument
    add("rows", type=home_path, help="file of innocent rows: CSV, TSV, JSON Lines, parquet, Arrow")
    add(
        "deltas",
        nargs="+",
        type=home_path,
        help="delta files; or folders, of which every task's default delta is taken",
    )
    add("--tasks", help="tasks of the folders, joined by commas: joy,fear/head (default: all)")
    add(
        "--fires",
        action="append",
        default=[],
        metavar="TASK=LABEL",
        help="the label on which a task fires; may be repeated; '*' is any answer (default: of two "
        "labels the affirmative or rarer one, of a multi-label task any)",
    )
    return run_audit(parser, arguments, count_joint)


def count_joint(options: argparse.Namespace) -> JointCount:
    """Answer the rows by every delta and count.

    Raises:
        DeltaError: a delta can't be used.
        TrainingError: the options or the rows can't be used.
    """
    # Imported late: these import torch, and `--help` must not wait for it.
    from app.pipeline.bulk.run import open_engine
    from app.pipeline.predictions import to_predictions
    from audit.answers import choose_records, names_of, predict
    from audit.firing import firing_of, parse_fires
    from audit.rows import columns_of, read_rows
    from deltas.backbone.backbone import load_backbone
    from training.data.custom import split_names

    backbone = load_backbone(options.backbone)
    wanted = split_names(options.tasks) if options.tasks else ()
    records = choose_records(options.deltas, wanted, backbone)
    specs = [record.manifest.task for record in records]
    fires = parse_fires(options.fires, [spec.name for spec in specs])
    firings = [firing_of(record.manifest, fires) for record in records]
    columns = [columns_of(spec, options.text_columns) for spec in specs]
    every = [column for of_task in columns for column in of_task]
    rows = read_rows(options.rows, every, delimited_options(options), options.text_columns)
    engine = open_engine(records, backbone, device=options.device, precision=options.precision)
    texts = [rows.of_columns(of_task) for of_task in columns]
    logits = predict(engine, list(zip(records, texts, strict=True)))
    decided: list[list[Decision]] = []
    for record, found in zip(records, logits, strict=True):
        manifest = record.manifest
        predictions = to_predictions(manifest.task, found, None, manifest.decision)
        decided.append([prediction.decision for prediction in predictions])
    names = names_of(records)
    fired = _fired_rows(rows, names, firings, decided)
    tasks = [
        TaskCount(
            name=name,
            record=record,
            firing=firing,
            fired=Share(sum(map(firing.fires, decisions)), len(rows)),
            no_answer=sum(decision is None for decision in decisions),
            truncated=sum(row.truncated for row in found),
        )
        for name, record, firing, decisions, found in zip(
            names, records, firings, decided, logits, strict=True
        )
    ]
    computed = f"{engine.precision} on {engine.device.type}"
    return JointCount(rows, computed, tasks, Share(len(fired), len(rows)), fired)


def _fired_rows(
    rows: AuditedRows,
    names: Sequence[str],
    firings: Sequence[Firing],
    decided: Sequence[Sequence[Decision]],
) -> dict[int, list[str]]:
    """Return the names of the tasks that fire, by the number of each row on which one does."""
    fired: dict[int, list[str]] = {}
    for number, decisions in zip(rows.numbers, zip(*decided, strict=True), strict=True):
        found = [
            name
            for name, firing, decision in zip(names, firings, decisions, strict=True)
            if firing.fires(decision)
        ]
        if found:
            fired[number] = found
    return fired
