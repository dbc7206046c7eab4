"""A data set in a folder becomes a custom task; clear errors for everything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from deltas import read_delta
from deltas.__main__ import main as deltas_main
from training import fit
from training.data.custom import CustomTask, load_files
from training.data.hub_dataset import Address, load_data_set, parse_address
from training.data.rows import TaskData
from training.errors import ConfigError, DataError

ROWS = 40


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that `datasets` writes stay in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def rows_of(labels: list[Any], feature: Any = None) -> Dataset:
    """Make rows with two texts each; the label's type is guessed unless given."""
    values = {
        "text": [f"text {n} says {label}" for n, label in enumerate(labels)],
        "other": [f"other {n}" for n in range(len(labels))],
        "label": labels,
    }
    text = Value("string")
    features = feature and Features({"text": text, "other": text, "label": feature})
    return Dataset.from_dict(values, features=features)


NAMES = rows_of(["no", "yes"] * (ROWS // 2))


def write(folder: Path, **splits: Dataset) -> str:
    """A folder with a parquet file for each split."""
    folder.mkdir()
    for split, rows in splits.items():
        rows.to_parquet(folder / f"{split}.parquet")
    return str(folder)


def load(
    text: str, train_split: str = "train", validation_split: str | None = None, **changes: Any
) -> TaskData:
    options: dict[str, Any] = {"text_columns": ("text",), "label_column": "label", "name": "mine"}
    return load_data_set(text, (train_split, validation_split), CustomTask(**(options | changes)))


def refused(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*args, **options)
    return str(caught.value)


def test_a_data_set_gives_the_same_rows_as_a_file(tmp_path: Path) -> None:
    """String labels, and a split that is made: the digest says that all is as with files."""
    folder = write(tmp_path / "rows", train=NAMES)
    data = load(folder)
    files = load_files(Path(folder) / "train.parquet", None, CustomTask(("text",), "label", "mine"))
    assert (data.digest, data.task, data.train) == (files.digest, files.task, files.train)
    assert data.source == "folder"
    assert data.task.labels == ("no", "yes")
    assert data.validation_notes == {
        "validation": "8 rows held out of data set rows, split train (seed 0)"
    }
    assert data.data_set is not None
    assert data.data_set.model_dump() == {
        "name": "rows",
        "config": None,
        "revision": None,
        "train_split": "train",
        "validation_split": None,
    }
    assert str(tmp_path) not in json.dumps([data.validation_notes, data.data_set.model_dump()])


def test_class_labels_have_their_names_in_their_order(tmp_path: Path) -> None:
    feature = ClassLabel(names=["worse", "better", "never"])
    data = load(write(tmp_path / "rows", train=rows_of([0, 1, 1, 0] * 10, feature)))
    assert data.task.labels == ("worse", "better")
    for (text,), label in zip(data.train.texts, data.train.labels, strict=True):
        assert text.endswith(f"says {label}")


def test_two_text_columns_make_pairs(tmp_path: Path) -> None:
    data = load(write(tmp_path / "rows", train=NAMES), text_columns=("other", "text"))
    assert data.task.text_fields == ("other", "text")
    assert all(re.match(r"other \d+", first) for first, _ in data.train.texts)


def test_fractions_make_a_regression_task(tmp_path: Path) -> None:
    data = load(write(tmp_path / "rows", train=rows_of([n / 8 for n in range(ROWS)])))
    assert (data.task.kind, data.task.labels) == ("regression", ())
    assert all(
        text.endswith(f"says {y}")
        for (text,), y in zip(data.train.texts, data.train.labels, strict=True)
    )


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([["b"], ["a", "b"], [], ["c"]], List(Value("string"))),
        ([[1], [0, 1], [], [2]], List(ClassLabel(names=["a", "b", "c"]))),
    ],
)
def test_a_row_may_have_several_labels(tmp_path: Path, labels: list[Any], feature: Any) -> None:
    data = load(write(tmp_path / "rows", train=rows_of(labels * 10, feature)))
    assert (data.task.kind, data.task.labels) == ("multi_label", ("a", "b", "c"))
    wanted = {
        str(names): cells
        for names, cells in zip(labels, [[0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], strict=True)
    }
    for (text,), cells in zip(data.train.texts, data.train.labels, strict=True):
        assert cells == wanted[text.partition(" says ")[2]]


def test_a_validation_split_is_taken_if_there_is_one(tmp_path: Path) -> None:
    others = rows_of(["yes"] * 5)
    folder = write(tmp_path / "rows", train=NAMES, validation=others, test=NAMES.select(range(9)))
    data = load(folder)
    assert [len(data.train), len(data.validation["validation"])] == [ROWS, 5]
    assert data.data_set is not None
    assert data.data_set.validation_split == "validation"
    assert len(load(folder, validation_split="test").validation["validation"]) == 9
    assert len(load(folder, "test", "train").train) == 9
    assert len(load(folder, "test").validation["validation"]) == 5


def test_the_train_split_is_never_the_validation_split_by_default(tmp_path: Path) -> None:
    data = load(write(tmp_path / "rows", validation=NAMES), "validation")
    assert len(data.train) + len(data.validation["validation"]) == ROWS
    assert data.data_set is not None
    assert data.data_set.validation_split is None


def test_jsonl_may_have_labels_of_two_types(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    lines = [{"text": f"text {n}", "label": [1, "x"][n % 2]} for n in range(ROWS)]
    (tmp_path / "rows" / "train.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    assert load(str(tmp_path / "rows")).task.labels == ("1", "x")


CSV = "text,label\n" + "".join(
    f"text {n},{label}\n" for n, label in enumerate(["NA", "007", "7", "1.0", "null", "true"] * 6)
)

DATES = "".join(
    json.dumps({"text": f"2020-01-{day}", "label": ["007", "7"][day % 2]}) + "\n"
    for day in range(10, 30)
)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", CSV),
        ("train.tsv", CSV.replace(",", "\t")),
        ("train.csv", CSV.replace(",", ";")),
        ("train.csv", "\ufeffsep=,\r\n" + CSV.replace("\n", "\r\n")),
        ("train.jsonl", DATES),
    ],
)
def test_values_are_those_of_the_same_file(tmp_path: Path, name: str, content: str) -> None:
    """`datasets` would guess types: NA no label, 007 the number 7, and a text a time."""
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / name
    path.write_text(content, encoding="utf-8")
    (tmp_path / "rows" / f"._{name}").write_bytes(bytes(99))  # as macOS leaves them
    custom = CustomTask(("text",), "label", "mine")
    data, files = load(str(tmp_path / "rows")), load_files(path, None, custom)
    assert (data.digest, data.task, data.source) == (files.digest, files.task, "folder")
    assert "007" in data.task.labels
    assert data.reading_notes[0] == f"data set rows, split train, {files.reading_notes[0]}"


def test_values_are_those_of_the_file_also_where_a_guess_is_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.csv").write_text(CSV)
    guessed = datasets.load_dataset(str(tmp_path / "rows"))
    assert guessed["train"][0]["label"] is None
    assert "NA" in load(str(tmp_path / "rows")).task.labels


def test_a_split_may_be_several_text_files(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for part in (0, 1):
        (tmp_path / "rows" / f"train-0000{part}-of-00002.csv").write_text(
            CSV.replace("t ", f"{part} ")
        )
    data = load(str(tmp_path / "rows"))
    assert len(data.train) + len(data.validation["validation"]) == 72
    assert len(data.reading_notes) == 2
    (tmp_path / "rows" / "train-00001-of-00002.csv").write_text("text,label\na\n")
    assert refused(str(tmp_path / "rows")).startswith(
        "data set rows, split train, file train-00001-of-00002.csv, row 1: 1 field,"
    )
    (tmp_path / "rows" / "train-00001-of-00002.csv").write_text("text,label\na,x\nb,\n")
    assert refused(str(tmp_path / "rows")).startswith(
        "data set rows, split train, file train-00001-of-00002.csv, row 2, column 'label': no label"
    )


def test_a_data_set_may_declare_its_types(tmp_path: Path) -> None:
    about = """---
dataset_info:
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': worse
          '1': better
---
"""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "README.md").write_text(about)
    lines = "".join(f"text {n},{n % 2}\n" for n in range(ROWS))
    (tmp_path / "rows" / "train.csv").write_text("text,label\n" + lines)
    for _ in ("read", "found in the cache"):
        assert load(str(tmp_path / "rows")).task.labels == ("worse", "better")


@pytest.mark.parametrize(
    ("options", "content"),
    [("sep: '^'", CSV.replace(",", "^")), ("skiprows: 1", f"by,me\n{CSV}")],
)
def test_a_data_set_may_say_how_to_read_its_files(
    tmp_path: Path, options: str, content: str
) -> None:
    about = f"---\nconfigs:\n- config_name: mine\n  data_files: train.csv\n  {options}\n---\n"
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "README.md").write_text(about)
    (tmp_path / "rows" / "train.csv").write_text(content.replace("NA", "x").replace("null", "y"))
    assert len(load(str(tmp_path / "rows")).task.labels) >= 5


