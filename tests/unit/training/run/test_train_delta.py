"""Whole training runs on the tiny backbone: files, repeated runs, summaries, refused options.

Interrupted runs: `tests/unit/training/test_fit_resume.py`. The loop: `test_loop.py`.
"""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.engine.engine import Engine
from deltas import Backbone, Delta, Store, read_delta
from deltas.store.predictions import predictions_path
from training import fit
from training.run import train_delta
from training.run.evaluation import METRICS, compute_metrics, decisions
from training.run.output import read_predictions
from training.run.task_model import Split

FILLERS = ["the", "film", "and", "very", "not", "a", "b", "c"]


class Done(NamedTuple):
    """Exit code and output of a run."""

    code: int
    out: str
    err: str


class Run:
    """Runs the command with small defaults."""

    def __init__(self, backbone: Path, out: Path) -> None:
        self._defaults: dict[str, object] = {
            "backbone": backbone,
            "max_length": 24,
            "epochs": 2,
            "batch_size": 8,
            "out": out,
        }

    def __call__(self, *words: str | Path, **flags: object) -> Done:
        given = [str(word) for word in words]
        for name, value in (self._defaults | flags).items():
            given += [f"--{name.replace('_', '-')}", str(value)]
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            code = fit.main(given)
        return Done(code, out.getvalue(), err.getvalue())


@pytest.fixture
def run(tiny_backbone_dir: Path, tmp_path: Path) -> Run:
    """A function that runs the command with small defaults."""
    return Run(tiny_backbone_dir, tmp_path / "out")


