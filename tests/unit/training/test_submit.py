"""A leaderboard submission from real test files and deltas of the tiny backbone."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from deltas import Backbone, Delta, SplitMetrics, Store, TaskSpec, delta_path, write_delta
from training import submit
from training.data.tasks import TASKS
from training.errors import DataError

MakeDelta = Callable[..., Delta]


def spec_of(name: str) -> TaskSpec:
    task = TASKS[name]
    return TaskSpec(
        name=name,
        kind=task.kind,
        labels=task.labels,
        text_fields=task.text_fields,
        max_length=24,
    )


def in_range(delta: Delta) -> Delta:
    """With answers about 2.5, so that those of STS-B are not all cut to 0."""
    return replace(delta, head_bias=torch.full_like(delta.head_bias, 2.5))


def write_test_set(folder: Path, name: str, fields: tuple[str, ...], rows: int) -> Path:
    """A test set as GLUE has them: no labels, out of order here."""
    path = folder / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    order = list(reversed(range(rows)))
    columns = {field: [f"the film {field} {n}" for n in order] for field in fields}
    pq.write_table(pa.table({**columns, "label": [-1] * rows, "idx": order}), path)
    return path


@pytest.fixture
def deltas(tiny_backbone: Backbone, make_delta: MakeDelta, tmp_path: Path) -> Path:
    """Deltas of wnli, stsb and mnli; stsb's layernorm is the better one on its selection rows."""
    root = tmp_path / "deltas"
    for task, strategy, score in (
        ("wnli", "bitfit", 0.5),
        ("stsb", "bitfit", 0.5),
        ("stsb", "layernorm", 0.7),
        ("mnli", "bitfit", 0.5),
    ):
        metric = TASKS[task].primary_metric
        metrics = {"selection": SplitMetrics(rows=10, values={metric: score})}
        delta = make_delta(
            tiny_backbone, spec_of(task), strategy, metrics=metrics, primary_metric=metric
        )
        write_delta(in_range(delta), delta_path(root, tiny_backbone.ref.id, task, strategy))
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "glue"
    write_test_set(folder / "wnli", "test", ("sentence1", "sentence2"), 146)
    write_test_set(folder / "stsb", "test-00000-of-00001", ("sentence1", "sentence2"), 1379)
    write_test_set(folder / "ax", "test", ("premise", "hypothesis"), 1104)
    return folder


@pytest.fixture
def words(deltas: Path, data: Path, tiny_backbone_dir: Path, tmp_path: Path) -> list[str]:
    return [
        *("--deltas", str(deltas), "--data", str(data)),
        *("--backbone", str(tiny_backbone_dir), "--out", str(tmp_path / "submission.zip")),
    ]


def lines_of(path: Path, name: str) -> list[list[str]]:
    with zipfile.ZipFile(path) as archive:
        return [line.split("\t") for line in archive.read(name).decode().splitlines()]


