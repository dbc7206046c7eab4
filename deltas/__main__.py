"""Inspect deltas: `python -m deltas list|show|verify|cards|export`.

Results go to standard output, complaints to standard error.
Exit codes: 0 all is well, 1 something is wrong with a delta, 2 misuse.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from deltas.backbone.backbone import load_backbone
from deltas.delta import Delta
from deltas.errors import DeltaError
from deltas.format import check_delta, read_delta, read_manifest, write_atomically
from deltas.manifest import DataSetRef, EntryInfo, Manifest
from deltas.publish.card import card_path, render_card
from deltas.publish.export import export_folder
from deltas.store import Store, zoo_path

_MOST_LABELS = 12


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except DeltaError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:
        return 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deltas", description="Inspect delta files.")
    commands = parser.add_subparsers(required=True, metavar="command")

    listing = commands.add_parser(
        "list", help="one line for each delta below a folder (default: the shipped zoo)"
    )
    listing.add_argument("folders", nargs="*", type=Path)
    listing.add_argument("--json", action="store_true", help="one JSON object a line")
    listing.set_defaults(run=_list)

    show = commands.add_parser("show", help="what one delta says about itself")
    show.add_argument("file", type=Path)
    show.add_argument("--json", action="store_true", help="the manifest as JSON")
    show.set_defaults(run=_show)

    verify = commands.add_parser(
        "verify", help="check files completely, against their backbone too"
    )
    verify.add_argument("files", nargs="+", type=Path, help="delta files, or folders of them")
    verify.add_argument("--backbone", help="hub id or folder (default: the packaged one)")
    verify.set_defaults(run=_verify)

    cards = commands.add_parser("cards", help="write a model card beside every delta of a folder")
    cards.add_argument("folder", type=Path)
    cards.set_defaults(run=_cards)

    export = commands.add_parser("export", help="write a folder that stock transformers loads")
    export.add_argument("file", type=Path)
    export.add_argument("folder", type=Path)
    export.add_argument("--backbone", help="hub id or folder (default: the packaged one)")
    export.set_defaults(run=_export)
    return parser


def _list(options: argparse.Namespace) -> int:
    folders = options.folders or [zoo_path()]
    for folder in folders:
        if not folder.is_dir():
            raise DeltaError(f"{folder} is not a folder")
    store = Store(folders)
    for record in store.records:
        manifest = record.manifest
        split = manifest.validation_split
        value = manifest.metrics[split].values.get(manifest.primary_metric) if split else None
        facts = {
            "task": manifest.task.name,
            "strategy": manifest.strategy.served_as,
            "version": record.version,
            "backbone": manifest.backbone.id,
            "bytes": record.num_bytes,
            "metric": manifest.primary_metric,
            "value": value,
            "file": str(record.path),
        }
        if options.json:
            _say(json.dumps(facts))
        else:
            score = f"{facts['metric']} {value:.4f}" if value is not None else "no metric"
            size = f"{record.num_bytes / 1000:,.1f} kB"
            _say(
                f"{facts['task']:10} {facts['strategy']:16} {record.version}  {size:>12}  "
                f"{score:18} {record.path}"
            )
    for path, reason in store.rejected:
        sys.stderr.write(f"refused {path}: {reason}\n")
    return 1 if store.rejected else 0


def _show(options: argparse.Namespace) -> int:
    manifest, version = read_manifest(options.file)
    if options.json:
        _say(manifest.model_dump_json(indent=2))
        return 0
    facts = {
        "file": f"{options.file} ({options.file.stat().st_size / 1000:,.1f} kB)",
        "version": f"{version} (format {manifest.format_version})",
        **_described(manifest),
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        _say(f"{name:{width}}  {value}")
    return 0


def _described(manifest: Manifest) -> dict[str, str]:
    """The manifest in a person's words, by heading."""
    task, training, strategy = manifest.task, manifest.training, manifest.strategy
    share = 100 * manifest.trainable_parameters / manifest.total_parameters
    labels = ", ".join(task.labels[:_MOST_LABELS])
    if len(task.labels) > _MOST_LABELS:
        labels += f" and {len(task.labels) - _MOST_LABELS} more"
    facts = {
        "backbone": f"{manifest.backbone.id} {manifest.backbone.fingerprint}",
        "task": f"{task.name} ({task.kind}); fields {', '.join(task.text_fields)}; "
        f"at most {task.max_length} tokens",
        "labels": labels or "none: a number",
        "strategy": f"{strategy.name}, reinit {strategy.reinit}, seed {strategy.seed}",
        "trained": f"{manifest.trainable_parameters:,} of {manifest.total_parameters:,} parameters "
        f"({share:.3f} %)",
        "entries": _entries(manifest.entries),
        "data": f"{training.data}{_named(training.data_set)}, {training.train_rows:,} train rows"
        f"{_noted(training.data_note)}",
        "training": f"{training.epochs:g} epochs, {training.steps:,} steps of "
        f"{training.batch_size}, learning rate {training.learning_rate:g}, "
        f"{training.precision} on {training.device}, {training.duration_s:,.0f} s",
        "command": training.command,
    }
    for split, part in manifest.metrics.items():
        values = ", ".join(f"{name} {value:.4f}" for name, value in part.values.items())
        facts[split] = f"{values} ({part.rows:,} rows){_noted(part.note)}"
    return facts


def _named(data_set: DataSetRef | None) -> str:
    return f" {data_set.spelled} ({data_set.train_split})" if data_set else ""


def _noted(note: str) -> str:
    return f" [{note}]" if note else ""


def _entries(entries: Sequence[EntryInfo]) -> str:
    kinds = [entry.kind for entry in entries]
    return f"{kinds.count('dense')} dense, {kinds.count('sparse')} sparse"


def _verify(options: argparse.Namespace) -> int:
    backbone = load_backbone(options.backbone)
    files: list[Path] = []
    for path in options.files:
        files += sorted(path.rglob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise DeltaError("no delta files there")
    wrong = 0
    for path in files:
        try:
            delta = read_delta(path)
            check_delta(delta, backbone)
        except DeltaError as error:
            wrong += 1
            _say(f"WRONG  {path}: {str(error).removeprefix(f'{path}: ')}")
        else:
            _say(f"ok     {path}  {delta.version}")
    return 1 if wrong else 0


def _cards(options: argparse.Namespace) -> int:
    files = sorted(options.folder.rglob("*.safetensors"))
    if not files:
        raise DeltaError("no delta files there")
    for path in files:
        write_atomically(card_path(path), render_card(path).encode())
        _say(str(card_path(path)))
    return 0


def _export(options: argparse.Namespace) -> int:
    delta: Delta = read_delta(options.file)
    export_folder(delta, load_backbone(options.backbone), options.folder)
    _say(
        f"{options.folder}: load it with "
        f"AutoModelForSequenceClassification.from_pretrained({str(options.folder)!r})"
    )
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
