"""Measures abstaining: `python -m deltas abstain DELTA --in-scope FILE --out-of-scope FILE`.

A delta with a limit gives no answer where it is not confident. This command counts, on rows of two
files, how many rows in scope are answered (coverage) and how many out of scope are not (recall). It
compares the measures of confidence at equal coverage: the largest logit, and the largest
probability of the head before it was calibrated. Read `deltas.manifest.DecisionRule` for the rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from audit.options import delimited_options, parser_of, run_audit
from audit.shares import Share
from deltas.errors import home_path
from training.errors import ConfigError

if TYPE_CHECKING:
    from deltas.manifest import Confidence, DecisionRule, Manifest
    from deltas.store.store import Record

Logits = list[list[float]]


@dataclass(frozen=True)
class Abstained:
    """Rows in scope that are answered, and rows out of scope that are not."""

    coverage: Share
    recall: Share


@dataclass(frozen=True)
class MeasuredConfidence:
    """A measure of confidence at the asked coverage, and how well it separates both files."""

    name: str
    limit: float
    counts: Abstained
    auroc: float  # probability that a row in scope has more confidence than one out of scope


@dataclass(frozen=True)
class AbstainReport:
    """Everything that was measured; `stored` is None if the delta always answers."""

    record: Record
    files: tuple[Path, Path]  # rows in scope, and out of scope
    computed: str  # precision and device
    wanted: float  # the asked coverage
    stored: Abstained | None
    measures: list[MeasuredConfidence]

    def as_json(self) -> dict[str, object]:
        """Return the report for programs."""
        manifest = self.record.manifest
        stored = self.stored and _counts_json(self.stored)
        rule: DecisionRule | None = manifest.decision
        return {
            "task": manifest.task.name,
            "strategy": manifest.strategy.served_as,
            "version": self.record.version,
            "computed": self.computed,
            "in_scope": str(self.files[0]),
            "out_of_scope": str(self.files[1]),
            "asked_coverage": self.wanted,
            "decision": rule and rule.model_dump(mode="json"),
            "stored": stored,
            "measures": [
                {
                    "confidence": each.name,
                    "limit": each.limit,
                    "auroc": each.auroc,
                    **_counts_json(each.counts),
                }
                for each in self.measures
            ],
        }

    def as_text(self) -> str:
        """Return the report for people."""
        task, strategy = self.record.manifest.key
        known, foreign = self.files
        rule = self.record.manifest.decision
        first = self.measures[0].counts
        lines = [
            f"{task}/{strategy}, version {self.record.version}, {self.computed}",
            f"{first.coverage.total:,} rows in scope ({known.name}), "
            f"{first.recall.total:,} out of scope ({foreign.name})",
            "",
        ]
        if self.stored is None or rule is None:
            lines.append(
                "no limit is stored in the delta: it always answers (fit --coverage sets one)"
            )
        else:
            lines.append(f"limit stored in the delta: {rule.confidence} {rule.limit:.4g}")
            lines += _count_lines(self.stored)
        lines += [
            "",
            f"at an in-scope coverage of {self.wanted:g}, with a limit chosen on these rows:",
        ]
        for each in self.measures:
            lines.append(f"{each.name}, AUROC {each.auroc:.3f}")
            lines += _count_lines(each.counts)
        return "".join(f"{line}\n" for line in lines)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deltas abstain") -> int:
    """Run the command; returns the exit code: 0 done, 1 unusable data, 2 misuse."""
    parser = parser_of(
        prog,
        "Measure how many rows out of scope get no answer (recall) while rows in scope do "
        "(coverage).",
    )
    add = parser.add_argument
    add("delta", type=home_path, help="delta file of a single-label task")
    add("--in-scope", type=home_path, required=True, help="file of rows that have a label")
    add("--out-of-scope", type=home_path, required=True, help="file of rows that have none")
    add(
        "--coverage",
        type=float,
        default=0.95,
        help="share of the rows in scope to answer (default: 0.95)",
    )
    return run_audit(parser, arguments, measure)


def measure(options: argparse.Namespace) -> AbstainReport:
    """Answer the rows of both files and count.

    Raises:
        DeltaError: the delta can't be used.
        TrainingError: the options or the rows can't be used.
    """
    # Imported late: these import torch, and `--help` must not wait for it.
    import numpy as np

    from app.pipeline.bulk.run import open_engine
    from audit.answers import choose_records, predict
    from audit.rows import columns_of, read_rows
    from deltas.backbone.backbone import load_backbone
    from training.run.head.calibration import uncalibrated

    if not 0 < options.coverage <= 1:
        raise ConfigError(f"--coverage {options.coverage:g}: give a share above 0, at most 1")
    if options.delta.is_dir():
        raise ConfigError(f"{options.delta} is a folder; name one delta's file in it")
    backbone = load_backbone(options.backbone)
    (record,) = choose_records([options.delta], (), backbone)
    manifest = record.manifest
    if manifest.task.kind != "single_label":
        raise ConfigError(
            f"{manifest.task.name!r} is a {manifest.task.kind} task, which always answers; only "
            "single-label tasks can give no answer"
        )
    columns = columns_of(manifest.task, options.text_columns)
    files = options.in_scope, options.out_of_scope
    delimited = delimited_options(options)
    both = [read_rows(path, columns, delimited, options.text_columns) for path in files]
    engine = open_engine([record], backbone, device=options.device, precision=options.precision)
    found = [predict(engine, [(record, rows.of_columns(columns))])[0] for rows in both]
    known, foreign = ([row.logits for row in rows] for rows in found)
    known_before, foreign_before = (
        uncalibrated(np.array(rows), manifest.calibration).tolist() for rows in (known, foreign)
    )
    return AbstainReport(
        record=record,
        files=files,
        computed=f"{engine.precision} on {engine.device.type}",
        wanted=options.coverage,
        stored=_stored(manifest, known, foreign),
        measures=[
            _measured("largest logit", "max_logit", (known, foreign), options.coverage),
            _measured(
                _uncalibrated_name(manifest),
                "probability",
                (known_before, foreign_before),
                options.coverage,
            ),
        ],
    )


def _uncalibrated_name(manifest: Manifest) -> str:
    name = "largest probability"
    return (
        f"{name}, uncalibrated" if manifest.calibration else f"{name} (the head has no calibration)"
    )


def _stored(manifest: Manifest, known: Logits, foreign: Logits) -> Abstained | None:
    rule = manifest.decision
    if rule is None or rule.limit is None:
        return None
    return Abstained(
        Share(sum(map(rule.answers, known)), len(known)),
        Share(sum(not rule.answers(row) for row in foreign), len(foreign)),
    )


def _measured(
    name: str, confidence: Confidence, logits: tuple[Logits, Logits], coverage: float
) -> MeasuredConfidence:
    """Measure a confidence with the limit that answers a share of the rows in scope.

    `logits` are those of the rows in scope, and of the rows out of scope.
    """
    from sklearn.metrics import roc_auc_score

    from deltas.manifest import DecisionRule
    from training.run.head.thresholds import num_answered

    unit = DecisionRule(confidence=confidence)
    inside, outside = (list(map(unit.confidence_of, rows)) for rows in logits)
    limit = sorted(inside, reverse=True)[num_answered(coverage, len(inside)) - 1]
    counts = Abstained(
        Share(sum(value >= limit for value in inside), len(inside)),
        Share(sum(value < limit for value in outside), len(outside)),
    )
    is_known = [1] * len(inside) + [0] * len(outside)
    return MeasuredConfidence(name, limit, counts, float(roc_auc_score(is_known, inside + outside)))


def _counts_json(counts: Abstained) -> dict[str, object]:
    return {"coverage": counts.coverage.as_json(), "recall": counts.recall.as_json()}


def _count_lines(counts: Abstained) -> list[str]:
    return [
        f"  answered in scope          {counts.coverage}",
        f"  no answer out of scope     {counts.recall}",
    ]
