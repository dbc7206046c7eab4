"""The earlier study's protocol: its plan beside its published tables, and runs of each method."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deltas import read_delta
from training.data.tasks import TASKS
from training.options import FitConfig
from training.study.plan import PlannedRun, plan, read_study
from training.study.results import Run, read_runs
from training.study.tables import read_earlier

ROOT = Path(__file__).parents[3]
FILE = Path("docs/results/earlier_study.toml")
# A folder with the tables as they were published, which are no part of this project.
TABLES = (os.environ.get("EARLIER_STUDY_DIR"), str(ROOT.parent / "shared" / "seed"))
METHODS = {
    "Full": "full",
    "BitFit": "bitfit",
    "LayerNorm": "layernorm",
    "Random": "random:0.001",
    "InitBias&BitFit": "initbias+bitfit",
}
SEEDS = 10
Setting = tuple[str, str, float, int]  # task, method, learning rate, rows (0: all)


@pytest.fixture(scope="module")
def planned() -> list[PlannedRun]:
    return plan(read_study(ROOT / FILE))


def method_of(run: PlannedRun) -> str:
    """Return the name under which a run's delta is served, as the tables have it."""
    prefix = {"none": "", "biases": "initbias+", "all": "init+"}
    return prefix[run.options.get("reinit", "none")] + str(run.options["freeze"])


def setting_of(run: PlannedRun) -> Setting:
    (rate,) = run.rates  # each rate runs with each seed, so none is chosen
    return str(run.options["task"]), method_of(run), rate, run.options.get("train_rows", 0)


@pytest.fixture(scope="module")
def settings(planned: list[PlannedRun]) -> dict[Setting, set[int]]:
    """The seeds of each setting."""
    found: dict[Setting, set[int]] = {}
    for run in planned:
        seeds = found.setdefault(setting_of(run), set())
        assert run.options["seed"] not in seeds
        seeds.add(run.options["seed"])
    return found


def check_plan(settings: dict[Setting, set[int]], published: set[Setting]) -> None:
    """Every published number has its runs; what else is planned has no published number."""
    assert published <= settings.keys(), published - settings.keys()
    assert all(seeds == set(range(SEEDS)) for seeds in settings.values())
    others = Counter((task, method) for task, method, _, _ in settings.keys() - published)
    assert others == {
        ("qnli", "random:0.001"): 3,
        ("qnli", "initbias+bitfit"): 4,
        **{(task, "init+bitfit"): 4 for task in ("rte", "cola", "sst2", "qnli")},
    }


