"""`python -m app`: sets what must be set before torch is loaded, then serves (`app.server`)."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None, prog: str = "python -m app") -> int:
    """Run the server; returns the exit status."""
    _parser(prog).parse_args(arguments)
    # GNU OpenMP's threads spin for milliseconds while they wait for each other, for which the event
    # loop and the forward pass pay whenever there are more threads than free cores; to put them to
    # sleep at once makes a row on an idle server wait twice as long. So: some ten microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from app import server

    return server.main()


def _parser(prog: str) -> argparse.ArgumentParser:
    from app.settings import PREFIX, Settings

    settings = ""
    for name, field in Settings.model_fields.items():
        unset = field.default in (None, ())
        text = f"{field.description}{'' if unset else f' Default: {str(field.default).lower()}.'}"
        indented = textwrap.fill(text, 88, initial_indent="      ", subsequent_indent="      ")
        settings += f"  {PREFIX}{name.upper()}\n{indented}\n"
    return argparse.ArgumentParser(
        prog=prog,
        description="Serve deltas over HTTP. There are no flags: environment variables are the\n"
        "settings.",
        epilog=f"settings:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    sys.exit(main())
