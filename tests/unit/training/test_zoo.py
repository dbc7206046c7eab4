"""The zoo's choice: the best run by its selection rows, of those that count, with its own delta."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.engine.engine import Engine
from deltas import (
    Backbone,
    SplitMetrics,
    Store,
    TaskSpec,
    delta_path,
    read_delta,
    write_delta,
    zoo_path,
)
from deltas.backbone.backbone import DEFAULT_BACKBONE
from deltas.publish.card import card_path, render_card
from deltas.store.predictions import VERSION_KEY, predictions_path, read_rows
from tests.unit.training.study.test_results import make_run
from training import zoo
from training.data.tasks import TASKS
from training.study.plan import plan, read_study
from training.study.results import Run, append_run

ROOT = Path(__file__).parents[3]


def run_with(selection: float, dev: float, *, rows: int = 200, **options: Any) -> Run:
    """A finished run of the default backbone on real rows; options that change its outcome too."""
    run = make_run(dev, selection, **options)
    assert run.outcome is not None
    fields: dict[str, Any] = {"backbone": DEFAULT_BACKBONE, "train_rows": rows - 20}
    fields |= {name: options[name] for name in ("backbone", "data") if name in options}
    if options.get("reinit") == "biases":
        fields["strategy"] = "initbias+bitfit"
    return run.model_copy(update={"outcome": run.outcome.model_copy(update=fields)})


class Sweep:
    """A results file and a folder of kept deltas."""

    def __init__(self, folder: Path, make_delta: Any, backbone: Backbone, task: TaskSpec) -> None:
        self.out, self.work, self.zoo = folder / "runs.jsonl", folder / "work", folder / "zoo"
        self._make_delta = make_delta
        self._backbone = backbone
        self._task = task

    def add(self, run: Run, *, keep: bool = True, **changes: Any) -> None:
        append_run(self.out, run)
        if keep and run.outcome is not None:
            ref = self._backbone.ref.model_copy(update={"id": run.outcome.backbone})
            facts: dict[str, Any] = {"backbone": ref, "metrics": run.outcome.scores} | changes
            delta = self._make_delta(self._backbone, self._task, "bitfit")
            manifest = delta.manifest.model_copy(update=facts)
            path = delta_path(self.work / run.key, ref.id, "rte", run.outcome.strategy)
            write_delta(replace(delta, manifest=manifest), path)

    def ship(self) -> int:
        words = ["--results", str(self.out), "--work", str(self.work), "--zoo", str(self.zoo)]
        return zoo.main(words)

    @property
    def target(self) -> Path:
        return delta_path(self.zoo, DEFAULT_BACKBONE, "rte", "bitfit")

    def shipped(self) -> SplitMetrics:
        return read_delta(self.target).manifest.metrics["selection"]


@pytest.fixture
def sweep(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> Sweep:
    task = toy_tasks["toy2"].model_copy(update={"name": "rte"})
    return Sweep(tmp_path, make_delta, tiny_backbone, task)


def test_the_best_by_the_selection_rows_is_shipped_whatever_the_dev_rows_say(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    for selection, dev, seed, rate in ((0.5, 0.9, 0, 0.1), (0.7, 0.1, 1, 0.2), (0.6, 0.8, 1, 0.1)):
        sweep.add(run_with(selection, dev, seed=seed, lr=rate))
    assert sweep.ship() == 0
    said = capsys.readouterr().out
    assert "rte bitfit: rate 0.2, seed 1: accuracy 0.7000 on 20 selection rows\n" in said
    assert "rte head: none in the zoo; no finished run that counts\n" in said
    assert len(said.splitlines()) == len(TASKS) * len(zoo.STRATEGIES)
    assert sweep.shipped().values["accuracy"] == 0.7
    assert card_path(sweep.target).read_text() == render_card(sweep.target)


@pytest.mark.parametrize(
    "other",
    [
        run_with(0.9, 0.9, rows=100, train_rows=100),
        run_with(0.9, 0.9, reinit="biases"),
        run_with(0.9, 0.9, backbone="another"),
        run_with(0.9, 0.9, data="sample", rows=500),
    ],
    ids=["fewer rows", "re-initialised", "other backbone", "generated rows"],
)
def test_runs_that_are_another_recipe_do_not_count(sweep: Sweep, other: Run) -> None:
    sweep.add(other)
    sweep.add(run_with(0.6, 0.6))
    assert sweep.ship() == 0
    assert sweep.shipped().values["accuracy"] == 0.6


@pytest.mark.parametrize(("earlier", "wins"), [(0.82, True), (0.95, False)])
def test_todays_defaults_win_within_their_standard_error(earlier: float, *, wins: bool) -> None:
    """Of 20 selection rows with a score of 0.8 that is 0.09."""
    today = run_with(0.8, 0.5, seed=1).model_copy(update={"part": zoo.RECIPE})
    (chosen,) = zoo.choose([run_with(earlier, 0.9, seed=2), today]).values()
    assert (chosen == today) == wins


def test_a_start_from_another_task_counts(sweep: Sweep) -> None:
    """The delta records its start; the choice depends on the score alone."""
    sweep.add(run_with(0.9, 0.9, init_from="mnli.safetensors"))
    sweep.add(run_with(0.6, 0.6))
    assert sweep.ship() == 0
    assert sweep.shipped().values["accuracy"] == 0.9


def test_a_failed_run_does_not_count(sweep: Sweep) -> None:
    failed = run_with(0.9, 0.9, seed=1).model_copy(update={"outcome": None, "error": "diverged"})
    sweep.add(failed)
    sweep.add(run_with(0.6, 0.6))
    assert sweep.ship() == 0
    assert sweep.shipped().values["accuracy"] == 0.6


def test_a_best_run_without_its_delta_leaves_the_shipped_one(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second best is not the best: nothing takes its place silently."""
    sweep.add(run_with(0.6, 0.6))
    assert sweep.ship() == 0
    before = sweep.target.read_bytes()
    best = run_with(0.8, 0.8, seed=1)
    sweep.add(best, keep=False)
    capsys.readouterr()
    assert sweep.ship() == 0
    said = capsys.readouterr().out
    assert (
        "rte bitfit: kept the shipped one (accuracy 0.6000 on 20 selection rows); the delta of the "
        "best run is missing, repeat the run: python -m training.fit "
        f"--out {sweep.work / best.key}\n"
    ) in said
    assert sweep.target.read_bytes() == before