def test_folders_written_by_save_to_disk_are_read(tmp_path: Path) -> None:
    NAMES.save_to_disk(tmp_path / "one")
    DatasetDict(train=NAMES, dev=NAMES.select(range(10))).save_to_disk(tmp_path / "two")
    assert load(str(tmp_path / "one")).digest == load(str(tmp_path / "two")).digest
    data = load(str(tmp_path / "two"), validation_split="dev")
    assert (len(data.train), len(data.validation["validation"])) == (ROWS, 10)
    assert "no configuration 'x'; it has none" in refused(f"{tmp_path / 'one'}:x")
    (tmp_path / "one" / "state.json").write_text("{")
    assert refused(str(tmp_path / "one")).startswith("data set one: can't be read: ")


CONFIGS = b"""---
configs:
- config_name: films
  data_files: films/*.parquet
- config_name: books
  data_files: books/*.parquet
---
"""


@pytest.fixture
def two(tmp_path: Path) -> str:
    """A folder with two configurations."""
    write(tmp_path / "two")
    write(tmp_path / "two" / "films", train=NAMES)
    write(tmp_path / "two" / "books", train=rows_of([1, 2, 3] * 10))
    (tmp_path / "two" / "README.md").write_bytes(CONFIGS)
    return str(tmp_path / "two")


