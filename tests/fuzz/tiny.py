"""Writes a tiny sentence encoder: a BERT of two layers with every file that a backbone may have."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

_MODULES: list[dict[str, Any]] = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def tiny_folder(parent: Path) -> Path:
    """Write the backbone below `parent` and return its folder."""
    import torch
    from transformers import BertConfig, BertModel

    folder = parent / "tiny-bert"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer_class = import_module("transformers").BertTokenizerFast
    tokenizer_class(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces) + 2,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "modules.json").write_text(json.dumps(_MODULES))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True})
    )
    return folder
