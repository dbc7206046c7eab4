"""Command line of `training.fit`: flags made from `FitConfig`, errors, the closing summary."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from deltas.delta import Delta
from training import strategies
from training.config import FitConfig
from training.errors import listing
from training.loop import CLIP_NORM

_MOST_LABELS = 20  # of a summary; the manifest has all


def parse_arguments(words: Sequence[str]) -> FitConfig | int:
    """Turn words into options, or into an exit code: 0 after help, 2 after misuse."""
    parser = _parser()
    try:
        given = vars(parser.parse_args(list(words)))
    except SystemExit as stop:
        return int(stop.code or 0)
    if given.get("freeze") == "help":
        sys.stdout.write(
            f"--freeze takes one of these, or several joined by +:\n{strategies.describe_rules()}\n"
        )
        return 0
    try:
        return FitConfig.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            flag = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"][:1])
            value = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
            sys.stderr.write(
                f"error: {flag}{problem['msg'].removeprefix('Value error, ')}{value}\n"
            )
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit",
        description="Fine-tune a task over the frozen backbone and write its delta. The optimiser "
        f"is AdamW; each step's gradient, of overlay and head together, is cut to a norm of "
        f"{CLIP_NORM}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in FitConfig.model_fields.items():
        flag = f"--{(field.alias or name).replace('_', '-')}"
        default = field.default
        if isinstance(default, bool):
            parser.add_argument(
                flag, dest=field.alias or name, action="store_true", help=field.description
            )
            continue
        told = "" if default in (None, "") else f" (default: {default})"
        help_text = f"{field.description}{told}".replace("%", "%%")
        parser.add_argument(flag, dest=field.alias or name, metavar=name.upper(), help=help_text)
    return parser


def summary(path: Path, delta: Delta) -> dict[str, Any]:
    """What a user wants to know of a finished run."""
    manifest = delta.manifest
    return {
        "file": str(path),
        "bytes": delta.num_bytes,
        "version": delta.version,
        "task": manifest.task.name,
        "kind": manifest.task.kind,
        "labels": list(manifest.task.labels),
        "strategy": manifest.strategy.served_as,
        "trained_parameters": manifest.trainable_parameters,
        "total_parameters": manifest.total_parameters,
        "duration_s": manifest.training.duration_s,
        "learning_rate": manifest.training.learning_rate,
        "data_note": manifest.training.data_note,
        "metrics": {split: part.model_dump() for split, part in manifest.metrics.items()},
    }


def print_summary(path: Path, delta: Delta, *, as_json: bool) -> None:
    """Print the summary to standard output, for people or as one JSON object."""
    facts = summary(path, delta)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    trained, total = facts["trained_parameters"], facts["total_parameters"]
    lines = [
        f"delta      {facts['file']}  ({facts['bytes'] / 1000:,.1f} kB, "
        f"version {facts['version']})",
        f"task       {facts['task']}  "
        f"({facts['kind']}: {listing(facts['labels'] or ['a number'])})",
        f"trained    {trained:,} of {total:,} parameters ({100 * trained / total:.3f} %), "
        "head included",
        f"time       {facts['duration_s']:,.0f} s",
    ]
    if facts["data_note"]:
        lines.append(f"data       {facts['data_note']}")
    for split, part in facts["metrics"].items():
        values = "  ".join(f"{name} {value:.4f}" for name, value in part["values"].items())
        note = f"  [{part['note']}]" if part["note"] else ""
        lines.append(f"{split:10} {values}  ({part['rows']:,} rows){note}")
        lines += _label_lines(part["by_label"])
    sys.stdout.write("\n".join(lines) + "\n")


def _label_lines(by_label: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each label, the worst answered first; of many only those."""
    worst = sorted(by_label, key=lambda label: (by_label[label]["f1"], label))
    if not worst:
        return []
    shown = worst[:_MOST_LABELS]
    width = max(len(label) for label in shown)
    lines = [
        f"  {label:{width}}  precision {found['precision']:.3f}  recall {found['recall']:.3f}  "
        f"f1 {found['f1']:.3f}  ({found['rows']:,} rows)"
        for label in shown
        for found in [by_label[label]]
    ]
    more = len(worst) - len(shown)
    return [*lines, f"  and {more} more labels in the manifest"] if more else lines
