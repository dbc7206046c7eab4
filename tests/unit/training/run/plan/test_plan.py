"""The plan that `training.fit` prints, and `--dry-run`, which prints it and does nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.training.test_fit_options import write_rows
from training import fit
from training.run import train_delta

Words = Callable[..., list[str]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def words(tiny_backbone_dir: Path, tmp_path: Path) -> Words:
    """A function that gives the command line of a small run."""
    rows = write_rows(tmp_path / "train.csv", 90, 1)

    def line(*more: str, **flags: object) -> list[str]:
        defaults: dict[str, object] = {
            "train_file": rows,
            "text_columns": "text",
            "label_column": "label",
            "name": "mine",
            "backbone": tiny_backbone_dir,
            "max_length": 24,
            "epochs": 2,
            "batch_size": 8,
            "out": tmp_path / "out",
        }
        given = [*more]
        for name, value in (defaults | flags).items():
            given += [f"--{name.replace('_', '-')}", str(value)]
        return given

    return line


def files_below(folder: Path) -> dict[str, int]:
    """Return each file and folder with the time of its last change."""
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_dry_run_prints_the_plan_and_writes_nothing(
    words: Words, tmp_path: Path, capsys: Capture, more: tuple[str, ...]
) -> None:
    before = files_below(tmp_path)
    assert fit.main(words("--dry-run", *more)) == 0
    assert files_below(tmp_path) == before
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    if more:
        content = json.loads(out)
        assert content["task"] == "mine"
        assert sum(content["rows"].values()) == 90
        assert content["actions"]["file"].endswith("out/tiny-bert/mine/bitfit.safetensors")
        assert content["seconds"]["about"] > 0
    else:
        headings = [line.split()[0] for line in out.splitlines() if not line.startswith("odd:")]
        assert headings[:3] == ["read", "task", "labels"]
        assert headings[-1] == "time"


def test_a_dry_run_does_not_train(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(train_delta, "train", never)
    assert fit.main(words("--dry-run")) == 0


def test_a_run_prints_the_plan_before_it_trains(words: Words, capsys: Capture) -> None:
    assert fit.main(words()) == 0
    out, err = capsys.readouterr()
    places = [
        err.index(words)
        for words in ("labels    2 in the train rows: ", " epochs in 16 steps: ", "mine bitfit")
    ]
    assert places == sorted(places)
    assert "lengths" not in out
    assert "baseline    always answering '" in out
    assert "on validation\n" in out


def test_the_summary_as_json_has_the_baseline(words: Words, capsys: Capture) -> None:
    assert fit.main(words("--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    scores = facts["baseline"]["metrics"]["validation"]
    assert 0.5 <= scores["accuracy"] <= 0.8
    assert facts["baseline"]["answer"] in facts["labels"]


def test_an_existing_delta_is_told_and_not_refused(words: Words, capsys: Capture) -> None:
    assert fit.main(words()) == 0
    capsys.readouterr()
    assert fit.main(words("--dry-run")) == 0
    told = capsys.readouterr().out
    assert "bitfit.safetensors exists, so the run would be refused; give --overwrite" in told
    assert fit.main(words("--dry-run", "--overwrite")) == 0
    told = capsys.readouterr().out
    assert "bitfit.safetensors, replacing the delta there" in told
    assert "would be refused" not in told
    assert fit.main(words()) == 2


def test_the_state_of_a_stopped_run_survives_a_dry_run(
    words: Words, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopping(step: int, loss: float) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("training.run.loop.loop._check_finite", stopping)
        assert fit.main(words()) == 130
    (state,) = (tmp_path / "out").rglob(".*.state.safetensors")
    capsys.readouterr()
    assert fit.main(words("--dry-run")) == 0
    assert "a stopped run with these options left its state; --resume continues it" in (
        capsys.readouterr().out
    )
    assert state.exists()
    assert fit.main(words("--dry-run", "--resume")) == 0
    assert "continuing a stopped run" in capsys.readouterr().out
    assert fit.main(words("--resume")) == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told(
    words: Words, tmp_path: Path, capsys: Capture
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert fit.main(words("--dry-run", out=closed / "deltas")) == 0
    assert f"--out: {closed} can't be written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "flags", "code"),
    [
        ("text,label\n", {}, 1),
        ("text,label\na,x\nb,x\n", {}, 1),
        ("other,label\na,x\nb,y\n", {}, 1),
        (None, {"batch_size": 0}, 2),
        (None, {"freeze": "nothing"}, 2),
        (None, {"train_rows": 1000}, 2),
    ],
)
def test_unusable_data_and_options_have_the_codes_of_a_run(
    words: Words,
    tmp_path: Path,
    capsys: Capture,
    content: str | None,
    flags: dict[str, object],
    code: int,
) -> None:
    if content is not None:
        flags = {"train_file": tmp_path / "bad.csv"}
        (tmp_path / "bad.csv").write_text(content)
    assert fit.main(words("--dry-run", **flags)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: " in err


def test_odd_rows_are_told(words: Words, tmp_path: Path, capsys: Capture) -> None:
    rows = tmp_path / "odd.csv"
    lines = [
        f"the film {n} was caf\u00c3\u00a9,{'common' if n % 60 else 'rare'}" for n in range(400)
    ]
    rows.write_text("\n".join(["text,label", *lines, *lines[:60]]) + "\n", encoding="utf-8")
    assert fit.main(words("--dry-run", train_file=rows)) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("odd: ")]
    assert any("stands for '\u00e9'" in line for line in told)
    assert any("'rare'" in line and "--class-weights balanced" in line for line in told)


def test_a_file_in_place_of_the_folder_is_told(
    words: Words, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    assert fit.main(words("--dry-run", out=tmp_path / "file")) == 0
    told = f"--out: {tmp_path / 'file'} is a file, so the run would be refused; name a folder"
    assert told in capsys.readouterr().out
