"""Mutates files by their structure: headers, manifests, tensors, JSON values, rows and tables.

Random bytes end at the first check of a reader. These mutations keep the outer form of a file, so
that an input reaches the checks behind it: a changed manifest or tensor is signed again, a changed
row stays between its separators. Every mutation is a function of the input and a `Random` alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from deltas.format import content_digest
from deltas.format.delta_file import _versioned_text
from deltas.manifest import Manifest

Mutation = Callable[[bytes, Random], bytes]

_LENGTH_BYTES = 8
_EDGES = (0, 1, -1, 2, 7, 127, 255, 2**15, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64)
# Texts that break lines, hide, turn the direction of writing, or look like something else.
_TEXTS = (
    "",
    " ",
    "\n",
    "a\nb",
    "\x1b[31m",
    "\u202egnp",
    "\u200b",
    "\ufeff",
    "\0",
    "\ud800",
    "é" * 300,
    "x" * 70_000,
    "../../etc/passwd",
    "NaN",
    "1e999",
    "-0",
    "007",
    "true",
    "None",
    "[]",
    "=1+1",
    "|",
    "a|b",
    "classifier.weight",
    "%s{0}",
    "LABEL_0",
    "名前",
    "\U0001f600",
)
_MOST_ITEMS = 400  # of a list that is repeated; lists of repeated lists would fill the memory
_DTYPES = ("F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X", "f32", "")


def hostile_value(rng: Random) -> Any:
    """Return a JSON value that a field is unlikely to expect."""
    kind = rng.randrange(9)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind == 1:
        return rng.choice(_EDGES) * rng.choice((1, -1))
    if kind == 2:
        return rng.choice((float("nan"), float("inf"), 1e308, -0.0, 1e-320, 0.5, 10**400))
    if kind == 3:
        return rng.choice(([], {}, [[]], [None], {"": None}, [1, "a"], {"type": "Pooling"}))
    if kind == 4:
        return _nested(rng.choice((5, 50, 200)))
    if kind == 5:
        return [rng.choice(_TEXTS) for _ in range(rng.choice((2, 3, 300)))]
    return rng.choice(_TEXTS)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def mutate_value(value: Any, rng: Random) -> Any:
    """Return a JSON value with one place replaced, removed, repeated or added."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.15:
        return hostile_value(rng)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    action = rng.randrange(8)
    if action == 0:
        del changed[key]
    elif action == 1 and isinstance(changed, dict):
        changed[rng.choice((*_TEXTS, *map(str, keys))) + rng.choice(("", "_"))] = changed[key]
    elif action == 1:
        changed = (changed * rng.choice((2, 3, 200)))[:_MOST_ITEMS]
    elif action == 2:
        changed[key] = changed[rng.choice(keys)]
    else:
        changed[key] = mutate_value(changed[key], rng)
    return changed