def test_a_configuration_is_chosen_by_name(two: str) -> None:
    data = load(f"{two}:books")
    assert data.task.labels == ("1", "2", "3")
    assert data.data_set is not None
    assert data.data_set.spelled == "two:books"
    assert refused(two) == (
        "data set two: several configurations (films, books); add one to its name, like two:films"
    )
    assert refused(f"{two}:flims") == (
        "data set two:flims: no configuration 'flims'; it has films, books. Did you mean 'films'?"
    )


@pytest.mark.parametrize(
    ("splits", "options", "sentence"),
    [
        (
            {"test": NAMES},
            {},
            ": no split 'train'; it has test; choose with --train-split",
        ),
        (
            {"train": NAMES, "test": NAMES},
            {"validation_split": "tests"},
            ": no split 'tests'; it has train, test; choose with --validation-split. "
            "Did you mean 'test'?",
        ),
        (
            {"train": NAMES},
            {"text_columns": ("texts",)},
            ", split train, column 'texts': no such column; the split has text, other, "
            "label. Did you mean 'text'?",
        ),
        (
            {"train": NAMES},
            {"label_column": "y"},
            ", split train, column 'y': no such column; the split has text, other, label",
        ),
        (
            {"train": NAMES, "validation": NAMES.select(range(0))},
            {},
            ", split validation: no rows; at least one is needed",
        ),
        (
            {"train": NAMES, "validation": rows_of(["no", "maybe"])},
            {},
            ", split validation, row 2, column 'label': label 'maybe' does not occur in "
            "the train split; allowed: no, yes. Did you mean 'yes'?",
        ),
        (
            {"train": rows_of([0, 1] * 9 + [-1], ClassLabel(names=["a", "b"]))},
            {},
            ", split train, row 19, column 'label': no label; fill it in or drop the row",
        ),
        (
            {"train": rows_of([-1] * 9, ClassLabel(names=["a", "b"]))},
            {},
            ", split train, row 1, column 'label': no row has a label here; is this the "
            "right split and column?",
        ),
        (
            {
                "train": NAMES,
                "validation": Dataset.from_dict(
                    {"text": [None, None], "other": ["b", ""], "label": ["no", "yes"]}
                ),
            },
            {},
            ", split validation, row 1, column 'text': no row has a text here; is this the right "
            "column?",
        ),
        (
            {"train": rows_of([0.5, 1.5, float("nan")])},
            {},
            ", split train, row 3, column 'label': nan is not a finite number",
        ),
    ],
)
def test_errors_name_the_split_the_row_and_the_column(
    tmp_path: Path, splits: dict[str, Dataset], options: dict[str, Any], sentence: str
) -> None:
    found = refused(write(tmp_path / "rows", **splits), **options)
    assert found.startswith(f"data set rows{sentence}")


