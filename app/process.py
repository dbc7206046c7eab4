"""What a process that serves needs beside the app: memory, threads, garbage.

`app.server` sees to it; `create_app` does when uvicorn calls it as a factory. One thing can't be
done that late, since OpenMP reads it when torch is loaded: `app.__main__` does it.
"""

from __future__ import annotations

import gc
import logging
import os
import sys

from deltas import keep_compiled_products, keep_freed_memory

logger = logging.getLogger(__name__)

_GC_THRESHOLDS = 50_000, 20, 50
# The forward pass takes the GIL again after each of its hundreds of steps. Beside a busy event loop
# it took 2.9 times as long as alone with Python's 5 ms, and 2.2 times with this.
_SWITCH_INTERVAL_S = 0.0005


def prepare_process() -> None:
    """Before anything is loaded."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    keep_freed_memory()
    keep_compiled_products()
    # A single row with two texts is enough for the tokenizer to wake threads of its own, one a
    # core. They take longer than one does (74 to 114 us against 57), and the cores are torch's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def settle_process() -> None:
    """Once everything is loaded."""
    # What lives as long as the process need not be searched for garbage; and a body of a million
    # little lists must not have the loop search all of them, again and again.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def warn_of_spinning() -> None:
    """Say what `app.__main__` would have done."""
    if os.environ.keys().isdisjoint({"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}):
        logger.warning(
            "GOMP_SPINCOUNT is not set: OpenMP's threads may spin for milliseconds while they wait "
            "for each other, and slow the server down; set it to 10000, or start the server with "
            "python -m app"
        )
