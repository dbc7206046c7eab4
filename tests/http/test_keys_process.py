"""A real server process with keys: commands, reload, nothing secret in its output or its start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.keys.key import digest_of
from tests.http.server_process import opener, url_of


def keys(path: Path, *arguments: str) -> str:
    """Run `python -m app keys`; returns what it prints, which is the secret of a new key."""
    command = [sys.executable, "-m", "app", "keys", arguments[0], "--file", str(path)]
    done = subprocess.run(
        [*command, *arguments[1:]], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def ask(url: str, secret: str, body: Any = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
    try:
        with opener.open(urllib.request.Request(url, data, headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def seconds_until(url: str, secret: str, status: int) -> float:
    started = time.monotonic()
    while ask(url, secret) != status:
        assert time.monotonic() - started < 10
        time.sleep(0.05)
    return time.monotonic() - started


@pytest.mark.parametrize("log_format", ["text", pytest.param("json", marks=pytest.mark.slow)])
def test_keys_from_command_line_to_request(
    run_server: Callable[..., Any], tmp_path: Path, log_format: str
) -> None:
    path = tmp_path / "keys.toml"
    mine = keys(path, "new", "mine", "--task", "toy2")
    other = keys(path, "new", "other", "--task", "toy3")
    inline = digest_of(b"dbk_inline").hex()
    changes = {
        "DELTABERT_KEYS_FILE": str(path),
        "DELTABERT_KEYS": f'inline = {{sha256 = "{inline}", scopes = [], tasks = ["*"]}}',
        "DELTABERT_LOG_LEVEL": "debug",
        "DELTABERT_LOG_FORMAT": log_format,
    }
    row = {"inputs": "a good film"}
    with run_server(**changes) as server:
        url = url_of(server)
        assert ask(f"{url}/health/ready", "") == 200
        assert ask(f"{url}/predict/toy2", mine, row) == 200
        assert ask(f"{url}/predict/toy2", other, row) == 403
        assert ask(f"{url}/predict/toy2", mine[:-1], row) == 401
        assert ask(f"{url}/metrics", "dbk_inline") == 200
        keys(path, "remove", "mine")
        assert seconds_until(f"{url}/tasks", mine, 401) < 2.5
        late = keys(path, "new", "late", "--task", "*")
        assert seconds_until(f"{url}/tasks", late, 200) < 2.5
        command_line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode()
        server.process.terminate()
        assert server.wait() == 0
        assert "keys=**********" in server.output
        assert "added late" in server.output
        secrets = [mine, other, late, "dbk_inline", mine[:-1]]
        secrets += [digest_of(secret.encode()).hex() for secret in secrets]
        shown = server.output + command_line
        assert not [secret for secret in secrets if secret in shown]
        assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"DELTABERT_KEYS": "[a"}, "DELTABERT_KEYS: not TOML"),
        ({"DELTABERT_KEYS_FILE": "no/such/file"}, "no/such/file: No such file or directory"),
    ],
)
def test_a_server_without_its_keys_does_not_start(
    run_server: Callable[..., Any], changes: dict[str, str], said: str
) -> None:
    with run_server(**changes) as server:
        assert server.wait() == 2
        assert said in server.output
        assert "Traceback" not in server.output
        assert "loaded the backbone" not in server.output
