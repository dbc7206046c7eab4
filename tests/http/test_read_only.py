"""The server and the page on a read-only disk, as in a container with `--read-only`.

The kernel refuses all writes, also those of root: the disk is mounted again, for the tested process
alone. Only the folder for temporary files is a file system of its own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.http.server_process import START_WITHIN_S, Server, call, free_port, url_of

Run = Callable[..., Any]
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
# No variable names a home, a cache, or a folder for temporary files besides the one that is given.
SCRIPT = """
unset HOME XDG_CACHE_HOME XDG_CONFIG_HOME XDG_DATA_HOME NUMBA_CACHE_DIR TMPDIR TEMP TMP
mount -o remount,ro,bind / || exit 91
if [ "$0" != none ]; then mount -t tmpfs tmpfs "$0" && export TMPDIR="$0" || exit 92; fi
if touch "$WITNESS" 2>/dev/null; then exit 93; fi
exec "$@"
"""


@pytest.fixture
def read_only(tiny_backbone_dir: Path, tiny_deltas: Path, tmp_path: Path) -> Run:
    """A function (*arguments, scratch=True) -> context of a program on a read-only disk."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = {
        "DELTABERT_BACKBONE": str(tiny_backbone_dir),
        "DELTABERT_DELTAS": str(tiny_deltas),
        "DELTABERT_ZOO": "false",
        "DELTABERT_PORT": "0",
        "DELTABERT_WARM_UP": "false",
        "DELTABERT_THREADS": "1",
        "WITNESS": str(tmp_path / "written"),
    }
    probe = subprocess.run(
        [*UNSHARE, SCRIPT, str(scratch), "true"],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "WITNESS": settings["WITNESS"]},
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        pytest.skip(f"this machine mounts no read-only disk for a test: {probe.stderr.strip()}")

    @contextmanager
    def run(*arguments: str, has_scratch: bool = True) -> Iterator[Server]:
        folder = str(scratch) if has_scratch else "none"
        server = Server(arguments, settings, (*UNSHARE, SCRIPT, folder))
        try:
            yield server
        finally:
            server.end()

    return run


@pytest.mark.slow
def test_the_server_answers(read_only: Run) -> None:
    with read_only("-m", "app") as server:
        url = url_of(server)
        assert call(url + "/health/ready")[0] == 200, server.output
        status, answer = call(url + "/predict/toy2", {"inputs": "a good film"})
        assert (status, answer["task"]) == (200, "toy2"), server.output
        server.process.terminate()
        assert server.wait() == 0, server.output
    assert "Traceback" not in server.output
    assert "ERROR" not in server.output


@pytest.mark.slow
def test_the_page_is_shown(read_only: Run) -> None:
    port = str(free_port())
    page = "-m", "streamlit", "run", "frontend/main.py", "--server.address", "127.0.0.1"
    with read_only(*page, "--server.port", port) as shown:
        shown.wait_for("http://", START_WITHIN_S)
        assert call(f"http://127.0.0.1:{port}/_stcore/host-config")[0] == 200, shown.output
    assert "Traceback" not in shown.output


def test_without_a_folder_for_temporary_files_the_server_says_what_to_do(read_only: Run) -> None:
    """Before, it ended with a traceback of thirty lines from inside torch."""
    with read_only("-m", "app", has_scratch=False) as server:
        assert server.wait() == 1
    (sentence,) = server.output.splitlines()
    assert "docker run --tmpfs /tmp" in sentence
    assert "TMPDIR" in sentence
