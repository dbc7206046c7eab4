"""Fixtures of several unit tests: a store to be spoilt, an empty bank, processes with a hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.bank import Bank
from deltas import Backbone, Store

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tiny_backbone: Backbone, tiny_deltas: Path, tmp_path: Path) -> Store:
    """A copy of the toy deltas, to be spoilt."""
    return Store(
        [Path(shutil.copytree(tiny_deltas, tmp_path / "deltas"))], backbone=tiny_backbone.ref
    )


@pytest.fixture
def bank(tiny_backbone: Backbone) -> Bank:
    """For the tiny backbone, with nothing in it."""
    return Bank(tiny_backbone, torch.device("cpu"), torch.float32)


@pytest.fixture
def ask_afresh(tmp_path: Path) -> Callable[..., dict[str, Any]]:
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
