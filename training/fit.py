"""One training run: `python -m training.fit --task qnli --freeze bitfit`.

Turns flags into options, and prints the summary of the finished run. The run itself is
`training.run.train_delta`: read it next, then `training.run.prepare`, `training.run.task_model`,
`training.run.loop.loop`, `deltas.encoder.single_overlay` and `deltas.format`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from deltas.errors import one_line
from deltas.publish.card import describe, in_columns
from training.errors import run_command
from training.options import FitConfig, flag_of
from training.run.plan.render import baseline_line, plan_json, plan_lines
from training.strategies import grammar

if TYPE_CHECKING:
    from deltas.delta import Delta
    from deltas.manifest import LabelMetrics
    from training.run.plan.facts import Baseline
    from training.run.plan.plan import RunPlan

_MAX_LABELS, _MAX_SHOWN = 20, 40  # labels in a summary, and characters of one
_INTERRUPTED = (
    "stopped; to continue from the last evaluation, if there was one, run the same command with "
    "--resume"
)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m training.fit") -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 misuse, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _fit(words, prog), _INTERRUPTED)


def _fit(words: Sequence[str], prog: str) -> int:
    config = parse_arguments(words, prog)
    # Imported late: these import torch, and `--help` must not wait for it.
    from deltas.hardware import keep_freed_memory
    from training.run import distributed
    from training.run.plan.plan import make_plan
    from training.run.train_delta import finish_run, prepare_run

    keep_freed_memory()
    with distributed.joined(config.device):
        command = shlex.join(["python", "-m", "training.fit", *words])
        run = prepare_run(config)
        plan = make_plan(run)
        if distributed.is_first():
            print_plan(plan, config)
        if config.dry_run:
            return 0
        path, delta = finish_run(run, command=command)
        if distributed.is_first():
            print_summary(path, delta, plan.facts.baseline, as_json=config.json_)
    return 0


def parse_arguments(words: Sequence[str], prog: str = "python -m training.fit") -> FitConfig:
    """Turn the command line into options; exits with 0 after help, and with 2 after misuse."""
    given = vars(_parser(prog).parse_args(list(words)))
    if given.get("freeze") == "help":
        sys.stdout.write(
            f"--freeze takes one of these, or several joined by +:\n{grammar.describe_rules()}\n"
        )
        raise SystemExit(0)
    try:
        return FitConfig.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            flag = "".join(f"{flag_of(str(part))}: " for part in problem["loc"][:1])
            value = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r})"
            message = problem["msg"].removeprefix("Value error, ")
            sys.stderr.write(f"error: {flag}{message}{value}\n")
        raise SystemExit(2) from error


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Fine-tune a task over the frozen backbone and write its delta. The optimiser "
        "is AdamW.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in FitConfig.model_fields.items():
        given_as = field.alias or name
        default = "" if field.default in (None, "") else f" (default: {field.default})"
        shape: dict[str, Any] = {"metavar": name.upper()}
        if field.annotation is bool:
            shape, default = {"action": "store_true"}, ""
        elif name == "example":
            shape["action"] = "append"
        text = f"{field.description}{default}".replace("%", "%%")
        parser.add_argument(flag_of(given_as), dest=given_as, help=text, **shape)
    return parser


def print_plan(plan: RunPlan, config: FitConfig) -> None:
    """Print the plan of a run: to standard output if it is all that was asked for."""
    if config.dry_run and config.json_:
        sys.stdout.write(plan_json(plan))
        return
    # Before a run the warnings of the reading are on standard error already.
    odd = [*plan.warnings, *plan.oddities] if config.dry_run else plan.oddities
    stream = sys.stdout if config.dry_run else sys.stderr
    stream.write(in_columns(plan_lines(plan)) + "".join(f"odd: {line}\n" for line in odd))


def print_summary(path: Path, delta: Delta, baseline: Baseline, *, as_json: bool) -> None:
    """Print the summary of a run to standard output, for people or as one JSON object."""
    manifest = delta.manifest
    training, metrics = manifest.training, manifest.metrics
    if as_json:
        facts: dict[str, Any] = {
            "file": str(path),
            "bytes": delta.num_bytes,
            "version": delta.version,
            "task": manifest.task.name,
            "kind": manifest.task.kind,
            "labels": list(manifest.task.labels),
            "strategy": manifest.strategy.served_as,
            "trained_parameters": manifest.trainable_parameters,
            "total_parameters": manifest.total_parameters,
            "duration_s": training.duration_s,
            "learning_rate": training.learning_rate,
            "data_note": training.data_note,
            "metrics": {split: part.model_dump() for split, part in metrics.items()},
            "baseline": asdict(baseline),
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    size = f"{delta.num_bytes / 1000:,.1f} kB, version {delta.version}"
    shown = {"delta": f"{path} ({size})", **describe(manifest)}
    shown["baseline"] = baseline_line(baseline, manifest.primary_metric)
    sys.stdout.write(in_columns(shown))
    for split, part in metrics.items():
        sys.stdout.write("".join(f"{line}\n" for line in _label_lines(split, part.by_label)))


def _label_lines(split: str, by_label: Mapping[str, LabelMetrics]) -> list[str]:
    """Return a line for each label, worst F1 first, and a count of the labels left out."""
    ranked = sorted(by_label, key=lambda label: (by_label[label].f1, label))
    shown = ranked[:_MAX_LABELS]
    names = {label: _clipped(one_line(label)) for label in shown}
    width = max(map(len, names.values()), default=0)
    lines = [f"{split} by label, worst first"] if shown else []
    for label in shown:
        found = by_label[label]
        lines.append(
            f"  {names[label]:{width}}  precision {found.precision:.3f}  "
            f"recall {found.recall:.3f}  f1 {found.f1:.3f}  ({found.rows:,} rows)"
        )
    more = len(ranked) - len(shown)
    return [*lines, f"  and {more} more labels in the manifest"] if more else lines


def _clipped(label: str) -> str:
    """Return a label that is short enough for a line of a terminal with its numbers."""
    return label if len(label) <= _MAX_SHOWN else f"{label[: _MAX_SHOWN - 3]}..."


if __name__ == "__main__":
    sys.exit(main())