def test_the_plan_has_the_runs_of_the_published_tables(settings: dict[Setting, set[int]]) -> None:
    folder = next((Path(path) for path in TABLES if path and Path(path).is_dir()), None)
    if folder is None:
        pytest.skip(
            "no published tables: set EARLIER_STUDY_DIR to a folder with compare_methods.csv and "
            "low_data.csv"
        )
    published: set[Setting] = set()
    for name in ("compare_methods.csv", "low_data.csv"):
        with (folder / name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                task = row["dataset"].replace("-", "").lower()
                size = row.get("size", "All")
                rows = 0 if size == "All" else int(size)
                published.add((task, METHODS[row["FT"]], float(row["lr"]), rows))
    check_plan(settings, published)


def test_the_plan_has_the_runs_of_the_committed_numbers(
    settings: dict[Setting, set[int]],
) -> None:
    rows = read_earlier(ROOT / "docs/results/earlier_study.csv")
    published = {
        (row["task"], row["strategy"], float(row["learning_rate"]), int(row["train_rows"] or 0))
        for row in rows
    }
    check_plan(settings, published)


def test_parts_say_which_runs_have_numbers(planned: list[PlannedRun]) -> None:
    counts = Counter(run.part for run in planned)
    assert counts == {"main": 490, "low-data": 700, "beyond": 230}


def test_the_protocol_is_the_earlier_studys_and_no_default_can_change_it(
    planned: list[PlannedRun],
) -> None:
    """Adam at one constant rate on batches of 8, a fifth of the rows to select, dropout 0.1."""
    wanted = {
        "batch_size": 8, "epochs": 20.0, "evals_per_epoch": 10.0, "selection_share": 0.2,
        "dropout": 0.1, "schedule": "constant", "warmup": 0.0, "weight_decay": 0.0,
        "clip_norm": 0.0, "head_lr": "same", "batch_order": "random", "precision": "fp32",
        "head_start": "random", "pooling": "cls", "pairs": "joint",
    }  # fmt: skip
    for run in planned:
        assert run.options.items() >= wanted.items()
        config = FitConfig.model_validate(run.with_rate(0.1))
        rows = config.train_rows or TASKS[config.task].canonical_rows["train"]
        assert config.max_selection_rows >= config.selection_share * rows, "the share is whole"
        assert str(config.backbone).startswith("google-bert/bert-base-cased@")
    # These name rows, where and how; all others change what is learnt, so the file names them.
    free = {
        "task", "freeze", "reinit", "init_from", "init_head", "data", "train_rows", "lr", "evals",
        "patience", "seed", "device", "train_file", "delimiter", "quoting", "validation_file",
        "dataset", "train_split", "validation_split", "text_columns", "label_column", "name",
        "kind", "out", "overwrite", "resume", "dry_run", "json_", "target", "coverage",
        "description", "question", "example",
    }  # fmt: skip
    unnamed = set(FitConfig.model_fields) - free - planned[0].options.keys()
    assert not unnamed, f"name {unnamed} in {FILE}, with the value that the earlier study had"


@pytest.fixture(scope="module")
def cased_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a cased tokenizer and 512 positions, as transformers writes both."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("backbone") / "tiny-bert-cased"
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *letters.upper()]
    pieces += [f"##{letter}" for letter in letters]
    pieces += ["Good", "good", "Bad", "bad", "the", "The", "film", "is", "."]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False)
    assert tokenizer.tokenize("Good good") == ["Good", "good"]
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small RTE whose label stands in its text."""
    folder = tmp_path_factory.mktemp("glue")
    draw = random.Random(0)
    for split, count in (("train", 80), ("validation", 30)):
        labels = [draw.randrange(2) for _ in range(count)]
        first = [f"The film {('Bad', 'Good')[n]} {draw.randrange(10**6)}" for n in labels]
        second = [f"the film is {draw.choice(['good', 'bad'])} ." for _ in labels]
        path = folder / "rte" / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        table = {"sentence1": first, "sentence2": second, "label": labels}
        pq.write_table(pa.table(table), path)
    return folder


@pytest.mark.slow
def test_each_method_runs_over_another_backbone(
    cased_backbone: Path, glue: Path, tmp_path: Path
) -> None:
    """The file with a tiny backbone and few rows: all rates of all methods on one task."""
    out, work = tmp_path / "runs.jsonl", tmp_path / "work"
    command = [sys.executable, "-m", "training.sweep", "--study", str(ROOT / FILE)]
    command += ["--tasks", "rte", "--seeds", "1", "--data", str(glue), "--workers", "2"]
    command += ["--set", f"backbone={cased_backbone},train_rows=60,epochs=2,evals_per_epoch=3"]
    command += ["--out", str(out), "--work", str(work), "--keep-deltas"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    runs = list(read_runs(out).values())
    rates = {"full": 1, "bitfit": 3, "layernorm": 3, "random:0.001": 3}
    rates |= {"initbias+bitfit": 4, "init+bitfit": 4}
    outcomes = [run.outcome for run in runs if run.outcome]
    assert Counter(outcome.strategy for outcome in outcomes) == rates
    for outcome in outcomes:
        assert (outcome.selection_rows, outcome.train_rows) == (12, 48)
        assert outcome.steps == 12
        assert len(outcome.history.step) == 6
        assert outcome.head_learning_rate == outcome.learning_rate
        assert outcome.scores["validation"].rows == 30
        assert (outcome.precision, outcome.batch_size) == ("fp32", 8)
    manifests = [read_delta(delta_of(run, work)).manifest for run in runs]
    values = {manifest.strategy.served_as: manifest for manifest in manifests}
    total = values["full"].total_parameters
    assert values["full"].trainable_parameters == total
    entries = {name: len(manifest.entries) for name, manifest in values.items()}
    assert entries["init+bitfit"] == entries["full"], "all that was drawn anew is in the delta"
    assert entries["initbias+bitfit"] == entries["bitfit"]
    for manifest in values.values():
        facts = manifest.training
        assert (facts.clip_norm, facts.batch_order, facts.dropout) == (0.0, "random", 0.1)
        assert (facts.decay, facts.warmup) == ("constant", 0.0)


def delta_of(run: Run, work: Path) -> Path:
    """Return the file that a run has written."""
    (path,) = (work / run.key).rglob("*.safetensors")
    return path
