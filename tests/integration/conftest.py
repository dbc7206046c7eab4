"""Fixtures of the integration tests: fresh processes that use a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_server import Ask

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask_afresh(tmp_path: Path) -> Ask:
    """A function (script, endpoint, **settings) -> the JSON that a new process prints last.

    The hub is at the endpoint, its cache in the test's folder; "warnings" is the process's stderr.
    """

    def ask(script: str, endpoint: str, **settings: str) -> dict[str, Any]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env.pop("GLUE_DIR", None)
        env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": endpoint, "PYTHONPATH": str(ROOT)}
        env |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", **settings}
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return {**json.loads(done.stdout.splitlines()[-1]), "warnings": done.stderr}

    return ask
