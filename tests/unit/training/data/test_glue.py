"""GLUE rows come from folders of parquet files, or from the sample; wrong rows are refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.glue import HubUnreachableError, load_task
from training.data.tasks import TASKS
from training.errors import DataError, TaskError

WriteSplit = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave a test only its own data: nothing in the environment, in the cache or on the hub."""
    monkeypatch.delenv("GLUE_DIR", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture
def write_split(tmp_path: Path) -> WriteSplit:
    """Write one split of a task, with columns that the task wants unless told otherwise."""

    def write(split: str, labels: Sequence[Any], task: str = "rte", **columns: Any) -> Path:
        table: dict[str, Any] = {
            field: [f"{split} {field} {n}" for n in range(len(labels))]
            for field in TASKS[task].text_fields
        }
        table |= {"label": labels, **columns}
        path = tmp_path / task / f"{split}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(
            pa.table({name: values for name, values in table.items() if values is not None}), path
        )
        return path

    return write


def refused(tmp_path: Path, task: str = "rte") -> DataError:
    with pytest.raises(DataError) as caught:
        load_task(task, str(tmp_path))
    return caught.value


def test_a_folder_gives_its_rows(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [0, 1, 1], idx=[0, 1, 2])
    write_split("validation", [1, 0])
    data = load_task("rte", str(tmp_path))
    assert data.task is TASKS["rte"]
    assert data.source == "folder"
    assert data.train.labels == [0, 1, 1]
    assert data.train.texts[0] == ("train sentence1 0", "train sentence2 0")
    assert list(data.validation) == ["validation"]
    assert data.validation["validation"].labels == [1, 0]


def test_a_split_that_is_not_the_published_one_says_so(
    write_split: WriteSplit, tmp_path: Path
) -> None:
    write_split("train", [0, 1])
    write_split("validation", [0, 1] * 200)
    data = load_task("rte", str(tmp_path))
    assert data.note == "sample of the GLUE train set: 2 of 2,490 rows"
    assert data.validation_notes == {
        "validation": "not the GLUE validation set: 400 rows instead of 277"
    }


def test_a_split_may_be_stored_in_numbered_parts(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train-00000-of-00002", [0, 1])
    write_split("train-00001-of-00002", [1])
    write_split("validation-00000-of-00001", [0])
    assert load_task("rte", str(tmp_path)).train.labels == [0, 1, 1]


def test_the_digest_depends_on_rows_only(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [0, 1])
    write_split("validation", [0])
    digest = load_task("rte", str(tmp_path)).digest
    write_split("train", [0, 1], idx=[5, 6])
    assert load_task("rte", str(tmp_path)).digest == digest
    write_split("validation", [1])
    assert load_task("rte", str(tmp_path)).digest != digest


def test_regression_labels_are_numbers_in_range(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [0.0, 2.5, 5.0], task="stsb")
    write_split("validation", [5.2], task="stsb")
    error = refused(tmp_path, "stsb")
    assert "5.2 is not allowed; a number from 0 to 5 is needed" in str(error)
    write_split("validation", [1.2], task="stsb")
    assert load_task("stsb", str(tmp_path)).train.labels == [0.0, 2.5, 5.0]


def test_an_unknown_task_is_refused_before_data_are_read() -> None:
    with pytest.raises(TaskError, match="Did you mean 'rte'"):
        load_task("rt", "no such folder")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "nowhere")
    assert "nowhere: no such folder. --data takes a folder with rte/train.parquet" in str(error)


def test_a_mistyped_source_is_not_taken_for_a_folder() -> None:
    with pytest.raises(DataError, match=r"sampel: no such folder\. Did you mean 'sample'"):
        load_task("rte", "sampel")


def test_a_missing_split_lists_the_files_that_are_there(
    write_split: WriteSplit, tmp_path: Path
) -> None:
    write_split("train", [0, 1])
    error = refused(tmp_path)
    assert error.path == tmp_path / "rte" / "validation.parquet"
    assert "needs train.parquet, validation.parquet; this folder has train.parquet" in str(error)


def test_a_file_that_is_not_parquet_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    path = write_split("train", [0, 1])
    path.write_bytes(b"PAR1 no")
    error = refused(tmp_path)
    assert error.path == path
    assert "not a sound parquet file" in str(error)