def test_the_best_run_need_not_be_repeated_when_its_delta_is_shipped_already(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    best = run_with(0.6, 0.6)
    sweep.add(best)
    sweep.ship()
    shutil.rmtree(sweep.work)
    capsys.readouterr()
    assert sweep.ship() == 0
    assert (
        "rte bitfit: the shipped one is the best run's (accuracy 0.6000 on 20 selection rows)\n"
        in capsys.readouterr().out
    )


def test_a_replaced_delta_is_reported(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.add(run_with(0.6, 0.6))
    sweep.ship()
    sweep.add(run_with(0.8, 0.8, seed=1))
    sweep.ship()
    assert "instead of accuracy 0.6000 on 20 selection rows" in capsys.readouterr().out
    assert sweep.shipped().values["accuracy"] == 0.8


def test_a_delta_of_another_run_is_refused_before_anything_is_shipped(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(0.6, 0.6)
    sweep.add(run, metrics=run_with(0.5, 0.5).outcome.scores)  # type: ignore[union-attr]
    assert sweep.ship() == 1
    assert f"not the delta of run {run.key}: its scores differ" in capsys.readouterr().err
    assert not sweep.zoo.exists()


def test_a_damaged_delta_is_refused(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with(0.6, 0.6)
    sweep.add(run)
    (path,) = (sweep.work / run.key).rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert sweep.ship() == 1
    assert str(path) in capsys.readouterr().err
    assert not sweep.zoo.exists()


def test_the_studies_make_a_run_for_every_cell_of_the_zoo() -> None:
    cells = {
        (run.options["task"], run.options["freeze"])
        for name in ("study.toml", "zoo.toml")
        for run in plan(read_study(ROOT / "docs/results" / name))
    }
    assert {(task, strategy) for task in TASKS for strategy in zoo.STRATEGIES} <= cells


class DevRows:
    """A zoo of one shipped delta, and made-up dev rows as many as it was judged on."""

    def __init__(self, folder: Path) -> None:
        self.zoo, self.data = folder / "zoo", folder / "data"
        shipped = delta_path(zoo_path(), DEFAULT_BACKBONE, "wnli", "head")
        self.delta = delta_path(self.zoo, DEFAULT_BACKBONE, "wnli", "head")
        self.delta.parent.mkdir(parents=True)
        shutil.copy(shipped, self.delta)
        self.write(read_delta(self.delta).manifest.metrics["validation"].rows)

    def write(self, count: int) -> None:
        (self.data / "wnli").mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            columns = {
                "sentence1": [f"The cup number {n} is full of it." for n in range(count)],
                "sentence2": [f"The cup {n} is full." for n in range(count)],
                "label": [n % 2 for n in range(count)],
            }
            pq.write_table(pa.table(columns), self.data / "wnli" / f"{split}.parquet")

    def fill(self) -> int:
        given = ["--predictions", "--zoo", str(self.zoo), "--data", str(self.data)]
        return zoo.main(given)


def test_missing_predictions_are_made_as_a_server_computes_them(
    tmp_path: Path, packaged_backbone: Backbone, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DevRows(tmp_path)
    assert made.fill() == 0
    path = predictions_path(made.delta)
    assert f"head.predictions.parquet of wnli: 71 rows of validation, {path.stat().st_size:,}" in (
        capsys.readouterr().out
    )
    store = Store([made.zoo], backbone=packaged_backbone.ref)
    found = read_rows(store.resolve("wnli"), None, 0, 100)
    assert (found.splits, found.version) == ({"validation": 71}, store.resolve("wnli").version)
    assert found.rows == list(range(1, 72))
    assert found.gold == [n % 2 for n in range(71)]
    assert set(pq.read_schema(path).names) == {"split", "row", "gold", "logits"}, "no text"
    engine = Engine(packaged_backbone, store, device="cpu", precision="fp32")
    texts = [("The cup number 3 is full of it.", "The cup 3 is full.")]
    (known,) = engine.predict(engine.tokenize(store.resolve("wnli"), texts))
    assert found.logits[3] == pytest.approx(known, abs=1e-3)

    assert made.fill() == 0
    assert capsys.readouterr().out == "", "they are there"
    table = pq.read_table(path).replace_schema_metadata({VERSION_KEY: "of another delta"})
    pq.write_table(table, path)
    assert made.fill() == 0
    assert "71 rows" in capsys.readouterr().out, "they were of another version"


def test_predictions_are_of_the_rows_that_the_manifest_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = DevRows(tmp_path)
    made.write(70)
    assert made.fill() == 1
    assert "70 rows of validation, but the delta was judged on 71" in capsys.readouterr().err
    assert not predictions_path(made.delta).exists()
    made.write(71)
    monkeypatch.setattr(zoo, "MOST_ROWS", 10)
    assert made.fill() == 0
    numbers = pq.read_table(predictions_path(made.delta))["row"].to_pylist()
    assert numbers == [1 + n * 71 // 10 for n in range(10)], "evenly spaced"
