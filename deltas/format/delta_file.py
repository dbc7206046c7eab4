"""Read, check and write delta files: format version 1, one `.safetensors` file per delta.

Tensors, all little-endian as safetensors prescribes:
    <parameter>              float32, the parameter's shape        a dense entry
    <parameter>:indices      int32 or int64 [K], increasing        a sparse entry: flat positions
    <parameter>:values       float32 [K]                           and their values
    classifier.weight        float32 [C, I]                        the head
    classifier.bias          float32 [C]
<parameter> is the Hugging Face name in `BertForSequenceClassification`. Header metadata, strings
only:
    deltabert                the manifest as JSON
    version                  16 hex digits: digest of the tensors and of the manifest without
                             `training` and `metrics`
    digest                   SHA-256 of everything: manifest text, version, and every tensor's name,
                             dtype, shape and bytes
Two runs that produce the same values get the same version, whenever and wherever they ran.

`deltas.manifest` documents the manifest, `deltas.store` finds the files of many deltas.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from deltas.backbone.backbone import Backbone
from deltas.backbone.packaged import PACKAGED
from deltas.delta import Delta, DenseEntry, Entry, SparseEntry
from deltas.errors import DeltaFormatError, DeltaMismatchError
from deltas.format.atomic_write import write_atomically
from deltas.format.content import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    distinct,
    format_errors,
    header_of,
    metadata_of,
    read_content,
    read_metadata,
    shown,
)
from deltas.manifest import FORMAT_VERSION, STOCK_NAMES, BackboneRef, EntryInfo, Manifest

HEAD_WEIGHT, HEAD_BIAS = "classifier.weight", "classifier.bias"
_INDICES, _VALUES = ":indices", ":values"
_VERSION_DIGITS = 16
_INT32_MAX = 2**31 - 1
_MOST_VALUE_BYTES = 12  # a float32 and its index in int64
_HEAD_VALUE_BYTES = 4


def write_delta(delta: Delta, path: Path, *, replace: bool = True) -> Delta:
    """Write a delta in one step: readers see the old file or the whole new one.

    Args:
        delta: the delta; the manifest's `entries` must describe its tensors.
        path: target file; its folder is made if missing.
        replace: whether a file there may be replaced.

    Returns:
        The delta with `version` and `num_bytes` of the written file.

    Raises:
        DeltaFormatError: readers would refuse the file.
        FileExistsError: the file exists, and `replace` is False.
    """
    tensors: dict[str, Tensor] = {HEAD_WEIGHT: delta.head_weight, HEAD_BIAS: delta.head_bias}
    for name, entry in delta.entries.items():
        if isinstance(entry, SparseEntry):
            dtype = torch.int32 if prod(entry.shape) <= _INT32_MAX else torch.int64
            tensors[name + _INDICES] = entry.indices.to(dtype)
            tensors[name + _VALUES] = entry.values
        else:
            tensors[name] = entry.values
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    _check_tensors(path, delta.manifest, tensors)
    text = delta.manifest.model_dump_json()
    version = content_digest(_versioned_text(delta.manifest), tensors)[:_VERSION_DIGITS]
    digest = content_digest(text + version, tensors)
    metadata = {"deltabert": text, "version": version, "digest": digest, "format": "pt"}
    content = save(tensors, metadata=metadata)
    if (length := int.from_bytes(content[:LENGTH_BYTES], "little")) > MAX_HEADER_BYTES:
        reason = f"the header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed"
        raise DeltaFormatError(path, f"{reason}. Shorten the labels, or give the task fewer")
    write_atomically(path, content, replace=replace)
    return dataclasses.replace(delta, version=version, num_bytes=len(content))


def read_delta(path: Path, backbone: Backbone | None = None) -> Delta:
    """Read a delta and check everything that can be checked without its backbone.

    Args:
        path: the file.
        backbone: the backbone that the delta must fit; None checks the file alone.

    Raises:
        DeltaFormatError: not a delta, damaged, or inconsistent.
        DeltaMismatchError: it does not fit the backbone.
    """
    if backbone is None:
        return parse_delta(path, read_content(path))
    manifest, _ = read_manifest(path)
    check_fit(manifest, backbone)  # before the values are read, which may be any number of bytes
    delta = parse_delta(path, read_content(path, most_bytes(manifest, backbone)))
    check_delta(delta, backbone)
    return delta


def most_bytes(manifest: Manifest, backbone: Backbone) -> int:
    """Return the size in bytes that no file of a sound delta exceeds."""
    width = manifest.task.head_width(backbone.config)
    head = manifest.task.num_outputs * (width + 1) * _HEAD_VALUE_BYTES
    entries = backbone.num_parameters * _MOST_VALUE_BYTES
    return LENGTH_BYTES + MAX_HEADER_BYTES + entries + head


def parse_delta(path: Path, content: bytes) -> Delta:
    """Check a delta like `read_delta`; the delta holds copies of the values in `content`."""
    with format_errors(path):
        tensors = dict(sorted(load(content).items()))
        header = metadata_of(path, header_of(path, content))
    manifest = _parse_manifest(path, header["deltabert"])
    _check_tensors(path, manifest, tensors)
    version, digest = header["version"], header["digest"]
    found, computed = _digests([header["deltabert"] + version, _versioned_text(manifest)], tensors)
    if found != digest or computed[:_VERSION_DIGITS] != version:
        reason = f"the content's digest is {found[:16]}..., the header says {digest[:16]}..."
        raise DeltaFormatError(path, f"{reason}: the file is damaged; copy or train it again")
    return Delta(
        manifest=manifest,
        entries={info.name: _entry(info, tensors) for info in manifest.entries},
        head_weight=tensors[HEAD_WEIGHT],
        head_bias=tensors[HEAD_BIAS],
        version=version,
        num_bytes=len(content),
    )


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """Read the manifest and the version from the header; the values of tensors are not read.

    Raises:
        DeltaFormatError: the header is not that of a delta, or does not fit the file's size.
    """
    header = read_metadata(path)
    return _parse_manifest(path, header["deltabert"]), header["version"]


def check_backbone(manifest: Manifest, backbone: BackboneRef) -> None:
    """Check that a delta belongs to a backbone; the backbone's name is ignored.

    A delta of an earlier release has the fingerprints of weights and tokenizer only. If they are
    those of the packaged backbone, everything else must be, too.

    Raises:
        DeltaMismatchError: the first difference.
    """
    ours, theirs = backbone, manifest.backbone
    if ours.fingerprint != theirs.fingerprint:
        expected, found = (f"{ref.id} ({ref.fingerprint})" for ref in (ours, theirs))
        raise DeltaMismatchError("backbone fingerprint", expected, found)
    expected, found = ours.tokenizer_fingerprint, theirs.tokenizer_fingerprint
    if expected != found:
        raise DeltaMismatchError("tokenizer fingerprint", expected, found)
    known = PACKAGED if theirs.fingerprint == PACKAGED.fingerprint else theirs
    if ours.config and (config := theirs.config or known.config):
        for field, name in STOCK_NAMES.items():
            has, wants = getattr(ours.config, field), getattr(config, field)
            if has != wants:
                raise DeltaMismatchError(f"{name} of the backbone's config.json", has, wants)
    if known.tokenizer_fingerprint != theirs.tokenizer_fingerprint:
        known = theirs
    settings = theirs.tokenizer_settings or known.tokenizer_settings
    if ours.tokenizer_settings and settings and ours.tokenizer_settings != settings:
        raise DeltaMismatchError("tokenizer settings", ours.tokenizer_settings, settings)


def check_fit(manifest: Manifest, backbone: Backbone) -> None:
    """Check that names, shapes and lengths in a manifest fit a loaded backbone.

    Raises:
        DeltaMismatchError: the first difference.
    """
    check_backbone(manifest, backbone.ref)
    for info in manifest.entries:
        parameter = backbone.parameters.get(info.name)
        if parameter is None:
            raise DeltaMismatchError(f"entry {info.name}", "no parameter of that name", "one")
        if tuple(parameter.shape) != info.shape:
            raise DeltaMismatchError(f"shape of {info.name}", tuple(parameter.shape), info.shape)
    longest = backbone.config.max_positions
    if manifest.task.max_length > longest:
        raise DeltaMismatchError("maximum length", longest, manifest.task.max_length)


def check_delta(delta: Delta, backbone: Backbone) -> None:
    """Check that a delta fits a loaded backbone: its manifest and the width of its head.

    Raises:
        DeltaMismatchError: the first difference.
    """
    check_fit(delta.manifest, backbone)
    width = delta.manifest.task.head_width(backbone.config)
    if delta.head_weight.shape[1] != width:
        raise DeltaMismatchError("width of the head", width, delta.head_weight.shape[1])
    total = backbone.num_parameters + delta.head_weight.numel() + delta.head_bias.numel()
    if delta.manifest.total_parameters != total:
        raise DeltaMismatchError("total of parameters", total, delta.manifest.total_parameters)


def _parse_manifest(path: Path, text: str) -> Manifest:
    try:
        facts = json.loads(text, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        reason = f"the manifest is not a sound JSON object ({error})"
        raise DeltaFormatError(path, reason) from error
    if not isinstance(facts, dict):
        raise DeltaFormatError(path, "the manifest is not a sound JSON object (no object)")
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        known = f"this deltabert reads version {FORMAT_VERSION}"
        raise DeltaFormatError(path, f"format version {version!r} is not supported; {known}")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5]
        )
        raise DeltaFormatError(path, f"the manifest is invalid: {problems}") from error


def _versioned_text(manifest: Manifest) -> str:
    """Return the part of a manifest that the version covers.

    The backbone's settings came later than the version; a version names its content forever.
    """
    later = {"config": True, "tokenizer_settings": True}
    return manifest.model_dump_json(
        exclude={"training": True, "metrics": True, "about": True, "backbone": later}
    )


def content_digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of every tensor's name, dtype, shape and bytes."""
    (digest,) = _digests([text], tensors)
    return digest


