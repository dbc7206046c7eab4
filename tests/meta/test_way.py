"""The way of a request stays short: how many files it passes, and how often it changes the file.

A long way is hard to follow. The limits are the numbers of today; lower them when the way gets
shorter. The calls of one traced request are counted, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

MAX_FILES = 25  # of the whole request
MAX_FILES_BEFORE_ENGINE = 12
MAX_CHANGES_BEFORE_ENGINE = 25

PROGRAM = """
import json, sys, threading
from pathlib import Path

root, calls, is_on = str(Path.cwd()) + "/", [], False

def profile(frame, event, arg):
    code = frame.f_code
    if is_on and event == "call" and code.co_filename.startswith(root):
        if "/.venv/" not in code.co_filename and not code.co_name.startswith("<"):
            calls.append((code.co_filename[len(root):], code.co_qualname))

from fastapi.testclient import TestClient
from app.main import create_app
from app.process.settings import Settings

settings = Settings(
    precision="fp32", threads=1, workers=1, warm_up=False, max_slots=2, pinned=("sst2/bitfit",)
)
sys.setprofile(profile)
threading.setprofile(profile)
with TestClient(create_app(settings)) as client:
    for is_on in (False, True):
        assert client.post("/predict/sst2", json={"inputs": "a good film"}).status_code == 200
    is_on = False
print(json.dumps(calls))
"""


def test_a_request_passes_few_files() -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DELTABERT_")}
    root = Path(__file__).parents[2]
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=root,
        env=kept | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=True,
    )
    calls = [tuple(call) for call in json.loads(answer.stdout.splitlines()[-1])]
    files = [file for file, _ in calls]
    before = files[: calls.index(("app/engine/engine.py", "Engine.predict"))]
    changes = [f"{a} -> {b}" for a, b in pairwise(before) if a != b]
    assert len(set(files)) <= MAX_FILES, sorted(set(files))
    assert len(set(before)) <= MAX_FILES_BEFORE_ENGINE, sorted(set(before))
    assert len(changes) <= MAX_CHANGES_BEFORE_ENGINE, changes
    assert "app/batching/queue.py" in before, "the calls were not traced"
