"""Coverage and recall of a limit, and of measures of confidence at equal coverage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from audit import abstain
from deltas import Backbone, Delta, tokenize_texts
from deltas.manifest import Calibration, DecisionRule
from tests.factories import TOY_TASKS, stock_logits
from tests.unit.audit.conftest import TEXTS, Put, yes_no

Capture = pytest.CaptureFixture[str]
OTHERS = [f"{word} {number} {word}" for word in ("xyz", "and", "qu") for number in range(5)]
LABELS = ("a", "b", "c", "d")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Forty rows in scope, and fifteen out of scope."""
    flags = []
    for name, texts in (("in-scope", TEXTS), ("out-of-scope", OTHERS)):
        path = tmp_path / f"{name}.csv"
        path.write_text("text\n" + "".join(f"{text}\n" for text in texts))
        flags += [f"--{name}", str(path)]
    return flags


@pytest.fixture
def words(files: list[str], tiny_backbone_dir: Path) -> list[str]:
    """The flags of every call."""
    return [*files, "--backbone", str(tiny_backbone_dir), "--precision", "fp32"]


def the_file(tmp_path: Path) -> str:
    (path,) = (tmp_path / "deltas").rglob("*.safetensors")
    return str(path)


def logits_of(backbone: Backbone, delta: Delta, texts: list[str]) -> torch.Tensor:
    rows = tokenize_texts(backbone.tokenizer, 24, [(text,) for text in texts])
    return stock_logits(backbone, delta, rows)


def separation(inside: torch.Tensor, outside: torch.Tensor) -> float:
    """Return the share of pairs in which the row in scope has more confidence."""
    above = (inside[:, None] > outside[None, :]).double().mean()
    return float(above + 0.5 * (inside[:, None] == outside[None, :]).double().mean())


@pytest.mark.parametrize("coverage", [0.5, 0.9, 1.0])
def test_the_counts_are_those_of_the_stock_network(
    put: Put,
    words: list[str],
    tmp_path: Path,
    tiny_backbone: Backbone,
    capsys: Capture,
    coverage: float,
) -> None:
    scale = 0.25
    rule = DecisionRule(confidence="max_logit", limit=1.0)
    changes = {"calibration": Calibration(scale=(scale,)), "decision": rule}
    delta = put(yes_no("intents", *LABELS), seed=2, strategy="bitfit", **changes)
    flags = [the_file(tmp_path), *words, "--coverage", str(coverage), "--json"]
    assert abstain.main(flags) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    inside, outside = (logits_of(tiny_backbone, delta, texts) for texts in (TEXTS, OTHERS))
    assert report["decision"] == rule.model_dump(mode="json")
    most = inside.max(1).values, outside.max(1).values
    stored = report["stored"]
    assert stored["coverage"]["count"] == int((most[0] >= 1).sum())
    assert stored["recall"]["count"] == int((most[1] < 1).sum())
    # The head as it was trained is steeper, so that its probabilities rank rows otherwise.
    shares = [torch.softmax(part.double() / scale, 1).max(1).values for part in (inside, outside)]
    for measure, (known, foreign) in zip(report["measures"], (most, shares), strict=True):
        limit = known.sort(descending=True).values[round(coverage * 40) - 1]
        assert measure["limit"] == pytest.approx(float(limit), abs=1e-4)
        assert measure["coverage"] == measure["coverage"] | {"count": round(coverage * 40)}
        assert measure["coverage"]["rows"] == 40
        assert measure["recall"]["count"] == int((foreign < limit).sum())
        assert measure["auroc"] == pytest.approx(separation(known, foreign), abs=1e-6)
    names = [measure["confidence"] for measure in report["measures"]]
    assert names == ["largest logit", "largest probability, uncalibrated"]


def test_rows_that_tie_at_the_limit_are_all_answered(
    put: Put, words: list[str], tmp_path: Path, files: list[str], capsys: Capture
) -> None:
    """Half of the rows have one text, so no limit answers a quarter of the rows."""
    put(yes_no("intents", *LABELS))
    Path(files[1]).write_text("text\n" + "the good film\n" * 40)
    flags = [the_file(tmp_path), *words, "--coverage", "0.25", "--json"]
    assert abstain.main(flags) == 0
    measures = json.loads(capsys.readouterr().out)["measures"]
    # Rows of a batch may differ in the last digit; a limit lies at one of them.
    assert all(measure["coverage"]["count"] >= 10 for measure in measures)


def test_the_report_of_a_delta_with_a_limit(
    put: Put, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    rule = DecisionRule(confidence="max_logit", limit=-100.0)
    put(yes_no("intents", *LABELS), decision=rule)
    assert abstain.main([the_file(tmp_path), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("intents/head, version ")
    assert lines[1] == "40 rows in scope (in-scope.csv), 15 out of scope (out-of-scope.csv)"
    assert lines[3] == "limit stored in the delta: max_logit -100"
    assert lines[4].startswith("  answered in scope          40 of 40 (100.0 %")
    assert lines[5].startswith("  no answer out of scope     0 of 15 (0.0 %")
    assert lines[7] == "at an in-scope coverage of 0.95, with a limit chosen on these rows:"
    assert lines[8].startswith("largest logit, AUROC ")
    assert lines[9].startswith("  answered in scope          38 of 40 (95.0 %")
    assert lines[11].startswith("largest probability (the head has no calibration), AUROC ")


def test_a_delta_without_a_limit_always_answers(
    put: Put, words: list[str], tmp_path: Path, capsys: Capture
) -> None:
    put(yes_no("intents", *LABELS))
    assert abstain.main([the_file(tmp_path), *words]) == 0
    assert "no limit is stored in the delta: it always answers" in capsys.readouterr().out
    assert abstain.main([the_file(tmp_path), *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] is None


@pytest.mark.parametrize(
    ("task", "flags", "code", "problem"),
    [
        ("toymulti", [], 2, "'toymulti' is a multi_label task, which always answers"),
        ("toyreg", [], 2, "'toyreg' is a regression task, which always answers"),
        ("intents", ["--coverage", "0"], 2, "--coverage 0: give a share above 0, at most 1"),
        ("intents", ["--coverage", "95"], 2, "--coverage 95: give a share above 0, at most 1"),
        ("intents", ["--coverage", "nan"], 2, "--coverage nan: give a share"),
        ("intents", ["--text-columns", "body"], 1, "column 'body': no such column"),
        ("intents", ["--out-of-scope", "none.csv"], 1, "none.csv: no such file"),
        ("folder", [], 2, "is a folder; name one delta's file in it"),
        ("none", [], 1, "none: no such file or folder"),
    ],
)
def test_what_can_not_be_measured_is_explained_in_one_line(
    put: Put,
    words: list[str],
    tmp_path: Path,
    capsys: Capture,
    task: str,
    flags: list[str],
    code: int,
    problem: str,
) -> None:
    put(TOY_TASKS.get(task, yes_no("intents", *LABELS)))
    places = {"folder": str(tmp_path), "none": str(tmp_path / "none")}
    delta = places.get(task, the_file(tmp_path))
    assert abstain.main([delta, *words, *flags]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert problem in err
