"""Turn a delta back into a stock network: a folder that stock libraries load anywhere.

A delta that reads the pooler becomes a `BertForSequenceClassification` of `transformers`. A delta
that reads means becomes the modules of a sentence encoder (Reimers and Gurevych 2019,
arXiv:1908.10084), the last of which gives the logits, in the files of `sentence-transformers`. The
means of every layer need a module that the library lacks; its code is written beside the others
(`deltas.publish.layers_pooling`). If the texts of a pair are read separately, the modules give the
vector of one text, and the head that reads both vectors lies in a file beside them.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.delta import Delta
from deltas.errors import DeltaError
from deltas.format import HEAD_BIAS, HEAD_WEIGHT, check_delta, make_public
from deltas.manifest import STOCK_NAMES, EncoderConfig, TaskSpec

PAIR_HEAD = "pair_head.safetensors"
_LAYERS_FILE = "layers_pooling.py"
_PROBLEM_TYPES: dict[str, Any] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}


def export_folder(delta: Delta, backbone: Backbone, folder: Path) -> str:
    """Write network, tokenizer and manifest for a stock library.

    Returns:
        How to load the folder, for the user.

    Raises:
        DeltaMismatchError: the delta belongs to another backbone.
        DeltaError: the folder exists and isn't empty, or can't be written; nothing is left there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DeltaError(f"{folder} exists and is not an empty folder; name another one")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        _write_folder(delta, backbone, temporary)
        make_public(temporary, 0o777)
        temporary.replace(folder)  # readers see nothing or all of it
    except BaseException as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        # Both libraries in Rust have errors of their own for those of the file system.
        if isinstance(error, (OSError, SafetensorError)) or type(error) is Exception:
            reason = getattr(error, "strerror", None) or str(error)
            raise DeltaError(f"can't write {folder}: {reason}") from error
        raise
    return _how_to_load(delta.manifest.task, folder)


def _how_to_load(task: TaskSpec, folder: Path) -> str:
    if task.pooling == "cls" and task.pairs == "joint":
        return f"AutoModelForSequenceClassification.from_pretrained({str(folder)!r})"
    trusted = ", trust_remote_code=True" if task.pooling == "layers" else ""
    told = f"SentenceTransformer({str(folder)!r}{trusted})"
    if trusted:
        told += f"; it runs {_LAYERS_FILE} of the folder"
    if task.pairs == "separate":
        told += f"; it gives the vectors u and v of two texts, their head is in {PAIR_HEAD}"
    return told


def _write_folder(delta: Delta, backbone: Backbone, folder: Path) -> None:
    from transformers import BertForSequenceClassification

    task = delta.manifest.task
    if task.pooling == "cls" and task.pairs == "joint":
        _stock_network(BertForSequenceClassification, delta, backbone).save_pretrained(folder)
    else:
        _write_sentence_encoder(delta, backbone, folder)
    backbone.tokenizer.save_pretrained(folder)
    # Only in the file: the tokenizer in memory also serves tasks of other lengths.
    settings_path = folder / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text()) | {
        "model_max_length": task.max_length,
        # Tokenizers of no class of BERT would leave the token types of a pair out.
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    _write_json(settings_path, settings)
    (folder / "delta_manifest.json").write_text(delta.manifest.model_dump_json(indent=2) + "\n")


def _stock_network(stock_class: Any, delta: Delta, backbone: Backbone) -> Any:
    """Build a network of `transformers` with parameters bit-equal to the trained ones."""
    from transformers import BertConfig

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
    network: Any = stock_class(config)
    network.eval()
    values = {HEAD_WEIGHT: delta.head_weight, HEAD_BIAS: delta.head_bias}
    for name, frozen in backbone.parameters.items():
        entry = delta.entries.get(name)
        values[name] = frozen if entry is None else entry.resolve(frozen)
        values[name.removeprefix("bert.")] = values[name]  # its name in a network without head
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(values[name])
    return network


def _write_sentence_encoder(delta: Delta, backbone: Backbone, folder: Path) -> None:
    """Write the modules in the form of version 2 of the library, which later ones read as well."""
    from transformers import BertModel

    task, sizes = delta.manifest.task, backbone.config
    network = _stock_network(BertModel, delta, backbone)
    network.config.output_hidden_states = task.pooling == "layers"
    network.save_pretrained(folder)
    lengths = {"max_seq_length": task.max_length, "do_lower_case": False}
    _write_json(folder / "sentence_bert_config.json", lengths)
    modules = {"": _stock_module("Transformer"), "1_Pooling": _write_pooling(task, sizes, folder)}
    dense: tuple[Tensor, Tensor, str] | None = None
    if task.pairs == "separate":
        head = {HEAD_WEIGHT: delta.head_weight, HEAD_BIAS: delta.head_bias}
        save_file(head, folder / PAIR_HEAD, metadata={"reads": "u, v, |u - v|, u * v"})
        if task.pooling == "cls":
            pooler = network.pooler.dense
            dense = pooler.weight, pooler.bias, "torch.nn.modules.activation.Tanh"
    else:
        dense = delta.head_weight, delta.head_bias, "torch.nn.modules.linear.Identity"
    if dense is not None:
        _write_dense(folder / "2_Dense", *dense)
        modules["2_Dense"] = _stock_module("Dense")
    if task.pairs == "separate":
        modules["3_Normalize"] = _stock_module(
            "Normalize"
        )  # `deltas.encoder.encoder.pair_features` does it
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": module}
        for n, (path, module) in enumerate(modules.items())
    ]
    _write_json(folder / "modules.json", listed)


def _stock_module(name: str) -> str:
    return f"sentence_transformers.models.{name}"


def _write_pooling(task: TaskSpec, sizes: EncoderConfig, folder: Path) -> str:
    """Write the settings of the pooling module, and its code if it is ours; return its name."""
    settings: dict[str, Any] = {
        "word_embedding_dimension": sizes.hidden_size,
        "pooling_mode_cls_token": task.pooling == "cls",
        "pooling_mode_mean_tokens": task.pooling == "mean",
    }
    module = _stock_module("Pooling")
    if task.pooling == "layers":
        settings = {"embedding_dimension": task.head_width(sizes)}
        module = f"{Path(_LAYERS_FILE).stem}.LayersPooling"
        shutil.copyfile(Path(__file__).with_name(_LAYERS_FILE), folder / _LAYERS_FILE)
    _write_json(folder / "1_Pooling" / "config.json", settings)
    return module


def _write_dense(folder: Path, weight: Tensor, bias: Tensor, activation: str) -> None:
    outputs, inputs = weight.shape
    config = {"in_features": inputs, "out_features": outputs, "bias": True}
    _write_json(folder / "config.json", config | {"activation_function": activation})
    tensors = {"linear.weight": weight.detach(), "linear.bias": bias.detach()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
