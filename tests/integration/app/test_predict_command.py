"""`deltabert predict` as a process: killed with -9 for real, and started again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
TEXTS = ["a good film", "not very good", "the bad and the good"]


def write_files(folder: Path, counts: Sequence[int], bad: Mapping[int, str]) -> Path:
    """Make a folder of CSV files with these numbers of rows; in each, some rows are bad."""
    folder.mkdir()
    for file, count in enumerate(counts):
        rows = [bad.get(n, f"{n},{TEXTS[n % 3]}{' very' * (n % 5)}") for n in range(count)]
        (folder / f"{file}.csv").write_text("\n".join(["id,text", *rows, ""]), encoding="utf-8")
    return folder


class Command:
    """The arguments of a run over the tiny backbone."""

    def __init__(self, backbone: Path, deltas: Path) -> None:
        self._given = ["--backbone", str(backbone), "--deltas", str(deltas), "--threads", "1"]

    def start(self, *arguments: str, text: bytes = b"") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.pipeline", *arguments, *self._given],
            cwd=ROOT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(text)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, *arguments: str, text: bytes = b"") -> tuple[int, str, str]:
        process = self.start(*arguments, text=text)
        out, err = process.communicate(timeout=600)
        return process.returncode, out.decode(), err.decode()


@pytest.fixture(scope="module")
def command(tiny_backbone_dir: Path, tiny_deltas: Path) -> Command:
    """The command with the tiny backbone."""
    return Command(tiny_backbone_dir, tiny_deltas)


def test_standard_input_is_answered_on_standard_output(command: Command) -> None:
    code, out, err = command.run(
        *("-", "--format", "csv", "--task", "toy2"), text=b"id,text\n1,good\n2,\n"
    )
    assert code == 0, err
    first, second = out.splitlines()[1:]
    assert first.startswith("1,")
    assert second.startswith("2,,,,,invalid_input: column 'text' has no text")
    assert "standard output: 2 rows, 1 of them with an error" in err


def test_misuse_is_refused_in_one_sentence(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\ngood\n")
    output = tmp_path / "a.predictions.csv"
    output.write_text("mine")
    code, _, err = command.run(str(path), "--task", "toy2")
    assert (code, err) == (
        2,
        f"error: {output} exists; replace it with --overwrite, or choose another output\n",
    )
    assert output.read_text() == "mine"


def test_a_run_killed_at_any_moment_goes_on_and_gives_the_same_bytes(
    command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    rows = [f"{n},{TEXTS[n % 3]}{' very' * (n % 7)}\n" for n in range(6000)]
    path.write_text("id,text\n" + "".join(rows))
    arguments = [str(path), "--task", "toy2", "--task", "toymulti"]
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    code, _, err = command.run(*arguments, "--output", str(whole))
    assert code == 0, err
    journal = output.with_name("out.csv.part.json")
    seen = b""
    for _ in range(2):
        process = command.start(*arguments, "--output", str(output))
        deadline = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and (now := journal.read_bytes()) != seen:
                seen = now
                break
            time.sleep(0.002)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()
        process.communicate(timeout=30)
        assert not output.exists()
    code, _, err = command.run(*arguments, "--output", str(output))
    assert code == 0, err
    assert "going on behind" in err
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.csv", "rows.csv", "whole.csv"]