def mutate_text(text: str, rng: Random) -> str:
    """Return a JSON text with a key that occurs twice, a deep list, or another value."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text[: rng.randrange(len(text) + 1)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = mutate_value(value, rng)
    changed = json.dumps(value)
    if rng.random() < 0.1:
        depth = rng.choice((500, 5_000, 100_000))
        changed = changed.replace("null", "[" * depth + "]" * depth, 1)
    if rng.random() < 0.1 and isinstance(value, dict) and value:
        key = json.dumps(rng.choice(list(value)))
        changed = changed.replace(f"{key}:", f"{key}: 0, {key}:", 1)
    return changed


def mutate_json(data: bytes, rng: Random) -> bytes:
    """Mutate a JSON file, and sometimes its bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(data, rng)
    text = data.decode(errors="replace")
    return mutate_text(text, rng).encode("utf-8", "surrogatepass")


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Cut, repeat, flip or insert bytes."""
    if not data:
        return rng.randbytes(rng.randrange(40))
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((0, 1, 2, 8, 100)))
    action = rng.randrange(5)
    if action == 0:
        return data[:start]
    if action == 1:
        return data[:stop] + data[start:]
    if action == 2:
        return data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :]
    if action == 3:
        return data[:start] + rng.randbytes(rng.choice((1, 4, 16))) + data[stop:]
    return data[:start] + data[stop:]


def mutate_safetensors(data: bytes, rng: Random) -> bytes:
    """Mutate the length, the header or the data of a safetensors file."""
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header, rest = data[_LENGTH_BYTES : _LENGTH_BYTES + length], data[_LENGTH_BYTES + length :]
    action = rng.randrange(6)
    if action == 0:
        claimed = (length + rng.choice(_EDGES)) % 2**64
        return struct.pack("<Q", claimed) + header + rest
    if action == 1:
        return mutate_bytes(data, rng)
    if action == 2:
        return with_header(mutate_text(header.decode(errors="replace"), rng), rest)
    try:
        described = dict(json.loads(header))
        name = rng.choice([key for key in described if key != "__metadata__"])
        info = dict(described[name])
    except (ValueError, RecursionError, IndexError, TypeError):
        return mutate_bytes(data, rng)
    if action == 3:
        info["dtype"] = rng.choice(_DTYPES)
    elif action == 4:
        info["shape"] = [rng.choice(_EDGES) for _ in range(rng.randrange(4))]
    else:
        start, end = rng.choice(_EDGES), rng.choice(_EDGES)
        shape = info.get("shape", [])  # an earlier mutation may have renamed it
        info["data_offsets"] = rng.choice(([start, end], [end], [0, len(rest)], shape))
    return with_header(json.dumps(described | {name: info}, separators=(",", ":")), rest)


def with_header(header: str, rest: bytes) -> bytes:
    """Return a safetensors file with this header, padded as the library does."""
    content = header.encode("utf-8", "surrogatepass")
    content += b" " * (-len(content) % _LENGTH_BYTES)
    return struct.pack("<Q", len(content)) + content + rest


def sign(manifest: str, tensors: dict[str, Tensor]) -> bytes:
    """Return a delta file whose version and digest fit its manifest and tensors."""
    version = "0" * 16
    with suppress(ValueError, RecursionError):
        text = _versioned_text(Manifest.model_validate_json(manifest))
        version = content_digest(text, tensors)[:16]
    digest = content_digest(_plain(manifest) + version, tensors)
    facts = {"deltabert": manifest, "version": version, "digest": digest, "format": "pt"}
    plain = {key: _plain(value) for key, value in facts.items()}
    content = save(tensors, metadata=plain)
    length = int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + length])
    header["__metadata__"] = plain  # the library writes it in an order of its own each time
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return with_header(text, content[_LENGTH_BYTES + length :])


def _plain(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def mutate_delta(data: bytes, rng: Random) -> bytes:
    """Mutate the file, or the manifest or a tensor of a delta, which is signed again."""
    if rng.random() < 0.3:
        return mutate_safetensors(data, rng)
    try:
        tensors = load(data)
        length = int.from_bytes(data[:_LENGTH_BYTES], "little")
        header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
        text = header["__metadata__"]["deltabert"]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError, RuntimeError):
        return mutate_safetensors(data, rng)
    if rng.random() < 0.6 or not tensors:
        text = mutate_text(text, rng)
    else:
        tensors = mutate_tensors(tensors, rng)
    try:
        return sign(text, tensors)
    except (SafetensorError, ValueError, TypeError, RuntimeError):
        return mutate_safetensors(data, rng)


def mutate_tensors(tensors: dict[str, Tensor], rng: Random) -> dict[str, Tensor]:
    """Return the tensors with one of another value, dtype, shape or name."""
    name = rng.choice(sorted(tensors))
    tensor, others = tensors[name], {key: value for key, value in tensors.items() if key != name}
    action = rng.randrange(7)
    if action == 0 and tensor.numel():
        changed = tensor.clone().reshape(-1)
        values = (float("nan"), float("inf"), -0.0, 3e38) if changed.is_floating_point() else (-1,)
        changed[rng.randrange(len(changed))] = rng.choice(values)
        return others | {name: changed.reshape(tensor.shape)}
    if action == 1:
        dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
        return others | {name: tensor.to(rng.choice(dtypes))}
    if action == 2:
        return others | {name: tensor.reshape(rng.choice(((-1,), (1, -1), (-1, 1))))}
    if action == 3:
        return others | {
            name: torch.cat([tensor.reshape(-1)] * rng.choice((0, 2)) or [tensor.reshape(-1)[:0]])
        }
    if action == 4:
        return others
    if action == 5:
        return tensors | {rng.choice((f"{name}x", f"{name}:indices", "", *_TEXTS[7:9])): tensor}
    return others | {name: tensor.flip(0) if tensor.ndim else tensor}


def mutate_rows(tokens: Sequence[str]) -> Mutation:
    """Return a mutation of text files that inserts, repeats or removes these tokens of a format."""

    def mutate(data: bytes, rng: Random) -> bytes:
        if rng.random() < 0.2:
            return mutate_bytes(data, rng)
        if rng.random() < 0.08:
            encodings = ("utf-16", "utf-32", "utf-8-sig", "cp1252", "utf-16-le")
            return data.decode(errors="replace").encode(rng.choice(encodings), "replace")
        text = data.decode(errors="surrogateescape")
        for _ in range(rng.choice((1, 1, 2, 5))):
            start = rng.randrange(len(text) + 1)
            stop = start + rng.choice((0, 0, 1, 3, 20))
            token = rng.choice((*tokens, *_TEXTS)) * rng.choice((1, 1, 1, 2, 200))
            text = text[:start] + token[:200_000] + text[stop:]
        return text.encode("utf-8", "surrogatepass" if rng.random() < 0.5 else "replace")

    return mutate
