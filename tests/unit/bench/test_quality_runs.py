"""`make bench-quality`: equal rows for all methods, baselines, stock training, whole programs."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bench.quality import __main__ as program
from tests.bench.quality import baselines, stock
from tests.bench.quality.results import read_runs
from tests.bench.quality.runs import Bench, applies, choose_methods, plan
from tests.bench.quality.sets import LoadedSet, fresh_sets, load_rows
from training.errors import ConfigError, TrainingError
from training.fit import parse_arguments
from training.run import train_delta

SECRET = "zebra"  # a word of every row, which no result may hold


def test_a_limit_is_the_best_that_can_be_had() -> None:
    """All limits between different values, on both sides, are tried one by one."""
    draw_ = np.random.default_rng(3)
    for _ in range(200):
        values = draw_.integers(0, 6, size=draw_.integers(1, 12)).astype(float)
        labels = draw_.integers(0, 2, size=len(values))
        limit, above = baselines.best_limit(values, labels)
        right = int((np.where(values > limit, above, 1 - above) == labels).sum())
        limits = [-1.0, *(np.unique(values) + 0.5)]
        tried = [int(((values > one) == (labels == up)).sum()) for one in limits for up in (0, 1)]
        assert right == max(tried)


def write_rows(folder: Path, count: int, kind: str = "single", name: str = "train.csv") -> Path:
    """Write rows of two texts, each with the secret word, and a label that the first one has."""
    draw_ = random.Random(f"{name} {kind}")
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"] if kind == "single" else ["one", "two", "label"])
        for _ in range(count):
            label = draw_.choice(["bad", "good"])
            words = [label, SECRET, *draw_.choices(["film", "and", "the", "not"], k=4)]
            draw_.shuffle(words)
            text = " ".join(words)
            rows: dict[str, list[Any]] = {
                "single": [text, label],
                "pair": [text, f"{draw_.choice(['bad', 'good'])} {SECRET}", label],
                "regression": [text, f"{label} {SECRET}", draw_.choice([0.5, 1.25, 2.75])],
            }
            out.writerow(rows[kind])
    return folder


@pytest.fixture
def backbone_words(tiny_backbone_dir: Path) -> list[str]:
    """Options of `training.fit` for a tiny backbone and short runs."""
    return ["--backbone", str(tiny_backbone_dir), "--max-length", "24", "--epochs", "1"]


def loaded(folder: Path, words: Sequence[str], rows: int | None = None) -> LoadedSet:
    """Load the one set of a folder."""
    (chosen,) = fresh_sets(folder, "", "")
    return LoadedSet(chosen, rows, words)


@pytest.mark.parametrize("drawn", [None, 40])
def test_all_methods_see_the_rows_that_fit_sees(
    drawn: int | None, tmp_path: Path, backbone_words: list[str]
) -> None:
    """Nobody may look at another row: digests, train rows and selection rows are those of fit."""
    rows = loaded(write_rows(tmp_path / "films", 80), backbone_words, drawn)
    for seed in (0, 1):
        config = parse_arguments([*rows.words(seed), "--out", str(tmp_path / f"out{seed}")])
        train, selection = train_delta._cut(config, train_delta._load_rows(config))
        _, delta = train_delta.train_delta(config, command="", report=lambda progress: None)
        facts = delta.manifest.training
        assert facts.data_digest == rows.digest(seed)
        assert (len(train), len(selection)) == (facts.train_rows, facts.selection_rows)
    assert (rows.digest(0) == rows.digest(1)) is (drawn is None)


def test_files_are_shown_relative_to_the_folder_of_the_sets(tmp_path: Path) -> None:
    rows = loaded(write_rows(tmp_path / "films", 30), [], 20)
    assert str(tmp_path / "films" / "train.csv") in rows.words(0)
    shown = " ".join(rows.shown(7))
    assert str(tmp_path) not in shown
    assert shown == (
        "--train-file train.csv --text-columns text --label-column label --name films "
        "--train-rows 20 --seed 7"
    )


def test_a_folder_names_its_files_and_columns(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "validation.csv"):
        write_rows(tmp_path / "CoLA", 30, "pair", name)
    write_rows(tmp_path / "one", 30, name="all.csv")
    write_rows(tmp_path / "cola", 30, name="all.csv")
    (tmp_path / "none").mkdir()
    sets = {each.name: each.options for each in fresh_sets(tmp_path, "", "")}
    assert sets["my-cola"][:2] == ("--train-file", "all.csv")  # a GLUE task has that name
    assert "--validation-file" not in sets["one"]
    (pair,) = fresh_sets(tmp_path / "CoLA", "", "")
    assert pair.options[2:8] == (
        *("--validation-file", "test.csv"),
        *("--text-columns", "one,two", "--label-column", "label"),
    )
    (chosen,) = fresh_sets(tmp_path / "CoLA", "two", "")
    assert chosen.options[5] == "two"
    (tmp_path / "CoLA" / "other.tsv").write_text("a;label\nx;y\n")
    (other,) = fresh_sets(tmp_path / "CoLA" / "other.tsv", "", "")
    assert other.options[2:4] == ("--text-columns", "a")
    with pytest.raises(ConfigError, match="holds train and test"):
        fresh_sets(tmp_path / "none", "", "")


def test_methods_are_named_alone_or_in_groups() -> None:
    assert choose_methods(["stock", "baselines", "bitfit"])[-4:] == [
        "bitfit", "stock:2e-5", "stock:5e-5", "stock:1e-4",
    ]  # fmt: skip
    assert choose_methods(["full", "top:2", "full"]) == ["full", "top:2"]
    with pytest.raises(TrainingError, match="bitfitt"):
        choose_methods(["bitfitt"])
    with pytest.raises(ConfigError, match="stock:5e-5"):
        choose_methods(["stock:fast"])


def test_a_baseline_runs_where_it_has_a_meaning(tmp_path: Path) -> None:
    single = loaded(write_rows(tmp_path / "single", 30), [])
    pair = loaded(write_rows(tmp_path / "pair", 30, "pair"), [])
    meaningful = [(method, applies(method, single), applies(method, pair)) for method in
                  ("majority", "sklearn", "sklearn:apart", "cosine")]  # fmt: skip
    assert meaningful == [
        ("majority", True, True),
        ("sklearn", True, True),
        ("sklearn:apart", False, True),
        ("cosine", False, True),
    ]
    options = program.parse(["--methods", "sklearn,cosine,bitfit", "--seeds", "0,1"])
    planned = [(run.method, run.seed) for run in plan([single], options)]
    assert planned == [("sklearn", 0), ("sklearn", 1), ("bitfit", 0), ("bitfit", 1)]


@pytest.mark.parametrize("kind", ["pair", "regression"])
def test_baselines_share_vectors_and_are_charged_for_them(
    kind: str, tmp_path: Path, backbone_words: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Vectors take the time that they took once, in each run that uses them."""
    ticks = iter(range(10**6))
    computed: list[int] = []
    compute = baselines.Embedder._compute

    def counted(self: baselines.Embedder, texts: Sequence[tuple[str, ...]]) -> Any:
        computed.append(len(texts))
        for _ in range(1000):
            next(ticks)
        return compute(self, texts)

    monkeypatch.setattr(baselines.Embedder, "_compute", counted)
    now = classmethod(lambda cls: cls(float(next(ticks)), 0.0))
    monkeypatch.setattr(baselines.Clock, "now", now)
    rows = loaded(write_rows(tmp_path / "set", 50, kind), backbone_words)
    runs = "majority@0,sklearn@0,sklearn:apart@0,cosine@0"
    assert baselines.main([runs, *rows.words(0)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["method"] for line in lines] == ["majority", "sklearn", "sklearn:apart", "cosine"]
    assert len(computed) == 6  # train and dev: together, and each text alone
    thousands = [line["seconds"] // 1000 for line in lines]
    assert thousands == [0, 2, 4, 2 if kind == "regression" else 4]
    assert {line["digest"] for line in lines} == {rows.digest(0)}
    scores = [line["scores"]["validation"] for line in lines]
    if kind == "regression":
        assert scores[0]["pearson"] == 0.0
        assert "mse" not in scores[3]
    else:
        assert scores[0]["accuracy"] <= scores[1]["accuracy"] <= 1
    assert SECRET not in json.dumps(lines)


def test_stock_training_learns_and_is_repeatable(tmp_path: Path, backbone_words: list[str]) -> None:
    rows = loaded(write_rows(tmp_path / "films", 20), backbone_words)
    config = parse_arguments(rows.words(0))
    data = load_rows(config)

    def answers(steps: int) -> Any:
        network = stock.StockNetwork(data, config)
        network.train(data.train, 3e-3, steps, batch_size=8)
        return network.predict(data.train)

    labels = np.array(data.train.labels)
    untrained, trained = answers(0), answers(60)
    assert (untrained == labels).mean() < 0.8 < (trained == labels).mean()
    assert (answers(60) == trained).all()


def test_stock_training_is_described_as_our_runs_are(
    tmp_path: Path, backbone_words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(tmp_path / "values", 50, "regression")
    rows = loaded(tmp_path / "values", [*backbone_words, "--batch-size", "8"])
    assert stock.main(["1e-4", "epochs:0.5", *rows.words(0)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == rows.digest(0)
    assert list(found["scores"]) == list(found["rows"]) == ["selection", "validation"]
    assert list(found["scores"]["validation"]) == ["pearson", "spearman", "mse"]
    assert found["facts"]["steps"] == 3  # 36 of 40 train rows are 5 batches
    assert (found["train_rows"], found["selection_rows"]) == (36, 4)
    assert SECRET not in json.dumps(found)


@pytest.fixture
def command(tmp_path: Path, backbone_words: list[str]) -> Callable[..., list[str]]:
    """A function that returns the program's options for a small set."""
    write_rows(tmp_path / "films", 60)

    def words(*more: str) -> list[str]:
        fit_args = " ".join([*backbone_words, "--batch-size 8"])
        return [
            *("--fresh", str(tmp_path / "films"), "--fit-args", fit_args, "--seeds", "0"),
            *("--threads", "1", "--json", str(tmp_path / "results.jsonl"), *more),
        ]

    return words


def test_a_set_that_cannot_be_read_stops_no_other(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write_rows(tmp_path / "broken", 1)
    monkeypatch.chdir(tmp_path)
    made: list[str] = []
    monkeypatch.setattr(Bench, "make", lambda self, group: made.extend(r.title for r in group))
    more = ("--fresh", str(tmp_path / "broken"), "--methods", "majority,bitfit")
    assert program.main(command(*more)) == 1
    assert made == ["films majority seed 0", "films bitfit seed 0"]
    assert "broken: " in capsys.readouterr().err


def is_alive(pid: str) -> bool:
    """Return whether a process runs; one that has ended and waits for its parent has no command."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


@pytest.mark.slow
def test_a_killed_program_goes_on_where_it_was(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each run is made once, its process ends with the program, and nothing of a row is kept."""
    results = tmp_path / "results.jsonl"
    options = command("--methods", "majority,full,stock:5e-5")
    words = [sys.executable, "-m", "tests.bench.quality", *options]
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not results.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    started = children.read_text().split() if children.exists() else []
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    assert not [pid for pid in started if is_alive(pid)]
    kept = results.read_bytes()
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    assert results.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    majority, full, stock_run = read_runs(results).values()
    assert majority.digest == full.digest == stock_run.digest
    assert full.facts["steps"] == stock_run.facts["steps"]
    assert full.selection_rows == stock_run.selection_rows > 0
    assert program.main(options) == 0
    again = capsys.readouterr()
    assert (again.out, len(results.read_bytes().splitlines())) == (done.stdout, 3)
    assert "0 runs to make" in again.err
    for text in (results.read_text(), results.with_suffix(".md").read_text(), done.stdout):
        assert SECRET not in text
        assert str(tmp_path / "films") not in text