def test_a_label_that_occurs_once_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(write(tmp_path / "rows", train=rows_of(["no", "yes"] * 10 + ["rare"])))
    assert (
        "data set rows, split train, row 21, column 'label': 1 of 3 labels occurs in one row only"
    ) in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "train.jsonl",
            '{"text": "a", "label": "b"}\n{"text": \n',
            "split train, file train.jsonl, row 2: line 2 is not JSON",
        ),
        (
            "train.csv",
            "text,label\na,b\na,b,c\n",
            "split train, file train.csv, row 2: 3 fields, the header has 2",
        ),
        ("train.parquet", "PAR1", "can't be read: Parquet file size is 4 bytes"),
        ("rows.py", "raise SystemExit", "can't be read: Dataset scripts are no longer supported"),
        ("README.md", "---\nconfigs: [\n---\n", "can't be read: while parsing a flow node"),
        ("train.xyz", "", "can't be read: No (supported) data files found"),
        ("", "", "doesn't contain any data files"),
    ],
)
def test_a_folder_without_a_data_set_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    """Every exception of the library becomes one line."""
    (tmp_path / "rows").mkdir()
    if name:
        (tmp_path / "rows" / name).write_text(content)
    found = refused(str(tmp_path / "rows"))
    assert found.startswith(("data set rows: ", "data set rows, split train, file "))
    assert sentence in found
    assert "\n" not in found


def test_an_address_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_address("imdb") == Address("imdb")
    assert parse_address("a/b:c@refs/pr/1") == Address("a/b", "c", "refs/pr/1")
    assert parse_address("a/b@v1.0") == Address("a/b", None, "v1.0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b:c").mkdir(parents=True)
    assert parse_address("a/b:c") == Address("a/b:c", is_folder=True)
    assert parse_address("a:b") == Address("a", "b", is_folder=True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a:b:c", "give owner/name, owner/name:config or owner/name:config@revision, or a folder"),
        ("@main", "give owner/name"),
        ("a/b/c", "no such folder, and no name that the hub could have"),
        ("./a", "no such folder"),
        ("-a/b", "no such folder"),
        ("rows.csv", "that is a file; files go with --train-file"),
        ("folder@main", "that is a folder, which has no revisions"),
        ("csv", "that is a format, not a data set; files go with --train-file"),
    ],
)
def test_a_text_that_is_no_address_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert str(caught.value).startswith(f"--dataset {text!r}")
    assert sentence in str(caught.value)


def test_offline_without_a_cached_copy_is_an_error() -> None:
    found = refused("owner/rows")
    assert found.startswith(
        "data set owner/rows: no such folder, and the Hugging Face hub can't be"
    )
    assert "offline mode is on (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE). No copy is in its" in found


def test_a_run_takes_its_rows_from_a_data_set(
    tmp_path: Path, tiny_backbone_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The delta records the data set, its splits and its rows."""
    feature = ClassLabel(names=["worse", "better"])
    folder = write(
        tmp_path / "films",
        train=rows_of([0, 1] * 30, feature),
        test=rows_of([0, 1, 1] * 4, feature),
    )
    words = ["--dataset", folder, "--validation-split", "test", "--text-columns", "text, other"]
    words += ["--label-column", "label", "--name", "films", "--backbone", str(tiny_backbone_dir)]
    words += ["--max-length", "24", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert fit.main(words) == 0, capsys.readouterr().err
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    manifest = read_delta(path).manifest
    facts = manifest.training
    assert (facts.data, facts.train_rows + facts.selection_rows) == ("folder", 60)
    assert facts.data_set is not None
    assert (facts.data_set.spelled, facts.data_set.validation_split) == ("films", "test")
    assert re.fullmatch("[0-9a-f]{64}", facts.data_digest)
    assert manifest.task.labels == ("worse", "better")
    assert {
        name: found.rows for name, found in manifest.metrics["validation"].by_label.items()
    } == {
        "worse": 4,
        "better": 8,
    }
    capsys.readouterr()
    assert deltas_main(["show", str(path)]) == 0
    assert f"folder films (train), {facts.train_rows} train rows" in capsys.readouterr().out
    assert fit.main([*words, "--train-split", "trian", "--overwrite"]) == 1
    err = capsys.readouterr().err
    assert "error: data set films: no split 'trian'; it has train, test; choose with" in err
