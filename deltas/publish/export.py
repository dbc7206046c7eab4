"""Turn a delta back into a stock `transformers` network, or into a folder that loads anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from deltas.backbone.backbone import Backbone
from deltas.backbone.layout import STOCK_NAMES
from deltas.delta import Delta
from deltas.errors import DeltaError
from deltas.format import check_delta

_PROBLEM_TYPES: dict[str, Any] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def stock_network(delta: Delta, backbone: Backbone) -> Any:
    """Build a `BertForSequenceClassification` with parameters bit-equal to the trained ones.

    Raises:
        DeltaMismatchError: the delta belongs to another backbone.
    """
    from transformers import BertConfig, BertForSequenceClassification

    check_delta(delta, backbone)
    sizes, task = backbone.config, delta.manifest.task
    labels = task.labels or ("score",)
    facts: dict[str, Any] = {theirs: getattr(sizes, ours) for ours, theirs in STOCK_NAMES.items()}
    config = BertConfig(
        **facts,
        pad_token_id=backbone.tokenizer.pad_token_id,
        problem_type=_PROBLEM_TYPES[task.kind],
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    network: Any = BertForSequenceClassification(config)
    network.eval()
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, frozen in backbone.parameters.items():
            entry = delta.entries.get(name)
            parameters[name].copy_(frozen if entry is None else entry.resolve(frozen))
        network.classifier.weight.copy_(delta.head_weight)
        network.classifier.bias.copy_(delta.head_bias)
    return network


def export_folder(delta: Delta, backbone: Backbone, folder: Path) -> None:
    """Write network, tokenizer and manifest for `AutoModelForSequenceClassification`.

    Raises:
        DeltaError: the folder exists and isn't empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeltaError(f"{folder} exists and is not an empty folder; name another one")
    network = stock_network(delta, backbone)
    network.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    # Only in the file: the tokenizer in memory also serves tasks of other lengths.
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text())
    settings["model_max_length"] = delta.manifest.task.max_length
    settings_path.write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "delta_manifest.json").write_text(delta.manifest.model_dump_json(indent=2) + "\n")