def test_a_truncated_file_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    path = write_split("train", [0, 1] * 100)
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a sound parquet file" in str(refused(tmp_path))


def test_a_missing_column_gets_near_matches(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [0], sentence2=None, sentence_2=["x"])
    error = refused(tmp_path)
    assert error.column == "sentence2"
    assert "the file has sentence1, label, sentence_2. Did you mean 'sentence_2'" in str(error)


def test_a_file_without_rows_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [])
    assert "no rows; at least one is needed" in str(refused(tmp_path))


def test_a_null_text_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    path = write_split("train", [0, 1], sentence1=["x", None])
    error = refused(tmp_path)
    assert (error.path, error.row, error.column) == (path, 2, "sentence1")
    assert f"{path}, row 2, column 'sentence1': null where a text is needed" in str(error)


def test_a_number_in_place_of_a_text_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    write_split("train", [0, 1], sentence1=[7, 8])
    assert "7 (int) where a text is needed" in str(refused(tmp_path))


def test_text_that_is_not_utf8_is_refused(write_split: WriteSplit, tmp_path: Path) -> None:
    path = write_split("train", [0])
    broken = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    table = pa.table({"sentence1": broken, "sentence2": ["x"], "label": [0]})
    pq.write_table(table, path)
    assert "not a sound parquet file" in str(refused(tmp_path))


@pytest.mark.parametrize("label", [2, -2, None, 0.5, "entailment", True])
def test_a_label_out_of_range_is_refused(
    label: object, write_split: WriteSplit, tmp_path: Path
) -> None:
    path = write_split("train", [label])
    error = refused(tmp_path)
    assert (error.path, error.row, error.column) == (path, 1, "label")
    assert f"{label!r} is not a label of rte; allowed: 0 (entailment), 1 (not_entailment)" in str(
        error
    )


@pytest.mark.parametrize(("task", "label"), [("rte", -1), ("stsb", -1.0)])
def test_unlabelled_rows_are_refused(
    task: str, label: float, write_split: WriteSplit, tmp_path: Path
) -> None:
    write_split("train", [label], task=task)
    assert "-1 means unlabelled" in str(refused(tmp_path, task))


def test_label_names_in_the_file_must_have_the_order_of_the_task(
    write_split: WriteSplit, tmp_path: Path
) -> None:
    path = write_split("train", [0, 1])
    write_split("validation", [0, 1])

    def name_labels(*names: str) -> None:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), path)

    name_labels("entailment", "not_entailment")
    assert load_task("rte", str(tmp_path)).train.labels == [0, 1]
    name_labels("not_entailment", "entailment")
    assert "answers would be permuted" in str(refused(tmp_path))


def test_glue_dir_is_the_default_source(
    write_split: WriteSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split("train", [0, 1])
    write_split("validation", [0])
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    assert load_task("rte").source == "folder"
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "typo"))
    with pytest.raises(DataError, match=r"no such folder\. GLUE_DIR takes a folder with rte/train"):
        load_task("rte")


def test_a_requested_hub_is_never_replaced() -> None:
    with pytest.raises(HubUnreachableError, match="offline mode is on") as caught:
        load_task("rte", "hub")
    assert "--data DIR or $GLUE_DIR, use --data sample" in str(caught.value)


def test_without_hub_and_folder_the_sample_comes_with_a_loud_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        data = load_task("rte")
    assert data.source == "sample"
    assert "generated sample, not GLUE" in data.note
    assert data.validation_notes == {"validation": data.note}
    (record,) = [record for record in caplog.records if record.name == "training.data.glue"]
    assert record.levelno == logging.WARNING
    assert "NOT REAL DATA" in record.getMessage()
    assert "--data DIR" in record.getMessage()


def test_a_requested_sample_comes_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load_task("mnli", "sample").source == "sample"
    assert not caplog.records


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_load(name: str, glue_dir: Path) -> None:
    data = load_task(name, str(glue_dir))
    assert tuple(data.validation) == data.task.validation_splits
    for split, rows in {"train": data.train, **data.validation}.items():
        note = data.note if split == "train" else data.validation_notes.get(split, "")
        expected = data.task.canonical_rows[split]
        assert note == (
            ""
            if len(rows) == expected
            else f"sample of the GLUE {split} set: {len(rows):,} of {expected:,} rows"
        )
