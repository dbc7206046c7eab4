"""A process whose I/O threads hang still ends."""

from __future__ import annotations

import subprocess
import sys
import time

HANG = """
import threading, time
from app.engine.cache import IoThreads

started = threading.Event()

def hang(_):
    started.set()
    time.sleep(60)

threads = IoThreads(1, "test")
for number in range(3):
    threads.submit(hang, number)
assert started.wait(30)
"""


def test_hanging_threads_do_not_delay_an_exit() -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", HANG], check=True, timeout=50)
    assert time.monotonic() - started < 40
