"""`python -m deltas` (list, show, verify, cards, export, joint, abstain), and `deltabert`.

Results go to standard output, complaints to standard error. Exit codes: 0 all is well, 1 something
is wrong with a delta or a file, 2 misuse, 130 interrupted. The commands import late, since `--help`
must not wait for torch. The subcommands of `deltabert`, and `joint` and `abstain`, are entry points
(see pyproject.toml), so this package imports none of the packages that define them. A console
script never imports from the current folder; with `python -m`, a user's own `app.py` or `deltas.py`
there would replace our package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING

from deltas.errors import (
    DeltaError,
    DeltaFormatError,
    did_you_mean,
    home_or_name,
    home_path,
    one_line,
    parse_arguments,
    run_command,
)
from deltas.store.address import FORMS, RemoteAddress, parse_root

if TYPE_CHECKING:
    from deltas.store.store import Record

_COMMANDS = {
    "fit": "fine-tune one task and write its delta",
    "sweep": "run every missing training run of a study",
    "report": "write a study's tables and figures",
    "submit": "write a submission to the GLUE leaderboard",
    "zoo": "ship a sweep's best deltas",
    "serve": "serve deltas over HTTP (settings: DELTABERT_*)",
    "cluster": "serve from several replicas on Ray (needs the extra ray)",
    "page": "show a server in the browser (Streamlit's flags are passed on)",
    "predict": "answer files of rows without a server",
    "deltas": "list, show, verify, export and audit delta files, write their model cards",
}
# Commands of `python -m deltas` that read files of rows and run the engine: those of `audit`.
AUDITS = {
    "joint": "count how often several tasks fire on innocent rows, and at least one of them",
    "abstain": "measure how many rows out of scope get no answer while rows in scope do",
}
_BACKBONE_HELP = "hub id or folder (default: the packaged one)"
_ROOTS_HELP = f"folders, as paths, {FORMS}"


def deltabert(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand of `deltabert`; returns its exit code, or 2 for an unknown one."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in _COMMANDS:
        return _run_installed("deltabert.commands", name, rest, "deltabert")
    return run_command(lambda: _overview(name))


def _overview(name: str) -> int:
    """Answer --help, --version or an unknown command; returns the exit code."""
    if name in ("-h", "--help"):
        lines = "".join(f"  {command:8}  {text}\n" for command, text in _COMMANDS.items())
        sys.stdout.write(
            "usage: deltabert COMMAND [FLAGS]\n\nOne frozen BERT, many tasks.\n\ncommands:\n"
            f"{lines}\n`deltabert COMMAND --help` lists a command's flags; --version the release.\n"
        )
        return 0
    if name == "--version":
        sys.stdout.write(f"deltabert {version('deltabert')}\n")
        return 0
    hint = did_you_mean(name, _COMMANDS)
    sys.stderr.write(
        f"error: unknown command {name[:128]!r}.{hint} Allowed: {', '.join(_COMMANDS)}\n"
    )
    return 2


def _run_installed(group: str, name: str, arguments: Sequence[str], prog: str) -> int:
    """Run a command that is an entry point; returns its exit code, or 1 if it is not installed."""
    # Only our own: another package must not replace a command.
    found = distribution("deltabert").entry_points.select(group=group, name=name)
    if not found:
        sys.stderr.write(f"error: deltabert was installed without {name!r}; install it again\n")
        return 1
    code: int = found[name].load()(arguments, prog=f"{prog} {name}")
    return code


def main(arguments: Sequence[str] | None = None, prog: str = "python -m deltas") -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in AUDITS:
        return _run_installed("deltabert.audits", given[0], given[1:], prog)
    options = parse_arguments(_parser(prog), given)
    return run_command(lambda: int(options.command(options)))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Inspect and audit delta files.")
    commands = parser.add_subparsers(required=True, metavar="command")

    listing = commands.add_parser(
        "list", help="print one line for each delta below a folder (default: the shipped zoo)"
    )
    listing.add_argument("folders", nargs="*", type=_root, help=_ROOTS_HELP)
    listing.add_argument("--json", action="store_true", help="print one JSON object per line")
    listing.set_defaults(command=_list)

    show = commands.add_parser("show", help="print the manifest of one delta")
    show.add_argument("file", type=home_path, help="delta file")
    show.add_argument("--json", action="store_true", help="print the manifest as JSON")
    show.set_defaults(command=_show)

    verify = commands.add_parser(
        "verify", help="check files completely, also against their backbone"
    )
    verify.add_argument("files", nargs="+", type=_root, help=f"delta files, {_ROOTS_HELP}")
    verify.add_argument("--backbone", type=home_or_name, help=_BACKBONE_HELP)
    verify.set_defaults(command=_verify)

    cards = commands.add_parser("cards", help="write a model card beside each delta of a folder")
    cards.add_argument("folder", type=home_path, help="folder with deltas")
    cards.set_defaults(command=_cards)

    export = commands.add_parser("export", help="write a folder that stock libraries load")
    export.add_argument("file", type=home_path, help="delta file")
    export.add_argument("folder", type=home_path, help="folder to write into")
    export.add_argument("--backbone", type=home_or_name, help=_BACKBONE_HELP)
    export.set_defaults(command=_export)

    for name, text in AUDITS.items():  # for the list of commands; `main` runs them
        commands.add_parser(name, help=text, add_help=False)
    return parser


def _list(options: argparse.Namespace) -> int:
    from deltas.store.store import Store, zoo_path

    roots = [_local(root) for root in options.folders] or [(zoo_path(), ())]
    for folder, _ in roots:
        if not folder.is_dir():
            raise DeltaError(f"{folder} is not a folder")
    store = Store([folder for folder, _ in roots])
    store.not_copied = dict(roots)
    for record in store.records:
        _print(_list_line(record, as_json=options.json))
    for path, reason in store.all_rejected:
        sys.stderr.write(one_line(f"refused {path}: {reason}") + "\n")
    return 1 if store.all_rejected else 0


def _list_line(record: Record, *, as_json: bool) -> str:
    manifest = record.manifest
    task, strategy = manifest.key
    split = manifest.validation_split
    metric = manifest.primary_metric
    value = manifest.metrics[split].values.get(metric) if split else None
    if as_json:
        facts = {
            "task": task,
            "strategy": strategy,
            "version": record.version,
            "backbone": manifest.backbone.id,
            "bytes": record.num_bytes,
            "metric": metric,
            "value": value,
            "file": str(record.path),
        }
        return json.dumps(facts)
    score = f"{metric} {value:.4f}" if value is not None else "no metric"
    size = f"{record.num_bytes / 1000:,.1f} kB"
    return f"{task:10} {strategy:16} {record.version}  {size:>12}  {score:18} {record.path}"


def _show(options: argparse.Namespace) -> int:
    from deltas.format import read_manifest
    from deltas.publish.card import describe, in_columns

    manifest, version = read_manifest(options.file)
    if options.json:
        sys.stdout.write(manifest.model_dump_json(indent=2, ensure_ascii=True) + "\n")
        return 0
    facts = {
        "file": f"{options.file} ({options.file.stat().st_size / 1000:,.1f} kB)",
        "version": f"{version} (format {manifest.format_version})",
    }
    sys.stdout.write(in_columns(facts | describe(manifest)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from deltas.backbone.backbone import load_backbone
    from deltas.format import read_delta

    backbone = load_backbone(options.backbone)
    roots = [_local(root) for root in options.files]
    files = [file for path, _ in roots for file in _delta_files(path)]
    num_wrong = 0
    for path, reason in (refusal for _, refused in roots for refusal in refused):
        num_wrong += 1
        _print(f"WRONG  {path}: {reason}")
    for path in files:
        try:
            delta = read_delta(path, backbone)
            _print(f"ok     {path}  {delta.version}")
        except DeltaError as error:
            num_wrong += 1
            _print(f"WRONG  {path}: {str(error).removeprefix(f'{path}: ')}")
    return 1 if num_wrong else 0


def _cards(options: argparse.Namespace) -> int:
    from deltas.format import write_atomically
    from deltas.publish.card import card_path, render_card

    if not options.folder.exists():
        raise DeltaError(f"{options.folder}: no such folder")
    num_wrong = 0
    for path in _delta_files(options.folder):
        try:
            card = render_card(path)
        except DeltaFormatError as error:
            num_wrong += 1
            sys.stderr.write(one_line(f"no card: {error}") + "\n")
            continue
        write_atomically(card_path(path), card.encode())
        _print(str(card_path(path)))
    return 1 if num_wrong else 0


def _export(options: argparse.Namespace) -> int:
    from deltas.backbone.backbone import load_backbone
    from deltas.format import read_delta
    from deltas.publish.export import export_folder

    backbone = load_backbone(options.backbone)
    load = export_folder(read_delta(options.file, backbone), backbone, options.folder)
    _print(f"{options.folder}: load it with {load}")
    return 0


def _root(text: str) -> Path | RemoteAddress:
    """Read a folder of the command line; argparse would repeat an address with credentials."""
    try:
        return parse_root(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _local(root: Path | RemoteAddress) -> tuple[Path, tuple[tuple[Path, str], ...]]:
    """Return a root as a path, with the files that are not copied if it is remote."""
    if isinstance(root, Path):
        return root, ()
    from deltas.store.sync import sync

    synced = sync(root)
    if synced.problem:
        sys.stderr.write(one_line(synced.describe()) + "\n")
    return synced.folder, synced.refused


def _delta_files(path: Path) -> list[Path]:
    """Return the delta files below a folder, hidden ones left out, or the file itself."""
    from deltas.store.store import find_delta_files

    files = list(find_delta_files([path])) if path.is_dir() else [path]
    if not files:
        raise DeltaError(f"no delta files below {path}")
    return files


def _print(line: str) -> None:
    sys.stdout.write(f"{one_line(line)}\n")


if __name__ == "__main__":
    sys.exit(main())