def rows_of(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Two texts and a label that the first one's words decide."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choice(["bad", "good"])
        words = [*draw.choices(FILLERS, k=draw.randrange(1, 6)), label]
        draw.shuffle(words)
        rows.append((" ".join(words), " ".join(draw.choices(FILLERS, k=2)), label))
    return rows


def write_csv(path: Path, rows: Sequence[Sequence[object]], *columns: str) -> Path:
    """Write rows under a header."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def custom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Flags for a task of the user's custom: 90 rows to train on, 30 to judge on."""
    folder = tmp_path_factory.mktemp("own")
    names = ("first", "second", "label")
    return {
        "train_file": write_csv(folder / "train.csv", rows_of(90, 1), *names),
        "validation_file": write_csv(folder / "dev.csv", rows_of(30, 2), *names),
        "text_columns": "first",
        "label_column": "label",
        "name": "mine",
    }


class PlainRun(NamedTuple):
    """A run with nothing but the defaults, and what it left."""

    done: Done
    folder: Path


@pytest.fixture(scope="module")
def plain(
    tiny_backbone_dir: Path, custom: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> PlainRun:
    """The run that several tests look at. None of them changes what it left."""
    folder = tmp_path_factory.mktemp("plain")
    return PlainRun(Run(tiny_backbone_dir, folder / "out")(**custom), folder)


def written(tmp_path: Path, strategy: str = "bitfit", task: str = "mine") -> Path:
    return tmp_path / "out/tiny-bert" / task / f"{strategy}.safetensors"


def values(delta: Delta) -> dict[str, torch.Tensor]:
    """All that was trained."""
    held = {name: entry.values for name, entry in delta.entries.items()}
    return held | {"weight": delta.head_weight, "bias": delta.head_bias}


def equal(first: Delta, second: Delta) -> bool:
    """Bit for bit."""
    mine, theirs = values(first), values(second)
    return list(mine) == list(theirs) and all(
        torch.equal(mine[name], theirs[name]) for name in mine
    )


def served_metrics(
    folder: Path, backbone: Backbone, task: str, rows: Sequence[Sequence[str]], labels: Any
) -> dict[str, float]:
    """The metrics computed again by the engine that serves, from the file alone."""
    store = Store([folder], backbone=backbone.ref)
    assert store.rejected == []
    record = store.resolve(task)
    engine = Engine(backbone, store, device="cpu", precision="fp32")
    width = len(record.manifest.task.text_fields)
    given = [tuple(row[:width]) for row in rows]
    logits = np.array(engine.predict(engine.tokenize(record, given)))
    names = list(record.manifest.metrics["selection"].values)
    names = [name for name in names if name in METRICS]
    kind, rule = record.manifest.task.kind, record.manifest.decision
    found = compute_metrics(names, decisions(kind, logits, rule), np.array(labels))
    if rule is not None and rule.thresholds:
        plain = compute_metrics(names, decisions(kind, logits), np.array(labels))
        found |= {f"{name}_at_half": value for name, value in plain.items()}
    return found


@pytest.mark.parametrize(
    "strategy",
    ["full", "head", "bitfit", "layernorm", "random:0.01", "top:1", "bitfit:query+random:0.01"],
)
def test_the_served_scores_equal_the_trained_ones(
    run: Run, custom: dict[str, Any], tmp_path: Path, tiny_backbone: Backbone, strategy: str
) -> None:
    """The file's dev score, its counts and its facts, for every kind of strategy."""
    done = run("--freeze", strategy, precision="fp32", **custom)
    assert done.code == 0, done.err
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    delta = read_delta(path)
    manifest = delta.manifest
    assert manifest.key == ("mine", strategy)
    assert manifest.task.labels == ("bad", "good")
    assert manifest.backbone == tiny_backbone.ref
    trained = sum(value.numel() for value in values(delta).values())
    assert manifest.trainable_parameters == trained
    sizes = [prod(value.shape) for value in tiny_backbone.parameters.values()]
    assert manifest.total_parameters == sum(sizes) + 2 * 36 + 2
    facts = manifest.training
    assert (facts.train_rows, facts.selection_rows, facts.epochs) == (79, 11, 2.025)
    assert (facts.steps, facts.batch_size, facts.data) == (20, 8, "files")
    dev = rows_of(30, 2)
    codes = [("bad", "good").index(label) for _, _, label in dev]
    again = served_metrics(tmp_path / "out", tiny_backbone, "mine", [row[:1] for row in dev], codes)
    assert manifest.metrics["validation"].values == pytest.approx(again, abs=1e-9)
    assert manifest.metrics["validation"].rows == 30


def test_summary_for_people(plain: PlainRun) -> None:
    done, path = plain.done, written(plain.folder)
    delta = read_delta(path)
    assert f"delta       {path} ({path.stat().st_size / 1000:,.1f} kB" in done.out
    assert f"version {delta.version}" in done.out
    assert re.search(r"trained     [\d,]+ of 2\d,\d{3} parameters \(\d\.\d{3} %\)", done.out)
    score = delta.manifest.metrics["validation"].values["accuracy"]
    assert f"accuracy {score:.4f}" in done.out
    assert "Traceback" not in done.err


def test_only_json_is_on_standard_output(run: Run, custom: dict[str, Any], tmp_path: Path) -> None:
    done = run("--json", **custom)
    facts = json.loads(done.out)
    assert done.out.count("\n") == 1
    delta = read_delta(Path(facts["file"]))
    assert facts["version"] == delta.version
    assert facts["bytes"] == written(tmp_path).stat().st_size
    assert facts["trained_parameters"] == delta.manifest.trainable_parameters
    assert facts["metrics"]["validation"]["rows"] == 30
    assert facts["strategy"] == "bitfit"


def test_progress_is_on_standard_error(plain: PlainRun) -> None:
    done = plain.done
    assert "mine bitfit" in done.err
    assert "loss=" in done.err
    assert "accuracy=" in done.err
    assert "20/20" in done.err
    assert "loss=" not in done.out


def test_the_delta_and_its_predictions_are_left(plain: PlainRun) -> None:
    delta = written(plain.folder)
    files = {path for path in (plain.folder / "out").rglob("*") if path.is_file()}
    predictions = predictions_path(delta)
    assert files == {delta, predictions}
    numbers, gold, logits = read_predictions(predictions, "validation")
    manifest = read_delta(delta).manifest
    assert numbers == list(range(1, manifest.metrics["validation"].rows + 1))
    right = logits.argmax(1) == torch.tensor(gold)
    accuracy = manifest.metrics["validation"].values["accuracy"]
    assert float(right.float().mean()) == pytest.approx(accuracy)
    assert len(read_predictions(predictions, "selection")[0]) == manifest.metrics["selection"].rows


def test_the_history_of_the_run_is_in_the_manifest(
    run: Run, custom: dict[str, Any], tmp_path: Path
) -> None:
    run(**custom, evals=4)
    manifest = read_delta(written(tmp_path)).manifest
    history = manifest.training.history
    assert history is not None
    assert history.train.step == tuple(range(1, manifest.training.steps + 1))
    assert history.selection.step == (0, 5, 10, 15, 20), "the solved head is scored, too"
    best = max(history.selection.metric)
    assert best == pytest.approx(manifest.metrics["selection"].values["accuracy"], rel=1e-5)
    assert max(history.train.learning_rate) == pytest.approx(manifest.training.learning_rate)


def test_the_summary_has_the_calibration_error(plain: PlainRun) -> None:
    said = plain.done.out
    for split, scores in read_delta(written(plain.folder)).manifest.metrics.items():
        assert scores.reliability is not None
        line = next(line for line in said.splitlines() if line.startswith(f"{split} "))
        assert f"expected calibration error {scores.reliability.error:.4f}" in line


def test_a_solved_head_takes_no_steps_and_has_no_history(
    tiny_backbone_dir: Path, custom: dict[str, Any], tmp_path: Path
) -> None:
    flags = custom | {"freeze": "head", "backbone": tiny_backbone_dir, "out": tmp_path / "out"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    assert fit.main([*words, "--max-length=24"]) == 0
    manifest = read_delta(written(tmp_path, "head")).manifest
    assert manifest.training.steps == 0
    assert manifest.training.history is None
    assert '"history"' not in manifest.model_dump_json()


@pytest.mark.parametrize("strategy", ["bitfit", "random:0.01"])
def test_a_seed_repeats_a_run_bit_for_bit(
    run: Run, custom: dict[str, Any], tmp_path: Path, strategy: str
) -> None:
    """With dropout, whatever was drawn before; another seed is another delta."""
    made = {}
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        torch.rand(5)
        out = tmp_path / name
        done = run(freeze=strategy, seed=seed, dropout=0.1, out=out, **custom)
        assert done.code == 0, done.err
        made[name] = read_delta(next(out.rglob("*.safetensors")))
    assert equal(made["first"], made["second"])
    assert made["first"].version == made["second"].version
    assert not equal(made["first"], made["other"])
    assert made["first"].version != made["other"].version


def test_dev_rows_have_no_influence(run: Run, custom: dict[str, Any], tmp_path: Path) -> None:
    """Other dev rows with other labels give the same delta: nothing is selected on them."""
    first = run("--json", **custom)
    rows = [(text, other, "good") for text, other, _ in rows_of(50, 9)]
    rows[0] = (*rows[0][:2], "bad")
    other = write_csv(tmp_path / "other.csv", rows, "first", "second", "label")
    second = run("--json", **custom | {"validation_file": other, "out": tmp_path / "second"})
    assert json.loads(first.out)["version"] == json.loads(second.out)["version"]
    scores = [json.loads(done.out)["metrics"] for done in (first, second)]
    assert scores[0]["selection"] == scores[1]["selection"]
    assert scores[0]["validation"] != scores[1]["validation"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_selection_rows_are_not_trained_on(
    run: Run, custom: dict[str, Any], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    seen: list[tuple[Split, Split]] = []
    plain = train_delta.train  # type: ignore[attr-defined]

    def spying(model: Any, task: Any, parts: tuple[Split, Split], *rest: Any, **more: Any) -> Any:
        seen.append(parts)
        return plain(model, task, parts, *rest, **more)

    monkeypatch.setattr(train_delta, "train", spying)
    run(selection_share=share, head_start="random", **custom)
    ((train, selection),) = seen
    assert abs(len(selection.rows) - share * 90) < 4
    together = sorted(row.input_ids for row in (*train.rows, *selection.rows))
    texts = [row[0] for row in rows_of(90, 1)]
    assert len(together) == len(texts)
    assert len({tuple(ids) for ids in together}) == len(set(texts))
    parts = [{tuple(row.input_ids) for row in part.rows} for part in (train, selection)]
    assert not parts[0] & parts[1], "the same text on both sides"


@pytest.mark.parametrize(("most", "held_out"), [(7, 7), (1000, 45)])
def test_the_selection_rows_have_a_limit(
    run: Run, custom: dict[str, Any], tmp_path: Path, most: int, held_out: int
) -> None:
    run(selection_share=0.5, max_selection_rows=most, head_start="random", **custom)
    facts = read_delta(written(tmp_path)).manifest.training
    assert abs(facts.selection_rows - held_out) <= 3
    assert facts.train_rows + facts.selection_rows == 90


def test_train_rows_are_drawn(run: Run, custom: dict[str, Any], tmp_path: Path) -> None:
    run(train_rows=40, head_start="random", **custom)
    facts = read_delta(written(tmp_path)).manifest.training
    assert facts.train_rows + facts.selection_rows == 40
    assert "40 of 90 train rows" in facts.data_note


@pytest.mark.parametrize("reinit", ["biases", "all"])
@pytest.mark.parametrize("strategy", ["bitfit", "random:0.05"])
def test_reinitialised_runs_are_served_over_the_original(
    run: Run,
    custom: dict[str, Any],
    tmp_path: Path,
    tiny_backbone: Backbone,
    reinit: str,
    strategy: str,
) -> None:
    """The file says what lies over the backbone as it was published."""
    done = run(reinit=reinit, freeze=strategy, precision="fp32", **custom)
    assert done.code == 0, done.err
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    delta = read_delta(path)
    assert delta.manifest.strategy.reinit == reinit
    biases = {name for name in tiny_backbone.parameters if name.endswith(".bias")}
    whole = biases if reinit == "biases" else set(tiny_backbone.parameters)
    assert {i.name for i in delta.manifest.entries if i.kind == "dense"} == whole
    held = sum(value.numel() for value in values(delta).values())
    trained = delta.manifest.trainable_parameters
    assert trained < held if strategy != "bitfit" or reinit == "all" else trained == held
    dev = rows_of(30, 2)
    codes = [("bad", "good").index(label) for _, _, label in dev]
    again = served_metrics(tmp_path / "out", tiny_backbone, "mine", [row[:1] for row in dev], codes)
    assert delta.manifest.metrics["validation"].values == pytest.approx(again, abs=1e-9)


MANY = rows_of(60, 5)
KINDS: dict[str, tuple[list[Any], str, str, tuple[str, ...]]] = {
    "regression": ([len(text) / 7 for text, *_ in MANY], "first,second", "regression", ()),
    "multi label": (
        ["|".join(["long"] * (len(text) > 15) + [label]) for text, _, label in MANY],
        "first",
        "multi_label",
        ("bad", "good", "long"),
    ),
    "three labels": (
        ["xyz"[number % 3] for number in range(len(MANY))],
        "second,first",
        "single_label",
        ("x", "y", "z"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_of_every_kind(run: Run, tmp_path: Path, tiny_backbone: Backbone, kind: str) -> None:
    targets, texts, named, labels = KINDS[kind]
    rows = [(*row[:2], target) for row, target in zip(MANY, targets, strict=True)]
    file = write_csv(tmp_path / "train.csv", rows, "first", "second", "label")
    done = run(
        train_file=file,
        validation_file=file,
        text_columns=texts,
        label_column="label",
        name="mine",
        precision="fp32",
    )
    assert done.code == 0, done.err
    manifest = read_delta(written(tmp_path)).manifest
    assert (manifest.task.kind, manifest.task.labels) == (named, labels)
    assert manifest.task.text_fields == tuple(texts.split(","))
    places = {"first": 0, "second": 1}
    given = [[row[places[field]] for field in texts.split(",")] for row in MANY]
    if named == "regression":
        wanted: Any = np.array(targets, dtype=np.float32)
    elif named == "multi_label":
        wanted = [[int(label in target.split("|")) for label in labels] for target in targets]
    else:
        wanted = [labels.index(target) for target in targets]
    again = served_metrics(tmp_path / "out", tiny_backbone, "mine", given, wanted)
    assert manifest.metrics["validation"].values == pytest.approx(again, abs=1e-4)


def test_values_of_any_range_can_be_learnt(
    run: Run, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    """Steps of a learning rate of 0.01 never get from 0 to 50,000, nor apart by thousands."""
    rows = [(text, 50_000.5 + 1000 * ("good" in text)) for text, *_ in MANY]
    file = write_csv(tmp_path / "train.csv", rows, "text", "label")
    flags = {"train_file": file, "validation_file": file, "text_columns": "text"}
    flags["precision"] = "fp32"  # compared below with what float32 serves
    done = run(label_column="label", name="mine", freeze="full", lr=0.005, epochs=12, **flags)
    assert done.code == 0, done.err
    values = read_delta(written(tmp_path, "full")).manifest.metrics["validation"].values
    assert values["mse"] < 250**2, values
    given = [(text,) for text, _ in rows]
    again = served_metrics(
        tmp_path / "out", tiny_backbone, "mine", given, np.array([value for _, value in rows])
    )
    assert again["mse"] == pytest.approx(values["mse"], rel=1e-3)


def test_a_study_of_initial_values_stands_beside_plain_bitfit(
    run: Run, custom: dict[str, Any], tmp_path: Path
) -> None:
    """InitBias+BitFit, Init+BitFit and BitFit have their custom files and names."""
    for reinit in ("none", "biases", "all"):
        assert run(reinit=reinit, head_start="random", **custom).code == 0
    store = Store([tmp_path / "out"])
    assert store.strategies("mine") == ["bitfit", "init+bitfit", "initbias+bitfit"]
    assert store.default_strategy("mine") == "bitfit"
    names = {path.name for path in (tmp_path / "out").rglob("*.safetensors")}
    assert names == {f"{name}.safetensors" for name in store.strategies("mine")}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"freeze": "params:" + "a|" * 200 + "bias"}, "--freeze: 411 characters; at most 240"),
        ({"seed": 2**31}, "--seed: .*less than 2147483648"),
        ({"out": "/proc/nope"}, "--out: can't write into /proc/nope"),
        ({"out": "/proc/version"}, "--out: /proc/version is a file; name a folder"),
    ],
)
def test_an_error_at_the_end_is_reported_at_the_start(
    run: Run, custom: dict[str, Any], flags: dict[str, Any], sentence: str
) -> None:
    done = run(**custom | flags)
    assert done.code == 2
    assert re.search(sentence, done.err)
    assert "step/s" not in done.err


def test_the_summary_states_kind_and_labels(plain: PlainRun) -> None:
    assert "labels      bad, good\n" in plain.done.out


@pytest.fixture(scope="session")
def glue_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the layout of GLUE with a few invented rows of MNLI."""
    root = tmp_path_factory.mktemp("glue")
    (root / "mnli").mkdir()
    sizes = {"train": 60, "validation_matched": 200, "validation_mismatched": 200}
    for seed, (split, count) in enumerate(sizes.items(), start=1):
        rows = rows_of(count, seed)
        table = pa.table(
            {
                "premise": [row[0] for row in rows],
                "hypothesis": [row[1] for row in rows],
                "label": [number % 3 for number in range(count)],
            }
        )
        pq.write_table(table, root / "mnli" / f"{split}.parquet")
    return root


@pytest.mark.parametrize("strategy", ["head", "bitfit"])
def test_each_dev_set_of_mnli_is_evaluated_on_its_rows(
    run: Run, glue_like: Path, tmp_path: Path, tiny_backbone: Backbone, strategy: str
) -> None:
    done = run(task="mnli", data=glue_like, freeze=strategy, precision="fp32")
    assert done.code == 0, done.err
    manifest = read_delta(written(tmp_path, strategy, "mnli")).manifest
    assert list(manifest.metrics) == ["selection", "validation_matched", "validation_mismatched"]
    assert "sample of the GLUE train set: 60 of 392,702 rows" in manifest.training.data_note
    for split, seed in (("validation_matched", 2), ("validation_mismatched", 3)):
        rows = [row[:2] for row in rows_of(200, seed)]
        labels = [number % 3 for number in range(200)]
        again = served_metrics(tmp_path / "out", tiny_backbone, "mnli", rows, labels)
        assert manifest.metrics[split].values == pytest.approx(again, abs=1e-9), split


def test_the_sample_says_so(run: Run, tmp_path: Path) -> None:
    done = run(task="rte", data="sample", train_rows=60)
    assert done.code == 0, done.err
    manifest = read_delta(written(tmp_path, task="rte")).manifest
    assert manifest.training.data == "sample"
    assert "not GLUE" in manifest.training.data_note
    assert "not GLUE" in manifest.metrics["validation"].note
    assert "not GLUE" in done.out


def test_the_command_is_recorded(run: Run, custom: dict[str, Any], tmp_path: Path) -> None:
    run(seed=5, lr=0.004, head_lr=0.02, head_start="random", **custom)
    facts = read_delta(written(tmp_path)).manifest.training
    assert facts.command.startswith("python -m training.fit --backbone")
    assert "--seed 5" in facts.command
    assert (facts.seed, facts.learning_rate, facts.head_learning_rate) == (5, 0.004, 0.02)
    assert {"python", "torch", "transformers"} <= set(facts.versions)
    assert facts.git_commit is None or re.fullmatch(r"[0-9a-f]{40}", facts.git_commit)


def test_an_existing_delta_is_replaced_only_with_overwrite(
    run: Run, custom: dict[str, Any], tmp_path: Path
) -> None:
    flags = custom | {"head_start": "random"}
    run(**flags)
    before = written(tmp_path).read_bytes()
    done = run(seed=9, **flags)
    assert done.code == 2
    assert f"error: {written(tmp_path)} exists; give --overwrite" in done.err
    assert done.out == ""
    assert written(tmp_path).read_bytes() == before
    assert run("--overwrite", seed=9, **flags).code == 0
    assert written(tmp_path).read_bytes() != before


def test_a_diverged_run_is_an_error_and_no_delta(
    run: Run, custom: dict[str, Any], tmp_path: Path
) -> None:
    done = run(lr=1e30, head_lr=1e30, head_start="random", **custom)
    assert done.code == 1
    assert re.search(r"error: .*(NaN|infinite|diverged)", done.err)
    assert not written(tmp_path).exists()


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_out_that_cannot_be_a_folder(
    run: Run, custom: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    """Said at once, not after an hour of training."""
    (tmp_path / "taken").touch()
    out = tmp_path / "taken" if kind == "file" else tmp_path / "taken/deeper"
    done = run(**custom | {"out": out})
    assert done.code in (1, 2)
    assert "error: " in done.err
    assert str(tmp_path / "taken") in done.err
    assert "20/20" not in done.err


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"max_length": 65}, 2, "--max-length 65: the backbone has positions for 64 tokens"),
        ({"freeze": "bitfitt"}, 2, "unknown strategy 'bitfitt'. Did you mean 'bitfit'?"),
        ({"freeze": "top:3"}, 2, "the backbone has 2 layers"),
        ({"freeze": "params:nothing"}, 2, "selects no parameter"),
        ({"train_rows": 91}, 2, "--train-rows 91"),
        ({"backbone": "/no/such/backbone"}, 1, "no backbone at '/no/such/backbone'"),
        ({"train_file": "/no/such/file.csv"}, 1, "/no/such/file.csv: no such file"),
        ({"text_columns": "frist"}, 1, "Did you mean 'first'?"),
        ({"text_columns": "first,first"}, 2, "not distinct"),
        ({"label_column": "lable"}, 1, "'label'"),
        ({"name": "cola"}, 2, "is a GLUE task"),
        ({"kind": "regression"}, 1, "label"),
    ],
)
def test_unusable_options_and_data_are_reported(
    run: Run,
    custom: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    code: int,
    sentence: str,
) -> None:
    done = run(**custom | changes)
    assert done.code == code
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["colla", "COLA", "../cola", ""])
def test_unknown_tasks_are_misuse(run: Run, task: str) -> None:
    done = run("--task", task)
    assert done.code == 2
    if task:
        assert "Did you mean 'cola'?" in done.err


def test_three_rows_are_enough_and_two_are_not(
    run: Run, custom: dict[str, Any], tmp_path: Path
) -> None:
    """One to select on, and one of each label to train on."""
    rows = [("good film", "a", "good"), ("bad film", "b", "bad"), ("a film", "c", "bad")]
    three = write_csv(tmp_path / "three.csv", rows, "first", "second", "label")
    assert run(**custom | {"train_file": three}).code == 0
    two = write_csv(tmp_path / "two.csv", rows[:2], "first", "second", "label")
    done = run(**custom | {"train_file": two, "out": tmp_path / "two"})
    assert done.code in (1, 2)
    assert "error: " in done.err
