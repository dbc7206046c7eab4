"""`python -m app`: sets what must be set before torch is loaded, then serves (`app.server`)."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the server; returns the exit status."""
    # GNU OpenMP's threads spin for milliseconds while they wait for each other, for which the event
    # loop and the forward pass pay whenever there are more threads than free cores; to put them to
    # sleep at once makes a row on an idle server wait twice as long. So: some ten microseconds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from app import server

    return server.main()


if __name__ == "__main__":
    sys.exit(main())