def _digests(texts: Sequence[str], tensors: dict[str, Tensor]) -> list[str]:
    """Compute `content_digest` for several texts in one pass over the tensors."""
    hashers = [hashlib.sha256(text.encode()) for text in texts]
    for name in sorted(tensors):
        tensor = tensors[name]
        about = f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode()
        content = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        for hasher in hashers:
            hasher.update(about)
            hasher.update(content)
    return [hasher.hexdigest() for hasher in hashers]


def _check_tensors(path: Path, manifest: Manifest, tensors: dict[str, Tensor]) -> None:
    """Compare the tensors with the manifest; raise the first problem."""
    for problems in (_name_problems, _head_problems, _value_problems, _entry_problems):
        for problem in problems(manifest, tensors):
            raise DeltaFormatError(path, problem)


def _name_problems(manifest: Manifest, tensors: dict[str, Tensor]) -> Iterator[str]:
    """Find names that occur twice, and all missing or unexpected ones."""
    expected = {HEAD_WEIGHT, HEAD_BIAS}
    names = [HEAD_WEIGHT, HEAD_BIAS, *(info.name for info in manifest.entries)]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        yield f"named more than once: {shown(twice)}"
    for info in manifest.entries:
        sparse = info.kind == "sparse"
        expected |= {info.name + _INDICES, info.name + _VALUES} if sparse else {info.name}
    if missing := sorted(expected - set(tensors)):
        yield f"tensors are missing: {shown(missing)}"
    if unexpected := sorted(set(tensors) - expected):
        yield f"tensors that the manifest doesn't name: {shown(unexpected)}"


