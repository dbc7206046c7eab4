"""`python -m frontend` and `deltabert page`: start Streamlit with the page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.resources import files


def main(arguments: Sequence[str] | None = None, prog: str = "python -m frontend") -> int:
    """Run the page until it is stopped; returns the exit code.

    Args:
        arguments: flags of `streamlit run`, by default those of the command line.
        prog: the command's name in messages.
    """
    from streamlit.web.cli import main as streamlit

    flags = sys.argv[1:] if arguments is None else arguments
    script = str(files("frontend") / "main.py")
    try:
        streamlit(["run", script, *flags], prog_name=prog)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
