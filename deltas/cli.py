"""The console script `deltabert`: runs one of its subcommands.

The subcommands are the entry points of the group `deltabert.commands` in pyproject.toml, so this
package imports neither `training` nor `app`. A console script never imports from the current
folder; with `python -m`, a user's own `app.py` or `deltas.py` there would replace our package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoints, PackageNotFoundError, distribution, version

from deltas.errors import did_you_mean

_GROUP = "deltabert.commands"
_HELP = {
    "fit": "fine-tune one task and write its delta",
    "sweep": "run every missing training run of a study",
    "report": "write a study's tables and figures",
    "submit": "write a submission to the GLUE leaderboard",
    "zoo": "ship a sweep's best deltas",
    "serve": "serve deltas over HTTP (settings: DELTABERT_*)",
    "page": "show a server in the browser (Streamlit's flags are passed on)",
    "deltas": "list, show, verify and export delta files, write their model cards",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, or 2 if there is no such subcommand."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = "".join(f"  {command:8}  {text}\n" for command, text in _HELP.items())
        sys.stdout.write(
            "usage: deltabert COMMAND [FLAGS]\n\nOne frozen BERT, many tasks.\n\ncommands:\n"
            f"{lines}\n`deltabert COMMAND --help` lists a command's flags; --version the release.\n"
        )
        return 0
    if name == "--version":
        sys.stdout.write(f"deltabert {version('deltabert')}\n")
        return 0
    if name not in _HELP:
        hint = did_you_mean(name, _HELP)
        sys.stderr.write(
            f"error: unknown command {name[:128]!r}.{hint} Allowed: {', '.join(_HELP)}\n"
        )
        return 2
    found = _commands().select(name=name)
    if not found:
        sys.stderr.write("error: this installation is too old; run `pip install -e .` again\n")
        return 1
    code: int = found[name].load()(rest, prog=f"deltabert {name}")
    return code


def _commands() -> EntryPoints:
    try:
        return distribution("deltabert").entry_points.select(group=_GROUP)
    except PackageNotFoundError:
        return EntryPoints()


if __name__ == "__main__":
    sys.exit(main())
