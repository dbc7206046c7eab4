"""`python -m app`: sets what must be set before torch is loaded, then serves (`app.server`)."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the server; returns the exit status."""
    # OpenMP's threads else spin while they wait for each other, for which the event loop and the
    # forward pass pay whenever there are more threads than free cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from app import server

    return server.main()


if __name__ == "__main__":
    sys.exit(main())
