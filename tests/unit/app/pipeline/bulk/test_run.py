"""Runs over files: answers as the engine gives them, and the same bytes after a stop anywhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.engine.engine import Engine
from app.pipeline.bulk.columns import ColumnChoice
from app.pipeline.bulk.files import FileError, input_file
from app.pipeline.bulk.local import LocalAnswers, ahead, batches
from app.pipeline.bulk.part import FileProgress
from app.pipeline.bulk.rows import HeaderError
from app.pipeline.bulk.run import (
    BulkOptions,
    FileRun,
    format_of_output,
    name_of_output,
    open_engine,
    summary,
)
from app.pipeline.pipeline import RowLogits
from app.pipeline.predictions import to_predictions
from deltas import Backbone, Store

TEXTS = [f"{'very ' * (n % 9)}{('good', 'bad', 'not')[n % 3]} film" for n in range(50)]
WINDOW = 8


class StoppedError(Exception):
    """A run is stopped."""


@pytest.fixture(scope="module")
def engine(tiny_backbone: Backbone, tiny_deltas: Path) -> Engine:
    """An engine with two deltas."""
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    records = [store.resolve("toy2"), store.resolve("toymulti")]
    return open_engine(records, tiny_backbone, device="cpu", precision="fp32")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file with a bad row."""
    lines = [f"{n},{text}\n" for n, text in enumerate(TEXTS)]
    lines[20] = "20,\n"
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n" + "".join(lines))
    return path


def run_of(engine: Engine, *inputs: Path, output: Path, **changes: Any) -> FileRun:
    tasks = changes.pop("tasks", ("toy2", "toymulti"))
    options = BulkOptions(**({"window_rows": WINDOW} | changes))
    deltas = {task: engine.store.resolve(task) for task in tasks}
    files = [input_file(str(path)) for path in inputs]
    return FileRun(
        engine, deltas, files, str(output), format_of_output(str(output), files[0]), options
    )


def test_each_row_has_the_answer_of_the_engine(engine: Engine, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    progress = run_of(engine, rows, output=output).answer()
    assert (progress.num_rows, progress.num_problems) == (50, 1)
    found = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["id"] for row in found] == [str(n) for n in range(50)]
    assert [bool(row["error"]) for row in found] == [n == 20 for n in range(50)]
    record = engine.store.resolve("toy2")
    for row, text in zip(found, TEXTS, strict=True):
        if row["error"]:
            continue
        (logits,) = engine.predict(engine.tokenize(record, [(text,)]))
        assert isinstance(logits, list)
        (known,) = to_predictions(record.manifest.task, [RowLogits(logits, False)], None)
        assert row["toy2.label"] == known.label  # type: ignore[union-attr]
        assert float(row["toy2.score"]) == pytest.approx(known.score, abs=2e-5)  # type: ignore[union-attr]
        assert isinstance(json.loads(row["toymulti.labels"]), list)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("stop_after", [1, 2, 4, 7, 8])
def test_a_run_that_was_stopped_anywhere_gives_the_same_bytes(
    engine: Engine,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    stop_after: int,
) -> None:
    more = tmp_path / "more.jsonl"
    more.write_text(
        "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS[:9]))
    )
    whole, output = tmp_path / f"whole.{suffix}", tmp_path / f"out.{suffix}"
    run_of(engine, rows, more, output=whole).answer()
    answer, calls = LocalAnswers.answer, 0

    def stopping(answers: LocalAnswers, window: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise StoppedError
        return answer(answers, window)

    with monkeypatch.context() as patch:
        patch.setattr(LocalAnswers, "answer", stopping)
        with pytest.raises(StoppedError):
            run_of(engine, rows, more, output=output).answer()
    assert not output.exists()
    again = run_of(engine, rows, more, output=output)
    assert again.output.progress.num_rows == min(
        stop_after * WINDOW, 50 + max(0, stop_after - 7) * WINDOW
    )
    again.answer()
    assert output.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob("*.part*"))


def test_several_files_are_told_apart(engine: Engine, rows: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,id\ngood,7\n")
    output = tmp_path / "out.jsonl"
    run_of(engine, rows, other, output=output, tasks=("toy2",)).answer()
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert (found[0]["file"], found[0]["row"]) == ("rows.csv", 0)
    assert (found[-1]["file"], found[-1]["row"], found[-1]["id"]) == ("other.csv", 0, "7")


def test_a_file_without_the_columns_is_refused_before_any_work(
    engine: Engine, rows: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text\ngood\n")
    with pytest.raises(HeaderError, match=r"other\.csv: has no column 'id'"):
        run_of(engine, rows, other, output=tmp_path / "out.csv")
    with pytest.raises(HeaderError, match="has no column 'lang'"):
        run_of(engine, rows, output=tmp_path / "out.csv", columns=ColumnChoice(keep=("lang",)))
    assert not list(tmp_path.glob("out*"))


def test_another_choice_does_not_go_on_with_the_part(
    engine: Engine, rows: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    begun = run_of(engine, rows, output=output)
    begun.output.write(b"x", FileProgress())
    begun.close()
    with pytest.raises(FileError, match=r"other facts \(top_k\)"):
        run_of(engine, rows, output=output, top_k=1)


def test_names_and_formats_of_outputs(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").touch()
    file = input_file(str(tmp_path / "a.tsv"))
    assert name_of_output(file) == str(tmp_path / "a.predictions.csv")
    assert format_of_output("x.parquet", file) == "jsonl"
    assert format_of_output("-", file) == "csv"
    with pytest.raises(FileError, match=r"ends in \.txt"):
        format_of_output("x.txt", file)
    assert summary("o.csv", FileProgress(num_rows=1000, num_problems=1), 2.0, 500) == (
        "o.csv: 1,000 rows, 1 of them with an error; 250 rows/s"
    )


@pytest.mark.parametrize("lengths", [[5], [9, 1, 1, 1], [3] * 100, list(range(1, 60)), [50, 50]])
def test_batches_are_sorted_and_about_equally_large(lengths: list[int]) -> None:
    class Row:
        def __init__(self, num_tokens: int) -> None:
            self.num_tokens = num_tokens

    ready: Any = [(position, (Row(length),)) for position, length in enumerate(lengths)]
    made = [[lengths[position] for position, _ in batch] for batch in batches(ready, 20)]
    assert sorted(length for batch in made for length in batch) == sorted(lengths)
    assert [length for batch in made for length in batch] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or sum(batch) <= 20 + max(batch) for batch in made)
    small = [sum(batch) for batch in made if max(batch) < 10]
    assert len(small) < 3 or min(small) >= max(small) / 3


def test_one_item_is_made_ahead_and_errors_arrive_in_their_turn() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise StoppedError

    coming = ahead(items())
    for wanted in range(4):
        assert next(coming) == wanted
        assert len(made) <= wanted + 2
    with pytest.raises(StoppedError):
        next(coming)
