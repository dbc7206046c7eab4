"""An exported folder gives the delta's logits in the stock library that loads it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from deltas import Backbone, Delta, TaskSpec, tokenize_rows, write_delta
from deltas.__main__ import main
from tests.factories import POOLED_TASKS, TOY_TASKS, make_delta, stock_logits

TASKS = TOY_TASKS | POOLED_TASKS
WORDS = ("a good film", "not very good, the acting bad", "the " * 90, "")


def rows_of(task: TaskSpec) -> list[dict[str, str]]:
    """Rows of many lengths, some of them longer than the task allows."""
    first, last = task.text_fields[0], task.text_fields[-1]
    return [{first: one, last: other} for one in WORDS for other in WORDS]


def exported(folder: Path, delta: Delta, backbone_folder: Path) -> Any:
    """Load the folder that `deltas export` writes, with the real library."""
    path = folder / "delta.safetensors"
    write_delta(delta, path)
    target = folder / "exported"
    assert main(["export", str(path), str(target), "--backbone", str(backbone_folder)]) == 0
    return SentenceTransformer(str(target), device="cpu", trust_remote_code=True)


def expected(backbone: Backbone, delta: Delta, rows: list[dict[str, str]]) -> torch.Tensor:
    tokenized = tokenize_rows(backbone.tokenizer, delta.manifest.task, rows)
    return stock_logits(backbone, delta, tokenized)


@pytest.mark.parametrize("strategy", ["head", "bitfit", "random:0.05", "full"])
@pytest.mark.parametrize("name", ["toymean", "toypairmean", "toylayers", "toypairlayers"])
def test_sentence_transformers_gives_the_logits_of_a_mean(
    tiny_backbone: Backbone, tiny_backbone_dir: Path, tmp_path: Path, strategy: str, name: str
) -> None:
    """Also of texts that are cut, of the empty text, and of pairs in one sequence."""
    task = TASKS[name]
    delta = make_delta(tiny_backbone, task, strategy)
    model = exported(tmp_path, delta, tiny_backbone_dir)
    rows = rows_of(task)
    texts = [tuple(row[field] for field in task.text_fields) for row in rows]
    given = [text[0] for text in texts] if len(task.text_fields) == 1 else texts
    found = model.encode(given, convert_to_tensor=True)
    torch.testing.assert_close(found, expected(tiny_backbone, delta, rows), atol=1e-5, rtol=0)
    assert model[0].auto_model.config.id2label == dict(enumerate(task.labels))


@pytest.mark.parametrize("name", ["toysplit", "toysplitmean"])
def test_vectors_and_head_give_the_logits_of_separate_pairs(
    tiny_backbone: Backbone,
    tiny_backbone_dir: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With cls pooling the vector is the trained pooler's output."""
    task = TASKS[name]
    delta = make_delta(tiny_backbone, task, "bitfit")
    with caplog.at_level(logging.WARNING):
        model = exported(tmp_path, delta, tiny_backbone_dir)
    assert "falling back" not in caplog.text
    assert "their head is in pair_head.safetensors" in capsys.readouterr().out
    head = load_file(tmp_path / "exported" / "pair_head.safetensors")
    rows = rows_of(task)
    u, v = (
        model.encode([row[field] for row in rows], convert_to_tensor=True)
        for field in task.text_fields
    )
    features = torch.cat([u, v, (u - v).abs(), u * v], 1)
    found = features @ head["classifier.weight"].T + head["classifier.bias"]
    torch.testing.assert_close(found, expected(tiny_backbone, delta, rows), atol=1e-5, rtol=0)


def test_a_folder_with_every_layer_runs_its_own_code_and_says_so(
    tiny_backbone: Backbone,
    tiny_backbone_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The library saves such a model, and loads what it saved."""
    task = TASKS["toylayers"]
    delta = make_delta(tiny_backbone, task, "head")
    model = exported(tmp_path, delta, tiny_backbone_dir)
    assert "trust_remote_code=True); it runs layers_pooling.py" in capsys.readouterr().out
    assert model.get_embedding_dimension() == len(task.labels)
    saved = str(tmp_path / "saved")
    model.save(saved)
    again = SentenceTransformer(saved, device="cpu", trust_remote_code=True)
    found = again.encode("a good film", convert_to_tensor=True)
    torch.testing.assert_close(found, model.encode("a good film", convert_to_tensor=True))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "exported"), device="cpu")


def test_a_mean_on_the_packaged_backbone(packaged_backbone: Backbone, tmp_path: Path) -> None:
    """Its tokenizer pads to 128 when called plainly."""
    task = TASKS["toymean"].model_copy(update={"max_length": 96})
    delta = make_delta(packaged_backbone, task, "bitfit")
    write_delta(delta, tmp_path / "delta.safetensors")
    folder = str(tmp_path / "exported")
    assert main(["export", str(tmp_path / "delta.safetensors"), folder]) == 0
    model = SentenceTransformer(folder, device="cpu")
    rows = rows_of(task)
    found = model.encode([row["sentence"] for row in rows], convert_to_tensor=True)
    torch.testing.assert_close(found, expected(packaged_backbone, delta, rows), atol=1e-5, rtol=0)
