"""A server with the zoo stays within its memory, with a cold cache and with a warm one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.footprint import memory_bytes
from tests.bench.server_process import running_server

MOST_MB = 500


@pytest.mark.slow
def test_a_server_with_the_zoo_takes_little_memory(tmp_path: Path) -> None:
    """In float32; bfloat16 holds compiled products besides."""
    settings, cache = {"PRECISION": "fp32"}, {"XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        with running_server(tmp_path / "log", settings, cache) as server:
            assert memory_bytes(server.pid, "Rss") / 1e6 <= MOST_MB
    # Numbers that were measured beside busy programs, such as other tests, are not kept.
    was_busy = "other programs took" in (tmp_path / "log").read_text(encoding="utf-8")
    kept = sorted(path.suffix for path in (tmp_path / "deltabert").iterdir())
    assert kept == [*([] if was_busy else [".json"]), ".o", ".o"]