def _head_problems(manifest: Manifest, tensors: dict[str, Tensor]) -> Iterator[str]:
    outputs = manifest.task.num_outputs
    weight, bias = tuple(tensors[HEAD_WEIGHT].shape), tuple(tensors[HEAD_BIAS].shape)
    if len(weight) != 2 or weight[0] != outputs or bias != (outputs,):
        found = f"head of shape {weight} and {bias}"
        yield f"{found}, but the task {manifest.task.name!r} has {outputs} outputs"


def _value_problems(_manifest: Manifest, tensors: dict[str, Tensor]) -> Iterator[str]:
    for name, tensor in tensors.items():
        if name.endswith(_INDICES):
            continue
        if tensor.dtype != torch.float32:
            yield f"{name} has dtype {tensor.dtype}, expected torch.float32"
        if not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            yield f"{name} has {bad} values that are NaN or infinite; train it again"


def _entry_problems(manifest: Manifest, tensors: dict[str, Tensor]) -> Iterator[str]:
    for info in manifest.entries:
        if info.kind == "sparse":
            indices, values = tensors[info.name + _INDICES], tensors[info.name + _VALUES]
            yield from _sparse_problems(info, indices, values)
        elif (found := tuple(tensors[info.name].shape)) != info.shape:
            yield f"{info.name} has shape {found}, the manifest says {info.shape}"
    in_head = tensors[HEAD_WEIGHT].numel() + tensors[HEAD_BIAS].numel()
    held = sum(info.count for info in manifest.entries) + in_head
    trained, total = manifest.trainable_parameters, manifest.total_parameters
    # A delta holds more values than were trained only if parameters were re-initialised.
    if trained > held or (trained < held and manifest.strategy.reinit == "none"):
        yield f"holds {held} values, the manifest says {trained} were trained"
    if total < held:
        yield f"holds {held} values, the manifest says {total} in total"


def _sparse_problems(info: EntryInfo, indices: Tensor, values: Tensor) -> Iterator[str]:
    if indices.dtype not in (torch.int32, torch.int64):
        yield f"indices of {info.name} have dtype {indices.dtype}, expected int32 or int64"
    if tuple(indices.shape) != (info.count,) or tuple(values.shape) != (info.count,):
        found = f"{tuple(indices.shape)} indices and {tuple(values.shape)} values"
        yield f"{info.name} has {found}, the manifest says {info.count}"
    size = prod(info.shape)
    increasing = bool((indices[1:] > indices[:-1]).all())  # indices.diff() could overflow
    if int(indices[0]) < 0 or int(indices[-1]) >= size or not increasing:
        yield f"indices of {info.name} must increase strictly within 0..{size - 1}"


def _entry(info: EntryInfo, tensors: dict[str, Tensor]) -> Entry:
    if info.kind == "dense":
        return DenseEntry(tensors[info.name])
    indices = tensors[info.name + _INDICES].to(torch.int64)
    return SparseEntry(indices, tensors[info.name + _VALUES], info.shape)
