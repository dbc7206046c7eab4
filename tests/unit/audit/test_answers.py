"""The deltas that paths and names mean, and the passes in which rows are answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.engine import Engine, EngineRow
from app.pipeline.bulk.run import open_engine
from audit import answers
from audit.answers import choose_records, names_of, predict
from deltas import Backbone, DeltaError, DeltaFormatError, DeltaNotFoundError, tokenize_texts
from tests.factories import stock_logits
from tests.unit.audit.conftest import TEXTS, Put, yes_no
from training.errors import ConfigError


def folder_of(put: Put, tmp_path: Path, *names: str) -> Path:
    for name in names:
        put(yes_no(name))
    return tmp_path / "deltas"


def test_a_folder_means_every_task_or_the_named_ones(
    put: Put, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    folder = folder_of(put, tmp_path, "a", "b", "c")
    put(yes_no("a"), strategy="layernorm")

    def chosen(*names: str) -> list[tuple[str, str]]:
        records = choose_records([folder], names, tiny_backbone)
        return [record.manifest.key for record in records]

    assert chosen() == [("a", "head"), ("b", "head"), ("c", "head")]
    assert chosen("c", "a") == [("c", "head"), ("a", "head")]
    assert chosen("a/layernorm", "a") == [("a", "layernorm"), ("a", "head")]
    with pytest.raises(DeltaNotFoundError, match="unknown task 'd'"):
        chosen("d")


def test_files_and_folders_go_together(put: Put, tiny_backbone: Backbone, tmp_path: Path) -> None:
    folder = folder_of(put, tmp_path, "a", "b")
    (file,) = (folder / "b").iterdir()
    records = choose_records([folder, file], ("a",), tiny_backbone)
    assert [record.manifest.task.name for record in records] == ["b", "a"]
    with pytest.raises(ConfigError, match="is named twice"):
        choose_records([folder, file], (), tiny_backbone)
    with pytest.raises(ConfigError, match="--tasks chooses among the deltas of a folder"):
        choose_records([file], ("b",), tiny_backbone)


def test_what_is_no_delta_is_explained(tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="no such file or folder"):
        choose_records([tmp_path / "none"], (), tiny_backbone)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DeltaError, match=f"no deltas below {empty}"):
        choose_records([empty], (), tiny_backbone)
    (empty / "a.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DeltaError, match=r"refused .*a\.safetensors: "):
        choose_records([empty], (), tiny_backbone)
    with pytest.raises(DeltaFormatError):
        choose_records([empty / "a.safetensors"], (), tiny_backbone)


def test_a_damaged_file_is_no_delta_to_leave_out(
    put: Put, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    folder = folder_of(put, tmp_path, "a", "b")
    records = choose_records([folder], (), tiny_backbone)
    content = bytearray(records[0].path.read_bytes())
    content[-3] ^= 0x40
    records[0].path.write_bytes(content)
    with pytest.raises(DeltaFormatError, match=str(records[0].path)):
        open_engine(records, tiny_backbone, device="cpu", precision="fp32")


def test_names_tell_deltas_of_one_task_apart(
    put: Put, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    folder = folder_of(put, tmp_path, "a", "b")
    put(yes_no("a"), strategy="layernorm")
    first, second = put(yes_no("c")), put(yes_no("c"), seed=1)
    files = sorted((folder / "c").iterdir())
    named = ("a", "a/layernorm", "b")
    assert names_of(choose_records([folder, *files], named, tiny_backbone)) == [
        f"c/head/{first.version}",
        f"c/head/{second.version}",
        "a/head",
        "a/layernorm",
        "b",
    ]


def test_rows_of_all_deltas_share_passes_and_get_their_own_logits(
    put: Put, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas = [put(yes_no("a")), put(yes_no("b", "x", "y", "z"), strategy="bitfit")]
    records = choose_records([tmp_path / "deltas"], (), tiny_backbone)
    engine = open_engine(records, tiny_backbone, device="cpu", precision="fp32")
    passes: list[list[EngineRow]] = []
    plain = engine.predict

    def spying(rows: Any) -> Any:
        passes.append(list(rows))
        return plain(rows)

    monkeypatch.setattr(engine, "predict", spying)
    asked = [(record, [(text,) for text in TEXTS]) for record in records]
    found = predict(engine, asked)
    assert len(passes) == 1
    assert len(passes[0]) == 2 * len(TEXTS)
    rows = tokenize_texts(tiny_backbone.tokenizer, 24, asked[0][1])
    for delta, logits in zip(deltas, found, strict=True):
        expected = stock_logits(tiny_backbone, delta, rows)
        assert torch.allclose(torch.tensor([row.logits for row in logits]), expected, atol=1e-5)
    monkeypatch.setattr(answers, "_MAX_TOKENS", 64)
    monkeypatch.setattr(answers, "_TOKENIZED_TOGETHER", 7)
    again = predict(engine, asked)
    assert len(passes) > 5
    assert all(sum(row.num_tokens for row in rows) <= 64 for rows in passes[1:])
    for first, second in zip(found, again, strict=True):
        one, other = (torch.tensor([row.logits for row in part]) for part in (first, second))
        assert torch.allclose(one, other, atol=1e-5)


def test_a_row_longer_than_a_pass_is_answered(
    put: Put, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(yes_no("a"))
    records = choose_records([tmp_path / "deltas"], (), tiny_backbone)
    engine: Engine = open_engine(records, tiny_backbone, device="cpu", precision="fp32")
    monkeypatch.setattr(answers, "_MAX_TOKENS", 4)
    texts = [("the good film and the very bad film " * 9,), ("good",)]
    (found,) = predict(engine, [(records[0], texts)])
    assert [row.truncated for row in found] == [True, False]
