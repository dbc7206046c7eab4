"""Model cards: each delta of the zoo has the card that its manifest renders."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Delta, Manifest, TaskSpec, delta_path, write_delta, zoo_path
from deltas.__main__ import main
from deltas.manifest import DataSetRef, InitialDelta, Reliability, SplitMetrics
from deltas.publish.card import card_path, in_columns, render_card

MakeDelta = Callable[..., Delta]
FILES = sorted(zoo_path().rglob("*.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_delta_of_the_zoo_has_its_card(path: Path) -> None:
    assert card_path(path).read_text(encoding="utf-8") == render_card(path), "run make zoo"


def test_no_card_is_left_over() -> None:
    cards = {path for path in zoo_path().rglob("*.md") if path.parent.parent.parent == zoo_path()}
    assert cards == {card_path(path) for path in FILES}


@pytest.mark.parametrize("name", ["toy2", "toy3", "toyreg", "toymulti"])
def test_a_card_says_what_the_manifest_says(
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    make_delta: MakeDelta,
    tmp_path: Path,
    name: str,
) -> None:
    path = delta_path(tmp_path, "tiny", name, "bitfit")
    delta = write_delta(make_delta(tiny_backbone, toy_tasks[name], "bitfit"), path)
    card = render_card(path)
    manifest = delta.manifest
    for said in (
        delta.version,
        manifest.backbone.fingerprint,
        *(f"`{label}`" for label in manifest.task.labels),
        f"{manifest.trainable_parameters:,} of {manifest.total_parameters:,}",
        "learning rate 0.001",
        manifest.training.command,
    ):
        assert said in card
    assert f"| validation | {manifest.primary_metric} | 0.2500 | 20 |" in card
    (request,) = re.findall(r"-d '(.*)'", card)
    inputs = json.loads(request)["inputs"]
    fields = manifest.task.text_fields
    assert inputs == ("..." if len(fields) == 1 else dict.fromkeys(fields, "..."))


def test_a_sample_says_so(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: MakeDelta, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    delta = make_delta(tiny_backbone, toy_tasks["toy2"], "head")

    def card_with(**facts: object) -> str:
        training = delta.manifest.training.model_copy(update=facts)
        manifest: Manifest = delta.manifest.model_copy(update={"training": training})
        write_delta(Delta(manifest, delta.entries, delta.head_weight, delta.head_bias), path)
        return render_card(path)

    assert "Trained on generated rows" not in card_with()
    assert "Trained on generated rows" in card_with(data="sample")
    named = DataSetRef(name="owner/films", config="en", revision="c" * 40, train_split="all")
    assert f"of owner/films:en@{'c' * 40}, split all" in card_with(data="hub", data_set=named)
    start = {"task": "mnli", "strategy": "bitfit", "version": "0123456789abcdef"}
    facts = InitialDelta(**start, digest="a" * 64, with_head=False)
    assert "| start | the delta mnli/bitfit, version `0123456789abcdef` |" in card_with(
        init_from=facts
    )
    assert "| start |" not in card_with()
    noted = card_with(data_note="sample of the GLUE train set: 5 of 9 rows")
    assert "not the whole published set: sample of the GLUE train set: 5 of 9 rows." in noted


@pytest.mark.parametrize(("before", "more"), [(0.25, " (0.2500 before calibration)"), (0.125, "")])
def test_the_calibration_error_is_shown(
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    make_delta: MakeDelta,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: float,
    more: str,
) -> None:
    bins: dict[str, Any] = {"counts": (20,), "probability": (0.75,), "share": (0.875,)}
    found = Reliability(error=0.125, error_before=before, **bins)
    scores = SplitMetrics(rows=2000, values={"accuracy": 0.5}, reliability=found)
    path = tmp_path / "a.safetensors"
    metrics = {"validation": scores}
    write_delta(make_delta(tiny_backbone, toy_tasks["toy2"], "head", metrics=metrics), path)
    line = f"| validation | expected calibration error | 0.1250 | 2,000{more} |"
    assert line in render_card(path).splitlines()
    assert main(["show", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"accuracy 0.5000, expected calibration error 0.1250{more} (2,000 rows)" in said


LABELS = ("a|b", "line\nbreak", "`code`", "<script>", "**bold**", "\u202e", "plain", "a``b")


def test_no_name_breaks_the_markdown_of_a_card(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: MakeDelta, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    fields = ("it's | one", 'say "two"')
    spec = toy_tasks["toy3"].model_copy(update={"labels": LABELS, "text_fields": fields})
    delta = make_delta(tiny_backbone, spec, "bitfit")
    note = "9 rows of a|b_<i>.csv\nheld out"
    training = delta.manifest.training.model_copy(
        update={
            "data_note": note,
            "command": "fit --name 'a\n```\nb'\x1b[2J",
            "device": "![x](https://example.org)\x1b",
            "versions": {"![x](https://example.org)": "<b>\x1b"},
        }
    )
    metrics = {
        split: part.model_copy(update={"note": note})
        for split, part in delta.manifest.metrics.items()
    }
    manifest = delta.manifest.model_copy(update={"training": training, "metrics": metrics})
    write_delta(Delta(manifest, delta.entries, delta.head_weight, delta.head_bias), path)
    card = render_card(path)
    assert "\x1b" not in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert "![" not in card
    assert {len(re.split(r"(?<!\\)\|", row)) for row in rows} == {4, 6}  # two and four cells
    (row,) = [row for row in rows if row.startswith("| labels |")]
    assert row == (
        "| labels | `a\\|b`, `line\\nbreak`, `` `code` ``, `<script>`, `**bold**`, `\\u202e`, "
        "`plain`, ```a``b``` |"
    )
    assert "`` `code` ``" in row
    assert "a|b_\\<i>.csv\\\\nheld out" in card
    assert "````sh\nfit --name 'a\n```\nb'\\x1b[2J\n````" in card
    (data,) = re.findall(r"-d ('.*)\n```", card)
    (body,) = shlex.split(data)
    assert json.loads(body)["inputs"] == dict.fromkeys(fields, "...")


def test_lines_of_a_description_stay_lines() -> None:
    assert in_columns({"labels": "a\nb\x1b[31m", "x": "\u00e9"}) == (
        "labels  a\\nb\\x1b[31m\nx       \u00e9\n"
    )


def test_cards_are_written_beside_their_deltas(
    tiny_deltas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_deltas, tmp_path / "deltas")
    assert main(["cards", str(tmp_path / "deltas")]) == 0
    files = sorted((tmp_path / "deltas").rglob("*.safetensors"))
    assert len(capsys.readouterr().out.splitlines()) == len(files)
    assert all(card_path(path).read_text().startswith("# toy") for path in files)
