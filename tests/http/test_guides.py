"""The pages for newcomers: each command of start and tutorial runs, and prints what is shown.

Versions and digits differ between machines, so words must be equal, numbers near, and a version
must stand for the same version everywhere on a page.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.http.server_process import free_port, opener

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ANSWERS_WITHIN_S = 600.0
NEAR = 0.15  # of probabilities on another processor, in another precision
VERSION = re.compile(r"[0-9a-f]{16}")


class Step(NamedTuple):
    """A block of commands, and the blocks of output that the page shows below it."""

    commands: str
    shown: list[tuple[str, str]]


def steps_of(page: Path) -> list[Step]:
    """Return the steps of a page in their order."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    steps: list[Step] = []
    for language, text in blocks:
        if language == "sh":
            steps.append(Step(text, []))
        else:
            steps[-1].shown.append((language, text))
    return steps


def environment(port: int) -> dict[str, str]:
    """Return the environment of a user's shell, in which this checkout is installed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DELTABERT_")}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "DELTABERT_PORT": str(port),
        "DELTABERT_WARM_UP": "false",
        "HF_HUB_OFFLINE": "1",
        "no_proxy": "127.0.0.1",
    }


def run(script: str, folder: Path, port: int) -> str:
    """Run commands in one shell and return what they print; nothing that they start stays."""
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", script.replace(":8000", f":{port}")],
        cwd=folder,
        env=environment(port),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=ANSWERS_WITHIN_S)
    finally:
        if process.poll() != 0:
            with suppress(ProcessLookupError):  # the shell and its jobs have ended
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def masked(line: str) -> str:
    """Return a line without its numbers, versions and alignment."""
    return " ".join(re.sub(r"\d[\d,.]*", "#", VERSION.sub("#", line)).split())


def check_shown(step: Step, output: str, versions: dict[str, str]) -> None:
    """Compare what a page shows below a step with what the step has printed.

    Args:
        step: the commands with the output that the page shows.
        output: the output that they have.
        versions: the version of this run by each version of the page; what is new is added.
    """
    for language, text in step.shown:
        if language == "json":
            printed = [line for line in output.splitlines() if line.startswith("{")]
            assert printed, output
            check_alike(json.loads(text), json.loads(printed[-1]), versions)
        else:
            lines = set(map(masked, output.splitlines()))
            missing = [line for line in text.splitlines() if masked(line) not in lines]
            assert not missing, output


def check_alike(shown: Any, found: Any, versions: dict[str, str], at: str = "answer") -> None:
    """Compare two JSON values: the same names and texts, and numbers that are near."""
    if isinstance(shown, dict):
        assert list(shown) == list(found), at
        for name in shown:
            check_alike(shown[name], found[name], versions, f"{at}.{name}")
    elif isinstance(shown, list):
        assert len(shown) == len(found), at
        for position, value in enumerate(shown):
            check_alike(value, found[position], versions, f"{at}[{position}]")
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, abs=NEAR), at
    elif isinstance(shown, str) and VERSION.fullmatch(shown):
        assert VERSION.fullmatch(found), at
        assert versions.setdefault(shown, found) == found, at
    else:
        assert shown == found, at


def test_a_page_that_shows_something_else_is_found() -> None:
    shown = {"version": "0123456789abcdef", "label": "a", "scores": {"a": 0.9}}
    check_alike(shown, shown | {"scores": {"a": 0.8}}, {})
    for wrong in ({"label": "b"}, {"scores": {"a": 0.7}}, {"scores": {"b": 0.9}}, {"more": 1}):
        with pytest.raises(AssertionError):
            check_alike(shown, shown | wrong, {})
    with pytest.raises(AssertionError):
        check_alike(shown, shown, {"0123456789abcdef": "f" * 16})
    step = Step("", [("text", "accuracy 0.8889 (18 rows)\n")])
    check_shown(step, "more\naccuracy  0.5 (9 rows)\n", {})
    with pytest.raises(AssertionError):
        check_shown(step, "accuracy 0.8889\n", {})


@pytest.mark.slow
def test_every_command_of_the_tutorial_prints_what_is_shown(tmp_path: Path) -> None:
    steps = steps_of(DOCS / "guide" / "tutorial.md")
    script = "".join(f"printf '\\n@@\\n'\n{step.commands}" for step in steps)
    output = run(script, tmp_path, free_port())
    outputs = output.split("\n@@\n")[1:]
    assert len(outputs) == len(steps) > 10
    versions: dict[str, str] = {}
    for step, printed in zip(steps, outputs, strict=True):
        check_shown(step, printed, versions)
    assert len(set(versions.values())) == len(versions) == 3  # two of the tutorial, one of the zoo
    assert versions["a55a61fcaf8020f8"] == "a55a61fcaf8020f8"
    first, second = re.findall(r"^validation  accuracy ([\d.]+)(.*)", output, re.MULTILINE)
    assert float(first[0]) >= 0.75
    coverage = re.search(r"coverage ([\d.]+), answered_accuracy ([\d.]+)", second[1])
    assert coverage
    assert float(coverage[1]) < 1
    assert float(coverage[2]) > float(second[0])
    assert "stopped after" in outputs[-1]


@pytest.mark.slow
def test_every_command_of_the_first_page_prints_what_is_shown(tmp_path: Path) -> None:
    """The second `make run` is the first one with a folder more, so the two run as one."""
    serve, ask, fit, serve_both, ask_both = steps_of(DOCS / "start.md")
    assert serve.commands == "make run\n"
    assert serve_both.commands == f"DELTABERT_DELTAS=runs/deltas {serve.commands}"
    run(fit.commands.replace(".venv/bin/python", "python"), tmp_path, 0)
    port, page_port = free_port(), free_port()
    log = tmp_path / "log"
    installed = f"{sys.prefix}/.installed"  # what is installed must not be installed again
    command = ["make", "--old-file", installed, f"VENV={sys.prefix}", "run"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, f"PORT={port}", f"PAGE_PORT={page_port}"],
            cwd=ROOT,
            env=environment(port) | {"DELTABERT_DELTAS": str(tmp_path / "runs/deltas")},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_ready(process, log)
        check_shown(serve, log.read_text("utf-8"), {})
        for step in (ask, ask_both):
            check_shown(step, run(step.commands, tmp_path, port), {})
        assert opener.open(f"http://127.0.0.1:{page_port}", timeout=30).status == 200
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    assert "Stopped." in log.read_text("utf-8")


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until server and page both answer."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while "  page " not in log.read_text("utf-8"):
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.1)
