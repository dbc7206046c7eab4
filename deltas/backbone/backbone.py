"""Load the backbone: pretrained encoder weights and a tokenizer, which never change.

This is the only module that loads a network with `transformers`; the packaged backbone needs none
(`deltas.backbone.packaged`). Weights are kept in the encoder's layout (`deltas.backbone.layout`).
`Backbone.parameters` are views into them under their Hugging Face names, so nothing is held twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltas.backbone.files import (
    read_encoder_config,
    trained_pooling,
    why_no_floats,
    why_no_tokenizer,
    why_no_weights,
)
from deltas.backbone.hub import is_cached, why_unreachable
from deltas.backbone.layout import EncoderConfig, encoder_layout
from deltas.backbone.packaged import DEFAULT_BACKBONE as DEFAULT_BACKBONE
from deltas.backbone.packaged import (
    PACKAGED,
    PackagedTokenizer,
    check_packaged,
    packaged_folder,
    packaged_parameters,
)
from deltas.backbone.tokenizer import plain_copy, tokenize_texts
from deltas.errors import BackboneError
from deltas.manifest import STOCK_NAMES, BackboneRef, Pooling

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# A text pair whose ids depend on casing, accents, punctuation, word pieces and unknown characters.
_PROBE = ("Naïve Straße, don't re-tokenise: 3.14% of HTTP/2!", "Ünïcödé 中文 #hash_tag… end")
# Texts whose ids depend on the longest word that is looked up, on cleaning, and on special tokens.
_UNUSUAL_PROBE = (
    " ".join("a" * length for length in (16, 32, 50, 64, 99, 100, 101, 128, 200, 201, 256, 512)),
    "a\x00b c\td\u00a0e\u200bf\ufffdg",
    "a[MASK]b [mask] x [CLS] [SEP]c d[UNK] [PAD]e  f",
)


@dataclass(frozen=True, eq=False)
class Backbone:
    """Frozen encoder weights with their tokenizer."""

    ref: BackboneRef
    config: EncoderConfig
    weights: Mapping[str, Tensor]  # float32, by encoder name; query, key and value stacked
    parameters: Mapping[str, Tensor]  # views into `weights`, by Hugging Face name
    tokenizer: Any  # a fast one of Hugging Face
    pooling: Pooling = "cls"  # that its makers trained it for

    @cached_property
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
        return _load_packaged()
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
    weights, views = _stacked(config, parameters)
    ref = _ref(config, weights_fingerprint(views), tokenizer, name)
    return Backbone(ref=ref, config=config, weights=weights, parameters=views, tokenizer=tokenizer)


def _stacked(
    config: EncoderConfig, parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copy parameters into the encoder's layout; returns its weights and views into them."""
    weights: dict[str, Tensor] = {}
    views: dict[str, Tensor] = {}
    for target, parts in encoder_layout(config).items():
        weights[target] = torch.cat([parameters[part].detach().float().cpu() for part in parts])
        rows = [parameters[part].shape[0] for part in parts]
        views.update(zip(parts, torch.split(weights[target], rows), strict=True))
    return weights, {key: views[key] for key in parameters}  # in the order of the network


def _ref(config: EncoderConfig, fingerprint: str, tokenizer: Any, name: str) -> BackboneRef:
    return BackboneRef(
        id=name,
        fingerprint=fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        config=config,
        tokenizer_settings=tokenizer_settings(tokenizer),
    )


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


def tokenizer_settings(tokenizer: Any) -> str:
    """Return a digest of the ids of unusual texts, which `tokenizer_fingerprint` doesn't cover."""
    plain = plain_copy(tokenizer)
    ids = [plain.encode(text, add_special_tokens=False).ids for text in _UNUSUAL_PROBE]
    return f"sha256:{hashlib.sha256(str(ids).encode()).hexdigest()}"


def _load_packaged() -> Backbone:
    folder = packaged_folder()
    config = read_encoder_config(str(folder), DEFAULT_BACKBONE, None)
    tokenizer = PackagedTokenizer(folder)
    # The file's digest was compared, which implies that of the weights.
    ref = _ref(config, PACKAGED.fingerprint, tokenizer, DEFAULT_BACKBONE)
    check_packaged(ref)
    weights, views = _stacked(config, packaged_parameters(folder, config))
    pooling = trained_pooling(str(folder), None, cache_only=True)
    return Backbone(ref, config, weights, views, tokenizer, pooling)


def _load(source: str, name: str, revision: str | None, *, cache_only: bool = False) -> Backbone:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    config = read_encoder_config(source, name, revision, cache_only=cache_only)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    set_verbosity_error()  # type: ignore[no-untyped-call]  # a report beside our one sentence
    common: dict[str, Any] = {"revision": revision, "local_files_only": cache_only}
    common["trust_remote_code"] = False
    try:
        network, report = AutoModel.from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,  # a pickle can run code
            **common,
        )
    except Exception as error:
        reason = why_no_weights(source, _stock_shapes(config), error)
        raise BackboneError(f"can't load the weights of backbone {name!r}: {reason}") from error
    _check_weights(network, report["missing_keys"], name)
    if damage := why_no_floats(source, (name for name, _ in network.named_parameters())):
        raise BackboneError(f"can't load the weights of backbone {name!r}: {damage}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, **common)
    except Exception as error:
        reason = why_no_tokenizer(source, error)
        raise BackboneError(f"can't load the tokenizer of backbone {name!r}: {reason}") from error
    _check_tokenizer(tokenizer, source, name, config.vocab_size)
    parameters = {f"bert.{key}": value for key, value in network.named_parameters()}
    backbone = make_backbone(config, parameters, tokenizer, name)
    revision = revision or getattr(network.config, "_commit_hash", None)
    return replace(
        backbone,
        ref=backbone.ref.model_copy(update={"revision": revision}),
        pooling=trained_pooling(source, revision, cache_only=cache_only),
    )


def _stock_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the stock network's parameters, by name."""
    from transformers import BertConfig, BertModel

    facts: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in STOCK_NAMES.items()}
    with torch.device("meta"):
        network = BertModel(BertConfig(**facts))
    return {name: tuple(value.shape) for name, value in network.named_parameters()}


def _check_weights(network: Any, missing: Iterable[str], name: str) -> None:
    if lacking := sorted(missing):
        # transformers would fill them with other random numbers at each start.
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        pooler = "; a pooler is needed" if lacking[0].startswith("pooler") else ""
        raise BackboneError(f"{name!r} lacks the weights {lacking[0]}{more}{pooler}")
    for key, value in network.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise BackboneError(f"{name!r}: {key} has values that are NaN or infinite")


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
    try:
        is_framed = _frames_like_bert(tokenizer)
    except Exception as error:  # noqa: BLE001 - the library raises no other kind
        raise BackboneError(
            f"the tokenizer of {name!r} can't read a text with an unknown character ({error}); "
            "copy the network's tokenizer"
        ) from None
    if not is_framed:
        raise BackboneError(
            f"the tokenizer of {name!r} does not frame texts as [CLS] a [SEP] b [SEP]; "
            "copy a BERT tokenizer into the folder"
        )


def _frames_like_bert(tokenizer: Any) -> bool:
    """Return True if the tokenizer frames a text pair as `deltas.backbone.tokenizer` does."""
    encoding = plain_copy(tokenizer).encode(*_PROBE)
    (row,) = tokenize_texts(tokenizer, len(encoding.ids), [_PROBE])
    return (row.input_ids, row.token_type_ids) == (encoding.ids, encoding.type_ids)
