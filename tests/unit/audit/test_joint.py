"""How often a fan-out fires: counts, forms of rows, reports, and what can't be counted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from audit import joint
from deltas import Backbone, Delta, tokenize_texts
from deltas.manifest import DecisionRule
from tests.factories import TOY_TASKS, make_delta, stock_logits
from tests.unit.audit.conftest import TEXTS, Put, yes_no

Audit = Callable[..., dict[str, Any]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def words(tiny_backbone_dir: Path) -> list[str]:
    """The flags of every call."""
    return ["--backbone", str(tiny_backbone_dir), "--precision", "fp32"]


@pytest.fixture
def audit(words: list[str], capsys: Capture) -> Audit:
    """A function that runs the command and returns its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        assert joint.main([*map(str, arguments), *words, "--json"]) == 0, capsys.readouterr().err
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return run


def logits_of(backbone: Backbone, delta: Delta) -> torch.Tensor:
    rows = tokenize_texts(backbone.tokenizer, 24, [(text,) for text in TEXTS])
    return stock_logits(backbone, delta, rows)


def test_the_counts_are_those_of_the_stock_network(
    audit: Audit, put: Put, rows: Path, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    # Seeds whose random heads say both yes and no.
    first = put(yes_no("first"), seed=25)
    second = put(yes_no("second", "spam", "not spam"), seed=12, strategy="bitfit")
    draft = make_delta(tiny_backbone, yes_no("third"), "head", seed=25)
    middle = float(logits_of(tiny_backbone, draft).max(1).values.median()) + 1e-3
    limit = DecisionRule(confidence="max_logit", limit=middle)
    third = put(yes_no("third"), seed=25, decision=limit)
    found = audit(rows, tmp_path / "deltas")

    def fires(delta: Delta, code: int) -> list[bool]:
        logits = logits_of(tiny_backbone, delta)
        answered = [True] * len(TEXTS)
        if delta is third:
            answered = (logits.max(1).values >= middle).tolist()
        given = (logits.argmax(1) == code).tolist()
        return [fired and known for fired, known in zip(given, answered, strict=True)]

    expected = [fires(first, 1), fires(second, 0), fires(third, 1)]
    assert all(any(of_task) and not all(of_task) for of_task in expected), "the test can't fail"
    assert [task["fired"]["count"] for task in found["tasks"]] == list(map(sum, expected))
    assert [task["fires_on"] for task in found["tasks"]] == [["yes"], ["spam"], ["yes"]]
    unanswered = sum((logits_of(tiny_backbone, third).max(1).values < middle).tolist())
    assert [task["no_answer"] for task in found["tasks"]] == [0, 0, unanswered]
    assert 0 < unanswered < len(TEXTS)
    any_fires = [any(row) for row in zip(*expected, strict=True)]
    assert found["at_least_one"]["count"] == sum(any_fires)
    assert (found["rows"], found["at_least_one"]["rows"]) == (40, 40)
    none = 1.0
    for of_task in expected:
        none *= 1 - sum(of_task) / 40
    assert found["independent_rate"] == pytest.approx(1 - none)
    # The third row of the file has no text.
    numbers = [position + 1 + (position >= 2) for position, fired in enumerate(any_fires) if fired]
    assert [entry["row"] for entry in found["fired_rows"]] == numbers
    for entry in found["fired_rows"]:
        at = entry["row"] - 1 - (entry["row"] > 2)
        names = ("first", "second", "third")
        of_row = [name for name, of_task in zip(names, expected, strict=True) if of_task[at]]
        assert entry["tasks"] == of_row


def test_a_low_probability_is_no_answer_by_the_delta_s_rule(
    audit: Audit, put: Put, rows: Path, tmp_path: Path
) -> None:
    put(yes_no("never"), decision=DecisionRule(limit=1.0 - 1e-12))
    (task,) = audit(rows, tmp_path / "deltas")["tasks"]
    assert task["no_answer"] == 40
    assert task["fired"]["count"] == 0


def test_thresholds_of_a_multi_label_task_decide(
    audit: Audit, put: Put, rows: Path, tmp_path: Path
) -> None:
    task = TOY_TASKS["toymulti"]
    put(task.model_copy(update={"name": "low"}), decision=DecisionRule(thresholds=(0.0,) * 4))
    put(task.model_copy(update={"name": "high"}), decision=DecisionRule(thresholds=(1.0,) * 4))
    found = audit(rows, tmp_path / "deltas", "--fires", "low=b")
    assert [one["fired"]["count"] for one in found["tasks"]] == [0, 40]
    assert [one["fires_on"] for one in found["tasks"]] == [["a", "b", "c", "d"], ["b"]]


def test_every_form_of_rows_gives_the_same(audit: Audit, put: Put, tmp_path: Path) -> None:
    put(yes_no("a"), seed=23)
    frame = pd.DataFrame({"id": range(40), "body": TEXTS})
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    for name, separator in (("rows.csv", ","), ("rows.tsv", "\t"), ("semicolons.csv", ";")):
        frame.to_csv(tmp_path / name, sep=separator, index=False, quoting=csv.QUOTE_ALL)
    frame.to_csv(tmp_path / "bars.csv", sep="^", index=False)
    reports = []
    for name in ("rows.parquet", "rows.jsonl", "rows.csv", "rows.tsv", "semicolons.csv"):
        reports.append(audit(tmp_path / name, tmp_path / "deltas", "--text-columns", "body"))
    options = "--text-columns", "body", "--delimiter", "^", "--quoting", "off"
    reports.append(audit(tmp_path / "bars.csv", tmp_path / "deltas", *options))
    for report in reports:
        report.pop("file")
    assert 0 < reports[0]["at_least_one"]["count"] < reports[0]["rows"] == 40
    assert all(report == reports[0] for report in reports)


def test_tasks_of_one_and_of_two_texts_read_their_own_columns(
    audit: Audit, put: Put, tmp_path: Path
) -> None:
    put(yes_no("alone", fields=("premise",)), seed=3)
    put(yes_no("pair", fields=("premise", "hypothesis")), seed=4)
    path = tmp_path / "rows.csv"
    pairs = zip(TEXTS, reversed(TEXTS), strict=True)
    path.write_text("hypothesis,premise\n" + "".join(f"{a},{b}\n" for a, b in pairs))
    assert [task["task"] for task in audit(path, tmp_path / "deltas")["tasks"]] == ["alone", "pair"]
    # The columns that are named stand for the fields in their order.
    named = ("--tasks", "pair", "--text-columns", "premise,hypothesis")
    same = audit(path, tmp_path / "deltas", *named)["tasks"][0]
    assert same == audit(path, tmp_path / "deltas", "--tasks", "pair")["tasks"][0]


def test_the_report_says_which_label_fires_and_how_to_overrule(
    put: Put,
    rows: Path,
    tmp_path: Path,
    words: list[str],
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put(yes_no("first"), seed=3)
    put(yes_no("second"), seed=4, decision=DecisionRule(limit=1.0 - 1e-12))
    assert joint.main([str(rows), str(tmp_path / "deltas"), *words]) == 0
    said = "innocent.jsonl: 1 row without a text left out (the first is row 3, column 'text')"
    assert caplog.messages == [said]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "40 rows of innocent.jsonl, fp32 on cpu"
    assert lines[1].startswith("first   fires on yes (by its name): ")
    assert "95 % interval" in lines[1]
    assert lines[2].startswith("second  fires on yes (by its name): 0 of 40 (0.0 %")
    assert lines[3].startswith("        no answer: 40 of 40 (100.0 %")
    assert lines[4].startswith("at least one task fires: ")
    assert lines[5].startswith("to expect if the tasks were independent: ")
    assert lines[6].startswith("rows: ")
    assert lines[-1] == "--fires TASK=LABEL names another label"
    fires = ["--fires", "first=no", "--fires", "second=no"]
    assert joint.main([str(rows), str(tmp_path / "deltas"), *words, *fires]) == 0
    assert "names another label" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["{rows}", "{none}"], 1, "none: no such file or folder"),
        (["{none}.csv", "{deltas}"], 1, "none.csv: no such file"),
        (["{deltas}", "{deltas}"], 1, "is a folder; name a file in it"),
        (["{empty}", "{deltas}"], 1, "no rows; at least one is needed"),
        (["{blank}", "{deltas}"], 1, "no row has a text here; is this the right column?"),
        (
            ["{other}", "{deltas}"],
            1,
            "than commas. --text-columns names the columns with the texts",
        ),
        (
            ["{rows}", "{deltas}", "--text-columns", "txt"],
            1,
            "column 'txt': missing; the row has text. Did you mean 'text'?",
        ),
        (
            ["{rows}", "{deltas}", "--text-columns", "text,b"],
            2,
            "names 2, but 'first' takes 1 text",
        ),
        (
            ["{rows}", "{deltas}", "--tasks", "frist"],
            1,
            "unknown task 'frist'. Did you mean 'first'",
        ),
        (["{rows}", "{deltas}", "--fires", "first=maybe"], 2, "'first' has no such label."),
        (["{rows}", "{deltas}", "--delimiter", "tab"], 2, "are for delimited text"),
        (["{other}", "{deltas}", "--delimiter", "ab"], 2, "--delimiter: give one character"),
        (["{rows}", "{number}"], 2, "'number' is a regression"),
    ],
)
def test_what_can_not_be_counted_is_explained_in_one_line(
    put: Put,
    rows: Path,
    tmp_path: Path,
    words: list[str],
    capsys: Capture,
    arguments: list[str],
    code: int,
    problem: str,
) -> None:
    put(yes_no("first"))
    put(TOY_TASKS["toyreg"].model_copy(update={"name": "number"}))
    (tmp_path / "deltas" / "number").rename(tmp_path / "number")
    contents = {"empty": "text\n", "other": "body\ngood\n", "blank": 'text,id\n" ",1\n,2\n'}
    for name, content in contents.items():
        (tmp_path / f"{name}.csv").write_text(content)
    places = {name: tmp_path / f"{name}.csv" for name in contents}
    places |= {name: tmp_path / name for name in ("none", "deltas", "number")}
    given = [argument.format(rows=rows, **places) for argument in arguments]
    assert joint.main([*words, *given]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert problem in err
