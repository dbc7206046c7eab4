"""A backbone's JSON files: settings with their values in the messages, and the trained pooling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, BackboneError, load_backbone
from deltas.backbone.files import read_encoder_config, short_reason, trained_pooling

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def sentence_encoder(folder: Path, settings: Any, modules: Any = (TRANSFORMER, POOLING)) -> str:
    """Write the files of a sentence encoder into a folder; text is written as it is."""
    (folder / "1_Pooling").mkdir()
    for file, content in (("modules.json", modules), ("1_Pooling/config.json", settings)):
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / file).write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        (MEAN, "mean"),
        (CLS, "cls"),
        ({"pooling_mode": "mean", "word_embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "cls"}, "cls"),
        (MEAN | {"pooling_mode_max_tokens": True}, "cls"),  # two vectors side by side
        ({}, "cls"),
    ],
)
def test_the_settings_name_the_pooling(tmp_path: Path, settings: Any, pooling: str) -> None:
    assert trained_pooling(sentence_encoder(tmp_path, settings), None, cache_only=True) == pooling


@pytest.mark.parametrize("modules", [[], [TRANSFORMER], ["Pooling"], [{"type": None}]])
def test_folders_without_a_pooling_module_have_the_pooler(tmp_path: Path, modules: Any) -> None:
    folder = sentence_encoder(tmp_path, MEAN, modules)
    assert trained_pooling(folder, None, cache_only=True) == "cls"


@pytest.mark.parametrize(
    ("settings", "modules", "problem"),
    [
        (MEAN, "{", "modules.json: modules.json is not JSON"),
        (MEAN, {}, "modules.json: modules.json holds no list"),
        (MEAN, "[" * 100_000, "modules.json: modules.json is nested too deeply"),
        ("not JSON", [POOLING], "1_Pooling/config.json: config.json is not JSON"),
        ([], [POOLING], "1_Pooling/config.json: config.json holds no object"),
    ],
)
def test_a_damaged_pooling_is_refused(
    tmp_path: Path, settings: Any, modules: Any, problem: str
) -> None:
    """It was taken for the first token's, so a truncated file changed every answer of a new run."""
    with pytest.raises(BackboneError, match=problem):
        trained_pooling(sentence_encoder(tmp_path, settings, modules), None, cache_only=True)


def test_a_backbone_knows_its_pooling(
    tiny_backbone: Backbone, tiny_backbone_dir: Path, tmp_path: Path
) -> None:
    assert tiny_backbone.pooling == "cls"
    folder = Path(shutil.copytree(tiny_backbone_dir, tmp_path / "sentence"))
    backbone = load_backbone(sentence_encoder(folder, MEAN))
    assert backbone.pooling == "mean"
    # Its weights are the same, so deltas of either pooling fit both.
    assert backbone.ref.fingerprint == tiny_backbone.ref.fingerprint


def test_the_packaged_backbone_is_made_for_the_mean(packaged_backbone: Backbone) -> None:
    assert packaged_backbone.pooling == "mean"


def test_a_hub_name_without_a_cached_file_has_the_pooler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert trained_pooling("nobody/has-this", None, cache_only=True) == "cls"


def test_the_settings_are_those_of_the_network(
    tiny_backbone: Backbone, tiny_backbone_dir: Path
) -> None:
    assert read_encoder_config(str(tiny_backbone_dir), "x", None) == tiny_backbone.config


def test_settings_that_a_file_leaves_out_are_those_of_bert(tmp_path: Path) -> None:
    """The paper's base network has twelve layers of width 768."""
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    config = read_encoder_config(str(tmp_path), "x", None)
    assert (config.num_layers, config.hidden_size, config.num_heads) == (12, 768, 12)


def test_a_name_from_a_file_moves_no_cursor(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "\x1b[2Jbert" * 100}))
    with pytest.raises(BackboneError, match=r"is a .*network") as caught:
        read_encoder_config(str(tmp_path), "x", None)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_reasons_of_libraries_are_one_short_line() -> None:
    assert short_reason(ValueError("first\nsecond")) == "first"
    assert short_reason(ValueError()) == "ValueError()"
    assert len(short_reason(ValueError("x" * 10_000))) == 300