def test_files_have_the_leaderboard_s_form(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main([*words, "--partial"]) == 0
    path = tmp_path / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["STS-B.tsv", "WNLI.tsv", "AX.tsv"]
    for name, rows in (("STS-B.tsv", 1379), ("WNLI.tsv", 146), ("AX.tsv", 1104)):
        header, *lines = lines_of(path, name)
        assert header == ["index", "prediction"]
        assert [int(index) for index, _ in lines] == list(range(rows))
    assert {answer for _, answer in lines_of(path, "WNLI.tsv")[1:]} <= {"0", "1"}
    assert {answer for _, answer in lines_of(path, "AX.tsv")[1:]} <= set(TASKS["mnli"].labels)
    assert all(0 <= float(answer) <= 5 for _, answer in lines_of(path, "STS-B.tsv")[1:])
    missing = capsys.readouterr().err.splitlines()
    assert len(missing) == 8
    assert "CoLA.tsv: no delta of cola" in missing[0]
    assert "python -m training.fit --task cola" in missing[0]
    (matched,) = (line for line in missing if "MNLI-m.tsv" in line)
    assert "get test_matched of mnli from nyu-mll/glue" in matched


def test_the_best_delta_answers_in_the_order_of_the_index(
    words: list[str], tmp_path: Path, tiny_backbone: Backbone, make_delta: MakeDelta
) -> None:
    from deltas import DTYPES, pick_device, pick_precision, tokenize_texts
    from training.run.evaluation import predict
    from training.run.task_model import TaskModel, finished_model

    assert submit.main([*words, "--partial"]) == 0
    given = lines_of(tmp_path / "submission.zip", "STS-B.tsv")[1:]
    device = pick_device()
    for strategy, is_taken in (("layernorm", True), ("bitfit", False)):
        delta = in_range(make_delta(tiny_backbone, spec_of("stsb"), strategy))
        head = delta.head_weight, delta.head_bias
        model = TaskModel(
            tiny_backbone, dict(delta.entries), head, device, DTYPES[pick_precision("auto", device)]
        )
        judged = finished_model(model, tiny_backbone, delta.entries, delta.manifest.task)
        texts = [(f"the film sentence1 {n}", f"the film sentence2 {n}") for n in range(1379)]
        rows = tokenize_texts(tiny_backbone.tokenizer, 24, texts)
        values = predict(judged, rows)[:, 0].clamp(0, 5)
        expected = [[str(n), f"{float(value):.3f}"] for n, value in enumerate(values)]
        assert len({value for _, value in expected}) > 10
        assert (expected == given) is is_taken


def test_deltas_are_compared_by_one_metric(
    tiny_backbone: Backbone, make_delta: MakeDelta, tmp_path: Path
) -> None:
    """One trained with class weights was judged by macro F1, whose numbers are others."""
    for strategy, primary, values in (
        ("bitfit", "accuracy", {"accuracy": 0.7, "macro_f1": 0.5}),
        ("layernorm", "macro_f1", {"accuracy": 0.6, "macro_f1": 0.9}),
    ):
        metrics = {"selection": SplitMetrics(rows=10, values=values)}
        delta = make_delta(
            tiny_backbone, spec_of("rte"), strategy, metrics=metrics, primary_metric=primary
        )
        write_delta(delta, delta_path(tmp_path, tiny_backbone.ref.id, "rte", strategy))
    record = submit._best_record(Store([tmp_path], backbone=tiny_backbone.ref), "rte", None)
    assert record is not None
    assert record.manifest.strategy.name == "bitfit"


def test_a_whole_submission_needs_all_files(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit.main(words) == 2
    said = capsys.readouterr().err
    assert "files of the submission are missing (--partial writes it without them)" in said
    assert said.count(".tsv: ") == 8
    assert not (tmp_path / "submission.zip").exists()


FILES = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX")


def test_a_whole_submission(
    tiny_backbone: Backbone,
    make_delta: MakeDelta,
    words: list[str],
    deltas: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All eleven files, from test sets of a few rows: no two have the same number."""
    for task in TASKS:
        path = delta_path(deltas, tiny_backbone.ref.id, task, "bitfit")
        if not path.exists():
            write_delta(make_delta(tiny_backbone, spec_of(task), "bitfit"), path)
    rows = {name: 3 + number for number, name in enumerate(FILES)}
    small = [replace(test, rows=rows[test.file.removesuffix(".tsv")]) for test in submit.TEST_SETS]
    monkeypatch.setattr(submit, "TEST_SETS", tuple(small))
    shutil.rmtree(data)
    for test in small:
        write_test_set(data / test.folder, test.split, TASKS[test.task].text_fields, test.rows)
    assert submit.main(words) == 0
    assert capsys.readouterr().err == ""
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == [f"{name}.tsv" for name in FILES]
    for test in small:
        header, *lines = lines_of(tmp_path / "submission.zip", test.file)
        assert header == ["index", "prediction"]
        assert [index for index, _ in lines] == [str(n) for n in range(test.rows)]
        answers, labels = {answer for _, answer in lines}, TASKS[test.task].labels
        if test.task in ("cola", "sst2", "mrpc", "qqp", "wnli"):
            assert answers <= {"0", "1"}
        elif labels:
            assert answers <= set(labels)
        else:
            assert all(0 <= float(answer) <= 5 for answer in answers)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"labels": ("entailment", "not_entailment")[::-1]}, "labels not_entailment, entailment"),
        ({"labels": ("0", "1")}, "labels 0, 1"),
        ({"text_fields": ("sentence2", "sentence1")}, "text fields sentence2, sentence1"),
        ({"kind": "multi_label"}, "kind multi_label"),
    ],
)
def test_a_delta_of_other_labels_is_refused(
    tiny_backbone: Backbone,
    make_delta: MakeDelta,
    words: list[str],
    deltas: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    found: str,
) -> None:
    """Codes 0 and 1 would stand for other answers than the leaderboard takes them for."""
    write_test_set(data / "rte", "test", ("sentence1", "sentence2"), 3000)
    spec = spec_of("rte").model_copy(update=change)
    path = delta_path(deltas, tiny_backbone.ref.id, "rte", "bitfit")
    write_delta(make_delta(tiny_backbone, spec, "bitfit"), path)
    assert submit.main([*words, "--partial"]) == 1
    said = capsys.readouterr().err
    assert f"{path}: {found} instead of GLUE's" in said
    assert "train one with --task rte" in said


def test_test_sets_that_are_not_the_published_ones_are_refused(
    words: list[str], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_test_set(data / "wnli", "test", ("sentence1", "sentence2"), 145)
    assert submit.main([*words, "--partial"]) == 1
    assert f"{path}: 145 rows; the leaderboard wants the 146" in capsys.readouterr().err
    table = pa.table(
        {name: ["a"] * 146 for name in ("sentence1", "sentence2")} | {"idx": [0] * 146}
    )
    pq.write_table(table, path)
    assert submit.main([*words, "--partial"]) == 1
    assert "column 'idx': not 0, 1, 2, ... each once" in capsys.readouterr().err
    write_test_set(data / "wnli", "test", ("sentence1",), 146)
    assert submit.main([*words, "--partial"]) == 1
    assert "column 'sentence2': no such column; the file has sentence1" in capsys.readouterr().err


def test_without_a_folder_of_test_sets(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GLUE_DIR", raising=False)
    at = words.index("--data")
    assert submit.main([*words[:at], *words[at + 2 :]]) == 2
    assert "no test sets: set GLUE_DIR, or give --data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "decided", "answers"),
    [
        ("cola", [1, 0], ["1", "0"]),
        ("rte", [1, 0], ["not_entailment", "entailment"]),
        ("qnli", [0], ["entailment"]),
        ("mnli", [2, 1], ["contradiction", "neutral"]),
        ("stsb", [-0.5, 2.34567, 7.0], ["0.000", "2.346", "5.000"]),
    ],
)
def test_answers_in_the_leaderboard_s_words(
    task: str, decided: list[float], answers: list[str]
) -> None:
    assert submit.answer_strings(task, decided) == answers


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        ("RTE.tsv", ["entailment"], "1 rows, not 2"),
        ("RTE.tsv", ["entailment", "1"], r"row 2: RTE.tsv: '1\\t1'"),
        ("WNLI.tsv", ["0", "entailment"], "row 2: WNLI.tsv"),
        ("STS-B.tsv", ["0.1", "5.001"], "row 2: STS-B.tsv"),
        ("STS-B.tsv", ["nan", "5"], "row 1: STS-B.tsv"),
    ],
)
def test_the_check_finds_lines_that_the_leaderboard_would_refuse(
    tmp_path: Path, name: str, answers: list[str], message: str
) -> None:
    path = tmp_path / "bad.zip"
    submit.write_zip(path, {name: answers})
    with pytest.raises(DataError, match=message):
        submit.check_zip(path, {name: 2})


def test_the_check_wants_the_names_and_the_header(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    submit.write_zip(path, {"RTE.tsv": ["entailment"]})
    with pytest.raises(DataError, match=r"has the files RTE\.tsv instead of QNLI\.tsv"):
        submit.check_zip(path, {"QNLI.tsv": 1})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("RTE.tsv", "0\tentailment\n")
    with pytest.raises(DataError, match="header '0"):
        submit.check_zip(path, {"RTE.tsv": 1})
