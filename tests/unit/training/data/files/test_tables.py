"""Parquet and Arrow files give their values, and the names of class labels that they state."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from training.data.files.tables import read_table
from training.errors import DataError

WANTED = ("text", "label")


def read(path: Path) -> dict[str, list[Any]]:
    return read_table(path, WANTED).values


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path)
    return str(caught.value)


def test_parquet_keeps_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [[1, 2]], "text": ["a"]}), tmp_path / "a.parquet")
    columns = read_table(tmp_path / "a.parquet", WANTED)
    assert columns.values == {"text": ["a"], "label": [[1, 2]]}
    assert columns.reading_notes == ("a.parquet: 1 row",)


def test_bytes_and_decimals_of_parquet_become_texts_and_numbers(tmp_path: Path) -> None:
    table = {"text": [b"a", b"\xff", None], "label": [Decimal("0.25"), Decimal(2), None]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == {
        "text": ["a", b"\xff", None],
        "label": [0.25, 2.0, None],
    }


def test_arrow_files_and_streams_are_read(tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "more": [None], "label": [1]})
    pyarrow.feather.write_feather(table, tmp_path / "a.feather")
    with pa.ipc.new_stream(tmp_path / "b.arrow", table.schema) as stream:
        stream.write_table(table)
    with pa.ipc.new_file(tmp_path / "c.arrow", table.schema) as file:
        file.write_table(table)
    (tmp_path / "c.parquet").write_bytes((tmp_path / "c.arrow").read_bytes())
    pq.write_table(table, tmp_path / "d.arrow")
    for name in ("a.feather", "b.arrow", "c.arrow", "c.parquet", "d.arrow"):
        assert read(tmp_path / name) == {"text": ["a"], "label": [1]}, name


def test_datasets_states_the_names_of_its_codes(tmp_path: Path) -> None:
    names = ClassLabel(names=["no", "yes"])
    for feature, labels in ((names, [1, 0, -1]), (List(names), [[1], [], [0, 1]])):
        features = Features({"text": Value("string"), "label": feature})
        rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": labels}, features=features)
        rows.to_parquet(tmp_path / "a.parquet")
        columns = read_table(tmp_path / "a.parquet", WANTED)
        assert columns.class_names == {"label": ("no", "yes")}
        assert columns.values["label"] == labels
        rows.save_to_disk(tmp_path / "rows")
        (path,) = (tmp_path / "rows").glob("*.arrow")
        assert read_table(path, WANTED).class_names == {"label": ("no", "yes")}


@pytest.mark.parametrize(
    ("feature", "names"),
    [
        ({"names": ["a", "b"], "_type": "ClassLabel"}, ("a", "b")),
        ({"feature": {"names": ["a"], "_type": "ClassLabel"}, "_type": "Sequence"}, ("a",)),
        ([{"names": ["a"], "_type": "ClassLabel"}], ("a",)),
        ({"dtype": "int64", "_type": "Value"}, None),
        ({"names": None}, None),
        ([], None),
        ("int64", None),
    ],
)
def test_names_of_codes_are_found_in_old_and_new_schemas(
    tmp_path: Path, feature: Any, names: tuple[str, ...] | None
) -> None:
    about = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata(about)
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", WANTED).class_names.get("label") == names


@pytest.mark.parametrize("about", ["{", "[]", '{"info": null}', '{"info": {"features": []}}'])
def test_a_schema_with_other_notes_states_no_names(tmp_path: Path, about: str) -> None:
    table = pa.table({"text": ["a"], "label": [0]}).replace_schema_metadata({"huggingface": about})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", WANTED).class_names == {}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.parquet", b"text,caf\xc3", "the content is text, whatever the file is called"),
        ("a.parquet", b'[{"text": "a"}]', "rename it to end in .jsonl"),
        ("a.parquet", b"PAR1 and more", "not a sound parquet file"),
        ("a.arrow", b"text", "rename it to end in .csv"),
        ("a.arrow", b"\xff\xff\xff\xff rest", "not a sound Arrow file"),
        ("a.arrow", b"ARROW1 and more", "not a sound Arrow file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
        ("a.parquet", b"\x1f\x8b rest", "a gzip archive"),
        ("a.parquet", b"", "not a sound parquet file"),
        ("a.arrow", b"", "not a sound Arrow file"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert problem in refused(tmp_path / name)


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.date64(), pa.duration("s")])
def test_a_value_that_python_cannot_hold_is_a_data_error(tmp_path: Path, kind: pa.DataType) -> None:
    """A date far in the future ended `training.fit` with a traceback; found by `make fuzz`."""
    path = tmp_path / "a.arrow"
    labels = pa.array([2**62 // 86_400_000 * 86_400_000], pa.int64()).cast(kind)
    table = pa.table({"text": ["a"], "label": labels})
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"column 'label': holds a value of type .* out of range"):
        read_table(path, ("text", "label"))
