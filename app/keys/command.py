"""Makes, lists and removes the keys of a file: `python -m app keys`.

The file keeps its comments and its mode, and is replaced in one step, so that a server that follows
it never reads half of it. A secret is shown once, on standard output alone, and never stored.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Any, get_args

from app.keys.key import ANONYMOUS, Key, KeysError, Scope, digest_of, new_secret, parse_keys
from deltas.errors import did_you_mean, parse_arguments, run_command

FILE_VARIABLE = "DELTABERT_KEYS_FILE"
_PRIVATE = 0o600
_OTHERS = 0o077


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app keys") -> int:
    """Run one command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    options = parse_arguments(_parser(prog), arguments)
    return run_command(lambda: int(options.command(options)), errors=(KeysError,))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Make, list and remove API keys.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command, text in (
        ("new", _new, "write a new key to the file, and its secret to standard output"),
        ("list", _list, "list all keys with their rights and limits"),
        ("remove", _remove, "remove a key; servers refuse it within two seconds"),
    ):
        each = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        each.set_defaults(command=command)
        each.add_argument(
            "--file",
            type=Path,
            default=os.environ.get(FILE_VARIABLE) or None,
            help=f"file of keys (default: ${FILE_VARIABLE})",
        )
        if command is not _list:
            each.add_argument("name", help="name of the key: letters, digits, hyphens, underscores")
        if command is _new:
            _add_rights(each)
    return parser


def _add_rights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        action="append",
        dest="tasks",
        metavar="PATTERN",
        required=True,
        help="task that the key may use, such as sst2 or 'team-a-*'; repeat for more; '*' is all",
    )
    parser.add_argument(
        "--scope",
        action="append",
        dest="scopes",
        choices=[*get_args(Scope), "read"],
        help="predict, admin (to change deltas and traffic), or read, which is part of both; "
        "repeat for more (default: predict)",
    )
    parser.add_argument(
        "--rows-per-minute", type=int, help="rows that it may send, counted once per target"
    )
    parser.add_argument("--requests-per-minute", type=int, help="predictions that it may ask for")
    parser.add_argument(
        "--burst-s", type=float, help="seconds for which an unused rate is saved up (default: 60)"
    )
    parser.add_argument(
        "--queue-share",
        type=float,
        help="part of the queue's rows that its unanswered rows may take, such as 0.25",
    )
    parser.add_argument(
        "--expires", type=_day, metavar="YYYY-MM-DD", help="first day (UTC) on which it is refused"
    )


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        problem = f"{text!r} is not a day; write it like 2027-01-31"
        raise argparse.ArgumentTypeError(problem) from None


def _new(options: argparse.Namespace) -> int:
    secret = new_secret()
    with _edited(_file_of(options)) as document:
        if options.name in document:
            raise KeysError(
                f"there is a key {options.name!r} already; remove it, or take another name"
            )
        sha256 = None if options.name == ANONYMOUS else digest_of(secret.encode()).hex()
        document[options.name] = _table(options, sha256)
    if sha256 is None:
        sys.stderr.write("requests without a key have these rights; there is no secret\n")
        return 0
    sys.stderr.write(
        f"the key {options.name!r} is made; this is its secret, which is shown only now:\n"
    )
    try:
        sys.stdout.write(f"{secret}\n")
        sys.stdout.flush()
    except OSError as error:
        with _edited(_file_of(options)) as document:  # such a key would be of no use
            document.remove(options.name)
        raise OSError(error.errno, error.strerror, "standard output") from error
    return 0


def _table(options: argparse.Namespace, sha256: str | None) -> Any:
    import tomlkit

    table = tomlkit.table()
    scopes = sorted({*(options.scopes or ["predict"])} - {"read"})
    facts = {
        "sha256": sha256,
        "scopes": scopes,
        "tasks": options.tasks,
        "requests_per_minute": options.requests_per_minute,
        "rows_per_minute": options.rows_per_minute,
        "burst_s": options.burst_s,
        "queue_share": options.queue_share,
        "expires": options.expires,
    }
    for name, value in facts.items():
        if value is not None:
            table.add(name, value)
    return table


def _list(options: argparse.Namespace) -> int:
    path = _file_of(options)
    try:
        keys = parse_keys(path.read_text(encoding="utf-8"))
    except KeysError as error:
        raise KeysError(f"{path}: {error}") from None
    for name, key in keys.items():
        sys.stdout.write(f"{name}  {'  '.join(_facts(key))}\n")
    if not keys:
        sys.stderr.write(f"{path} has no keys\n")
    return 0


def _facts(key: Key) -> Iterator[str]:
    yield f"scopes={','.join(sorted(key.scopes)) or 'read'}"
    yield f"tasks={','.join(key.tasks)}"
    shown = ("requests_per_minute", "rows_per_minute", "burst_s", "queue_share", "expires")
    for name in shown:
        value = getattr(key, name)
        if value is not None and name in key.model_fields_set:
            yield f"{name}={value}"


def _remove(options: argparse.Namespace) -> int:
    with _edited(_file_of(options)) as document:
        if options.name not in document:
            hint = did_you_mean(options.name, document)
            raise KeysError(f"there is no key {options.name[:64]!r}.{hint}")
        document.remove(options.name)
    sys.stderr.write(f"the key {options.name!r} is removed\n")
    return 0


def _file_of(options: argparse.Namespace) -> Path:
    if options.file is None:
        raise KeysError(f"no file of keys is named; add --file, or set {FILE_VARIABLE}")
    return Path(options.file).expanduser()


@contextmanager
def _edited(path: Path) -> Iterator[Any]:
    """Yield the file's content to change, and write it if it still holds usable keys."""
    import tomlkit

    path = Path(os.path.realpath(path))  # a link stays a link
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # another such command waits until this one is done
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            parse_keys(before)
            document = tomlkit.parse(before)
            yield document
            after = tomlkit.dumps(document)
            parse_keys(after)
        except KeysError as error:
            raise KeysError(f"{path}: {error}") from None
        _replace(path, after)
        os.fsync(folder)
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Write a file in one step; a new one is for its owner alone."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)
            if path.exists():
                known = path.stat()
                with suppress(PermissionError):  # only root may give a file to another user
                    os.fchown(handle, known.st_uid, known.st_gid)
                os.fchmod(handle, known.st_mode & 0o777)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if path.stat().st_mode & _OTHERS:
        sys.stderr.write(f"warning: {path}: others can read or write it; use chmod 600\n")
