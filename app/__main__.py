"""Runs the server: sets the variables that torch reads when it is loaded, then `app.server`.

Tested by tests/http/test_live_server.py and tests/http/test_stops.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import textwrap
from collections.abc import Sequence

from app.process.lifetime import stop_at_once_on_signals
from app.process.logs import configure_logging, logged


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app") -> int:
    """Run the server, and end the process with its exit status; `keys` edits the file of keys."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["keys"]:
        from app.keys.command import main as keys

        return keys(given[1:], f"{prog} keys")
    stop_at_once_on_signals()
    options = _parser(prog).parse_args(given)
    from app.process.settings import SettingsError, load_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        tempfile.gettempdir()  # torch asks for it while it is loaded
    except FileNotFoundError:
        sys.stderr.write(
            "no folder for temporary files can be written, neither TMPDIR nor /tmp; mount one, as "
            "docker run --tmpfs /tmp does, or set TMPDIR to a folder that can be written\n"
        )
        return 1
    # By default libgomp (GNU OpenMP) busy-waits for milliseconds, which starves the event loop when
    # cores are oversubscribed. Not spinning at all doubles the latency of a single row. 10,000
    # spins (about 10 us) are the compromise.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    configure_logging(settings.log_format, settings.log_level)
    logging.getLogger("app").info("starting as process %d", os.getpid())
    if settings.device != "cuda" and not options.check:
        from deltas.kernels.compiled import INFERENCE, machine_code

        machine_code.begin(INFERENCE)  # on a first start compiled while torch is loaded
    with logged("loaded the libraries"):
        from app.server import server  # loads torch, which takes seconds

    return server.main(settings, only_check=options.check)


def _parser(prog: str) -> argparse.ArgumentParser:
    from app.process.settings import PREFIX, Settings

    settings = ""
    for name, field in Settings.model_fields.items():
        unset = field.default in (None, ())
        text = f"{field.description}{'' if unset else f' Default: {str(field.default).lower()}.'}"
        indented = textwrap.fill(text, 88, initial_indent="      ", subsequent_indent="      ")
        settings += f"  {PREFIX}{name.upper()}\n{indented}\n"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve deltas over HTTP. Environment variables are the settings.\n"
        "'keys --help' tells how to make API keys.",
        epilog=f"settings:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="load settings, keys, backbone and deltas, tell what is wrong, and serve nothing",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
