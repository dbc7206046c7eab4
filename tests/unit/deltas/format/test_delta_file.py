"""Reading a delta file: defects and their messages. Writing: `test_atomic_write.py`.

`craft` writes files from the format's description in `deltas.format`, with right digests, so that
each case below has exactly one defect and every check has to stand on its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltas import (
    Backbone,
    Delta,
    DeltaFormatError,
    DeltaMismatchError,
    TaskSpec,
    check_delta,
    make_backbone,
    read_delta,
    read_manifest,
    write_delta,
)
from deltas.backbone.packaged import PACKAGED
from deltas.format import check_backbone

Facts = dict[str, Any]
Tensors = dict[str, Tensor]
Change = Callable[[Facts, Tensors], None]
DENSE = "bert.pooler.dense.bias"
SPARSE = "bert.embeddings.word_embeddings.weight"
STRATEGY = f"random:0.01+params:{DENSE}"


@pytest.fixture(scope="module")
def delta(tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any) -> Delta:
    """Dense and sparse entries and a head of three outputs."""
    made: Delta = make_delta(tiny_backbone, toy_tasks["toy3"], STRATEGY)
    kinds = {info.name: info.kind for info in made.manifest.entries}
    assert kinds[DENSE] == "dense"
    assert kinds[SPARSE] == "sparse"
    return made


@pytest.fixture(scope="module")
def good(delta: Delta, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the delta's file; tests only read it."""
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    write_delta(delta, path)
    return path


@pytest.fixture(scope="module")
def small(
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    make_delta: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A file of a few kilobytes with an entry of each kind. Read only."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    strategy = f"random:0.0001+params:{DENSE}"
    made = write_delta(make_delta(tiny_backbone, toy_tasks["toy2"], strategy), path)
    assert {info.kind for info in made.manifest.entries} == {"dense", "sparse"}
    return path


def digest(text: str, tensors: Tensors) -> str:
    """Compute the format's digest independently of the product."""
    hasher = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        hasher.update(f"\n{name} {value.dtype} {list(value.shape)}\n".encode())
        hasher.update(value.numpy().tobytes())
    return hasher.hexdigest()


def craft(path: Path, facts: Facts, tensors: Tensors, text: str | None = None) -> Path:
    """Write a file whose digests are right, whatever else is wrong with it."""
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False) if text is None else text
    lasting = {key: facts[key] for key in facts if key not in ("training", "metrics")}
    if isinstance(lasting.get("backbone"), dict):
        later = ("config", "tokenizer_settings")
        known = {key: lasting["backbone"][key] for key in lasting["backbone"] if key not in later}
        lasting["backbone"] = known
    lasting_text = json.dumps(lasting, separators=(",", ":"), ensure_ascii=False)
    version = digest(lasting_text, tensors)[:16]
    header = {"deltabert": text, "version": version, "digest": digest(text + version, tensors)}
    save_file(tensors, path, metadata=header)
    return path


def opened(good: Path) -> tuple[Facts, Tensors]:
    """Return manifest and tensors of the good file, for a test to damage."""
    manifest, _ = read_manifest(good)
    return json.loads(manifest.model_dump_json()), load_file(good)


def same(first: Delta, second: Delta) -> bool:
    """Assert that manifest, values and head are equal bit for bit."""
    return (
        first.version == second.version
        and first.manifest == second.manifest
        and list(first.entries) == list(second.entries)
        and torch.equal(first.head_weight, second.head_weight)
        and torch.equal(first.head_bias, second.head_bias)
        and all(
            type(second.entries[name]) is type(entry)
            and torch.equal(second.entries[name].values, entry.values)
            and torch.equal(
                getattr(second.entries[name], "indices", torch.empty(0)),
                getattr(entry, "indices", torch.empty(0)),
            )
            for name, entry in first.entries.items()
        )
    )


def test_a_delta_is_read_as_it_was_written(delta: Delta, good: Path) -> None:
    read = read_delta(good)
    assert same(Delta(**(vars(delta) | {"version": read.version})), read)
    assert re.fullmatch(r"[0-9a-f]{16}", read.version)
    assert read.num_bytes == good.stat().st_size
    assert read_manifest(good) == (delta.manifest, read.version)


def test_the_file_is_as_described(good: Path, tmp_path: Path) -> None:
    """A file made from the description alone is read, and gets the same version."""
    again = read_delta(craft(tmp_path / "again.safetensors", *opened(good)))
    assert same(again, read_delta(good))


def test_indices_are_stored_as_narrow_as_they_can_be(good: Path) -> None:
    assert load_file(good)[f"{SPARSE}:indices"].dtype == torch.int32


def test_time_and_place_do_not_change_the_version(delta: Delta, tmp_path: Path) -> None:
    training = delta.manifest.training.model_copy(update={"duration_s": 9.0, "command": "other"})
    manifest = delta.manifest.model_copy(update={"training": training})
    later = Delta(**(vars(delta) | {"manifest": manifest}))
    first = write_delta(delta, tmp_path / "a.safetensors")
    assert write_delta(later, tmp_path / "b.safetensors").version == first.version


@pytest.mark.parametrize("what", ["seed", "label", "value", "index"])
def test_other_values_change_the_version(good: Path, tmp_path: Path, what: str) -> None:
    facts, tensors = opened(good)
    if what == "seed":
        facts["strategy"]["seed"] += 1
    elif what == "label":
        facts["task"]["labels"][:2] = facts["task"]["labels"][1::-1]
    elif what == "value":
        tensors["classifier.bias"][0] += 1e-6
    else:
        tensors[f"{SPARSE}:indices"][-1] += 1
    changed = read_delta(craft(tmp_path / "x.safetensors", facts, tensors))
    assert changed.version != read_delta(good).version


def _set(*path: str | int, to: object) -> Change:
    def change(facts: Facts, tensors: Tensors) -> None:
        del tensors
        part: Any = facts
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = to

    return change


def _tensor(name: str, change: Callable[[Tensor], Tensor | None]) -> Change:
    def apply(facts: Facts, tensors: Tensors) -> None:
        del facts
        changed = change(tensors[name])
        if changed is not None:
            tensors[name] = changed

    return apply


def _fill(position: int, value: float) -> Callable[[Tensor], None]:
    def fill(tensor: Tensor) -> None:
        tensor.view(-1)[position] = value

    return fill


def _entry(name: str, **changes: object) -> Change:
    def change(facts: Facts, tensors: Tensors) -> None:
        del tensors
        next(entry for entry in facts["entries"] if entry["name"] == name).update(changes)

    return change


def _repeat(**changes: object) -> Change:
    def change(facts: Facts, tensors: Tensors) -> None:
        del tensors
        facts["entries"].append(facts["entries"][-1] | changes)
        facts["trainable_parameters"] += facts["entries"][-1]["count"]

    return change


def _add(key: str, value: object) -> Change:
    return lambda facts, tensors: facts.update({key: value})


def _drop(key: str) -> Change:
    return lambda facts, tensors: (facts.pop(key, None), tensors.pop(key, None), None)[-1]


def _wrap(indices: Tensor) -> Tensor:
    """Each difference of int32 is positive once it has overflowed."""
    wrapped = indices.clone()
    wrapped[1:4] = torch.tensor([2**31 - 1, -(2**31), -1], dtype=indices.dtype)
    return wrapped


INDICES, VALUES = f"{SPARSE}:indices", f"{SPARSE}:values"
DEFECTS: dict[str, tuple[Change, str]] = {
    "NaN in a dense entry": (
        _tensor(DENSE, _fill(3, float("nan"))),
        f"{DENSE} has 1 values that are NaN",
    ),
    "infinity in a sparse entry": (_tensor(VALUES, _fill(0, float("inf"))), "NaN or infinite"),
    "minus infinity in the head": (
        _tensor("classifier.weight", _fill(5, -float("inf"))),
        "classifier.weight has 1 values",
    ),
    "half precision values": (
        _tensor(VALUES, Tensor.half),
        "dtype torch.float16, expected torch.float32",
    ),
    "double precision head": (_tensor("classifier.bias", Tensor.double), "dtype torch.float64"),
    "float indices": (
        _tensor(INDICES, Tensor.float),
        "dtype torch.float32, expected int32 or int64",
    ),
    "indices whose differences overflow": (
        _tensor(INDICES, _wrap),
        "must increase strictly",
    ),
    "short indices": (_tensor(INDICES, Tensor.short), "dtype torch.int16"),
    "indices not in order": (_tensor(INDICES, lambda t: t.flip(0)), "must increase strictly"),
    "an index twice": (
        _tensor(INDICES, lambda t: _fill(1, float(t[0]))(t)),
        "must increase strictly",
    ),
    "a negative index": (_tensor(INDICES, _fill(0, -1)), r"within 0\.\.3635"),
    "an index too large": (_tensor(INDICES, _fill(-1, 101 * 36)), r"within 0\.\.3635"),
    "an index missing": (
        _tensor(INDICES, lambda t: t[:-1].clone()),
        "indices and .* the manifest says",
    ),
    "a value missing": (_tensor(VALUES, lambda t: t[:-1].clone()), "the manifest says"),
    "a matrix of indices": (_tensor(INDICES, lambda t: t[:, None].clone()), "the manifest says"),
    "dense entry of another shape": (
        _tensor(DENSE, lambda t: t[:-1].clone()),
        r"has shape \(35,\), the manifest says \(36,\)",
    ),
    "a label missing": (_set("task", "labels", to=["yes", "no"]), "has 2 outputs"),
    "all labels but one missing": (_set("task", "labels", to=["yes"]), "can't have 1 labels"),
    "a label too many": (_set("task", "labels", to=["yes", "maybe", "no", "x"]), "has 4 outputs"),
    "a label twice": (_set("task", "labels", to=["yes", "no", "no"]), "not distinct"),
    "an empty label": (_set("task", "labels", to=["yes", "", "no"]), "labels.1"),
    "three text fields": (_set("task", "text_fields", to=["a", "b", "c"]), "text_fields"),
    "head bias of another width": (
        _tensor("classifier.bias", lambda t: t[:2].clone()),
        "head of shape",
    ),
    "head as a vector": (_tensor("classifier.weight", lambda t: t[0].clone()), "head of shape"),
    "no head": (_drop("classifier.weight"), "missing: classifier.weight"),
    "a dense entry missing": (_drop(DENSE), f"missing: {DENSE}"),
    "sparse values missing": (_drop(VALUES), f"missing: {VALUES}"),
    "a tensor too many": (
        lambda facts, tensors: tensors.update({"bert.extra": torch.ones(2)}),
        "doesn't name: bert.extra",
    ),
    "too many trained parameters": (_set("trainable_parameters", to=10**6), "were trained"),
    "too few trained parameters": (_set("trainable_parameters", to=5), "were trained"),
    "fewer in total than trained": (_set("total_parameters", to=10), "total|trained"),
    "negative counts": (_set("total_parameters", to=-1), "total"),
    "a format of the future": (
        _set("format_version", to=2),
        r"format version 2 is not supported; this deltabert reads version 1",
    ),
    "a format version as text": (
        _set("format_version", to="1"),
        "format version '1' is not supported",
    ),
    "no format version": (_drop("format_version"), "format version None"),
    "a field too many": (_add("surprise", 1), "surprise: Extra inputs are not permitted"),
    "a field missing": (_drop("task"), "task: Field required"),
    "heads that don't divide the width": (
        _set("backbone", "config", "num_heads", to=5),
        "backbone.config: Value error, 5 heads",
    ),
    "layers without end": (
        _set("backbone", "config", "num_layers", to=10**9),
        "backbone.config.num_layers",
    ),
    "a line break in a strategy's name": (_set("strategy", "name", to="a\nb"), "strategy.name"),
    "an escape in a strategy's name": (_set("strategy", "name", to="a\x1b[2J"), "strategy.name"),
    "a formula as strategy": (_set("strategy", "name", to="=1+1"), "strategy.name"),
    "markup in a strategy's name": (_set("strategy", "name", to="a<img src=x>"), "strategy.name"),
    "another script in a strategy's name": (_set("strategy", "name", to="b\u0456tfit"), "strategy"),
    "a path as task name": (_set("task", "name", to="../../etc"), "task.name"),
    "a task name with NUL": (_set("task", "name", to="a\0b"), "task.name"),
    "an unknown kind": (_set("task", "kind", to="ranking"), "task.kind"),
    "an entry twice": (_repeat(), "more than once|twice|repeated"),
    "an entry both ways": (
        _repeat(kind="dense", shape=[36]),
        "missing|more than once|twice|repeated",
    ),
    "the head as an entry": (
        lambda facts, tensors: facts["entries"].append(
            {"name": "classifier.bias", "kind": "dense", "shape": [3], "count": 3}
        ),
        "classifier.bias|were trained",
    ),
    "a count that lies": (_entry(DENSE, count=7), "can't hold 7"),
    "a line break in a name": (
        lambda facts, tensors: tensors.update({"x\n2026 INFO serving 99 deltas": torch.ones(2)}),
        r"doesn't name: x\\n2026 INFO",
    ),
    "a name that is no parameter's": (
        lambda facts, tensors: facts["entries"].append(
            {"name": "a\nb", "kind": "dense", "shape": [3], "count": 3}
        ),
        r"entries\.\d+\.name",
    ),
    "counts beyond all bounds": (_set("total_parameters", to=10**4000), "total_parameters"),
    "a negative shape": (_entry(SPARSE, shape=[-101, 36]), "shape|within"),
    "a shape that overflows": (_entry(SPARSE, shape=[2**62, 2**62]), "shape|within"),
    "a shape beyond 64 bits": (_entry(SPARSE, shape=[2**70, 36]), "shape|within"),
    "a shape without end": (_entry(SPARSE, shape=[0]), "shape|within"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_one_defect_is_enough(good: Path, tmp_path: Path, defect: str) -> None:
    change, reason = DEFECTS[defect]
    facts, tensors = opened(good)
    change(facts, tensors)
    path = craft(tmp_path / "bad.safetensors", facts, tensors)
    with pytest.raises(DeltaFormatError, match=reason) as caught:
        read_delta(path)
    assert caught.value.path == path
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "1",
        "{",
        "[" * 200_000,
        '{"format_version":1,"a":' * 20_000,
        '"\\ud800"',
        "9" * 5000,
    ],
    ids=[
        "empty",
        "list",
        "null",
        "number",
        "open",
        "deep list",
        "deep object",
        "surrogate",
        "digits",
    ],
)
def test_an_invalid_manifest_is_refused(good: Path, tmp_path: Path, text: str) -> None:
    path = craft(tmp_path / "bad.safetensors", *opened(good), text=text)
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError):
            read(path)


def test_metrics_are_finite(good: Path, tmp_path: Path) -> None:
    facts, tensors = opened(good)
    text = json.dumps(facts).replace("0.25", "NaN")
    with pytest.raises(DeltaFormatError, match="metrics"):
        read_delta(craft(tmp_path / "bad.safetensors", facts, tensors, text=text))


@pytest.mark.parametrize("lost", ["deltabert", "version", "digest"])
def test_header_needs_its_keys(tmp_path: Path, lost: str) -> None:
    header = {"deltabert": "{}", "version": "0" * 16, "digest": "0" * 64}
    del header[lost]
    path = tmp_path / "bad.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata=header)
    with pytest.raises(DeltaFormatError, match=f"no delta: the header lacks {lost}"):
        read_delta(path)


def test_other_safetensors_are_no_deltas(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DeltaFormatError, match="lacks deltabert and version and digest"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**8 + 1) + b"{}",
        struct.pack("<Q", 10**6) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 3) + b"\xff\xfe\xfd",
        pickle.dumps({"classifier.weight": [1.0]}),
        b"PK\x03\x04" + bytes(100),
        random.Random(3).randbytes(5000),
    ],
    ids=range(12),
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError):
            read(path)


def respelled(content: bytes, old: str, new: str) -> bytes:
    """Replace a part of a file's header; the tensors stay as they are."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode()
    assert header.count(old) >= 1
    header = header.replace(old, new, 1).rstrip(" ")
    header += " " * (-len(header.encode()) % 8)
    return struct.pack("<Q", len(header.encode())) + header.encode() + content[8 + length :]


VARIANTS: dict[str, tuple[str, str, str]] = {
    "metadata of others": ('"format":"pt"', '"format":"pt","author":"x"', "of no delta: author"),
    "another format": ('"format":"pt"', '"format":"tf"', "format is not 'pt'"),
    "a version twice": ('"version":', '"version":"0","version":', "more than once: version"),
    "a digest twice": ('"digest":', '"digest":"0","digest":', "more than once: digest"),
    "metadata twice": ('{"__metadata__":', '{"__metadata__":{},"__metadata__":', "than once|dupli"),
    "a tensor twice": (
        '"classifier.bias":',
        '"classifier.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"classifier.bias":',
        "more than once: classifier.bias|Invalid|invalid",
    ),
    "a field of a tensor twice": ('"dtype":', '"dtype":"F32","dtype":', "than once|duplicate"),
    "a field more of a tensor": ('"dtype":', '"note":"x","dtype":', "header says note of|unknown"),
    "a space": ('"format":"pt"', '"format": "pt"', "padded, or spelled in another way"),
    "a line break": ('{"__metadata__"', '{\n"__metadata__"', "padded, or spelled in another way"),
    "a letter as its number": ('"format"', '"f\\u006frmat"', "padded, or spelled in another way"),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_that_no_digest_covers_are_refused(
    small: Path, tmp_path: Path, variant: str
) -> None:
    """Two files of one version are the same file, but for the order of its parts."""
    old, new, reason = VARIANTS[variant]
    path = tmp_path / "variant.safetensors"
    path.write_bytes(respelled(small.read_bytes(), old, old))
    assert same(read_delta(path), read_delta(small))
    path.write_bytes(respelled(small.read_bytes(), old, new))
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError, match=reason):
            read(path)


def test_spaces_beyond_the_alignment_are_refused(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    length = int.from_bytes(content[:8], "little")
    path = tmp_path / "padded.safetensors"
    padded = content[8 : 8 + length] + b" " * 8
    path.write_bytes(struct.pack("<Q", length + 8) + padded + content[8 + length :])
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError, match="padded"):
            read(path)


@pytest.mark.parametrize("moved", [4, -4])
def test_gaps_and_overlaps_of_tensors_are_refused(small: Path, tmp_path: Path, moved: int) -> None:
    """A gap holds bytes that no digest covers."""
    content = small.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = sorted(set(header) - {"__metadata__"}, key=lambda name: header[name]["data_offsets"])
    for name in names[1:]:
        header[name]["data_offsets"] = [end + moved for end in header[name]["data_offsets"]]
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    values = content[8 + length :]
    first_end = header[names[0]]["data_offsets"][1]
    values = values[:first_end] + bytes(max(moved, 0)) + values[first_end:]
    path = tmp_path / "gap.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + values[: len(values) + min(moved, 0)])
    for read in (read_delta, read_manifest):
        with pytest.raises(
            DeltaFormatError, match=r"not a readable safetensors file \(.*[Oo]ffset"
        ):
            read(path)


def test_a_key_twice_in_the_manifest_is_refused(good: Path, tmp_path: Path) -> None:
    """Readers differ in which of the two counts."""
    facts, tensors = opened(good)
    text = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
    text = text.replace('"kind":', '"kind":"regression","kind":', 1)
    path = craft(tmp_path / "twice.safetensors", facts, tensors, text)
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError, match=r"manifest is .*named more than once: kind"):
            read(path)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    """A renamed pickle is refused as unreadable, one under its usual name without being opened."""
    witness = tmp_path / "witness"
    bomb = b"cos\nsystem\n(S'touch " + str(witness).encode() + b"'\ntR."
    for name, reason in (
        ("a.safetensors", "not a readable"),
        ("a.pt", "never opened"),
        ("a.bin", "never"),
    ):
        path = tmp_path / name
        path.write_bytes(bomb)
        with pytest.raises(DeltaFormatError, match=reason):
            read_delta(path)
    assert not witness.exists()


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(DeltaFormatError, match="no such file"):
        read_delta(tmp_path / "none.safetensors")
    with pytest.raises(DeltaFormatError):
        read_delta(tmp_path / "folder.safetensors")


def test_reasons_name_no_folder(tmp_path: Path) -> None:
    """Clients read them; a link to itself is an error of the system whose text has the path."""
    path = tmp_path / "loop.safetensors"
    path.symlink_to(path)
    for read in (read_delta, read_manifest):
        with pytest.raises(DeltaFormatError) as caught:
            read(path)
        assert str(tmp_path) not in caught.value.reason
        assert str(path) in str(caught.value)


def test_any_flipped_byte_is_noticed(small: Path, tmp_path: Path) -> None:
    """Each byte is flipped in turn: the file is refused, or a header byte is unused."""
    original, content = read_delta(small), small.read_bytes()
    path = Path(shutil.copy(small, tmp_path / "flipped.safetensors"))
    draw = random.Random(1)
    refused = 0
    with path.open("r+b") as file:  # changed in place: emptying it each time would be slow
        for position, byte in enumerate(content):
            os.pwrite(file.fileno(), bytes([byte ^ draw.randrange(1, 256)]), position)
            try:
                assert same(read_delta(path), original), position
            except DeltaFormatError:
                refused += 1
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert path.read_bytes() == content
    assert refused > 0.99 * len(content)


def test_any_truncation_is_noticed(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    path = Path(shutil.copy(small, tmp_path / "short.safetensors"))
    for length in [len(content) - 1, *reversed(range(0, len(content), 5))]:
        os.truncate(path, length)
        with pytest.raises(DeltaFormatError):
            read_delta(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(DeltaFormatError):
        read_delta(path)


def test_values_are_read_not_mapped(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGBUS would end the process if a memory-mapped file were truncated."""
    expected = read_delta(good)

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("mapped")

    monkeypatch.setattr("mmap.mmap", refuse)
    monkeypatch.setattr("safetensors.safe_open", refuse)
    assert same(read_delta(good), expected)


def test_unknown_dtypes_are_refused(good: Path, tmp_path: Path) -> None:
    """Safetensors knows dtypes that PyTorch does not."""
    for name in ("F4", "F6_E2M3", "F8_E8M0", "X1"):
        path = tmp_path / "bad.safetensors"
        content = json.dumps({"a": {"dtype": name, "shape": [8, 8], "data_offsets": [0, 64]}})
        path.write_bytes(struct.pack("<Q", len(content)) + content.encode() + bytes(64))
        with pytest.raises(DeltaFormatError, match="not a readable"):
            read_delta(path)


def test_values_do_not_follow_the_file(good: Path, tmp_path: Path) -> None:
    """The checked values are used, even if the file is overwritten in place afterwards."""
    path = shutil.copy(good, tmp_path / "mine.safetensors")
    read, kept = read_delta(path), read_delta(good)  # type: ignore[arg-type]
    with path.open("r+b") as file:  # type: ignore[union-attr]
        file.seek(path.stat().st_size - 4000)  # type: ignore[union-attr]
        file.write(b"\1" * 4000)
    assert same(read, kept)


def test_wrong_backbone_is_refused_with_both_fingerprints(
    tiny_backbone: Backbone, good: Path
) -> None:
    """A backbone that differs in one bit of one weight is another backbone."""
    parameters = {name: value.clone() for name, value in tiny_backbone.parameters.items()}
    parameters[SPARSE].view(-1)[1234] *= 1 + 2**-23
    other = make_backbone(
        tiny_backbone.config, parameters, tiny_backbone.tokenizer, tiny_backbone.ref.id
    )
    assert other.ref.fingerprint != tiny_backbone.ref.fingerprint
    check_delta(read_delta(good), tiny_backbone)
    with pytest.raises(DeltaMismatchError, match="backbone fingerprint") as caught:
        check_delta(read_delta(good), other)
    assert other.ref.fingerprint in str(caught.value)
    assert tiny_backbone.ref.fingerprint in str(caught.value)


STEERING: dict[str, dict[str, Any]] = {
    "num_attention_heads": {"num_heads": 6},
    "hidden_act": {"activation": "gelu_new"},
    "layer_norm_eps": {"layer_norm_eps": 1e-5},
}


@pytest.mark.parametrize("field", STEERING)
def test_another_computation_is_another_backbone(
    tiny_backbone: Backbone, good: Path, field: str
) -> None:
    """Six heads instead of twelve have the same weights, and give other answers."""
    parameters = dict(tiny_backbone.parameters)
    config = replace(tiny_backbone.config, **STEERING[field])
    other = make_backbone(config, parameters, tiny_backbone.tokenizer, "x")
    assert other.ref.fingerprint == tiny_backbone.ref.fingerprint
    with pytest.raises(DeltaMismatchError, match=f"^{field} of the backbone's config.json"):
        check_delta(read_delta(good), other)


def test_another_setting_of_the_tokenizer_is_another_backbone(
    tiny_backbone: Backbone, good: Path
) -> None:
    other = tiny_backbone.ref.model_copy(update={"tokenizer_settings": "sha256:0"})
    with pytest.raises(DeltaMismatchError, match="tokenizer settings does not match"):
        check_backbone(read_manifest(good)[0], other)


@pytest.mark.parametrize("field", [*STEERING, "tokenizer settings"])
def test_what_older_deltas_of_the_packaged_backbone_mean_is_known(field: str, good: Path) -> None:
    """Their manifest has no settings; those of the packaged backbone never change."""
    old = PACKAGED.model_copy(update={"config": None, "tokenizer_settings": None})
    manifest = read_manifest(good)[0].model_copy(update={"backbone": old})
    check_backbone(manifest, PACKAGED)
    assert PACKAGED.config is not None
    changed: dict[str, Any] = {"tokenizer_settings": "sha256:0"}
    if field in STEERING:
        changed = {"config": replace(PACKAGED.config, **STEERING[field])}
    with pytest.raises(DeltaMismatchError, match=field):
        check_backbone(manifest, PACKAGED.model_copy(update=changed))


def test_settings_are_written_and_no_version_covers_them(delta: Delta, tmp_path: Path) -> None:
    """A version names the same values as in the release before the settings were written."""
    ref = delta.manifest.backbone
    assert ref.config is not None
    assert ref.tokenizer_settings is not None
    old = ref.model_copy(update={"config": None, "tokenizer_settings": None})
    manifest = delta.manifest.model_copy(update={"backbone": old})
    written = write_delta(replace(delta, manifest=manifest), tmp_path / "old.safetensors")
    assert written.version == write_delta(delta, tmp_path / "new.safetensors").version
    assert read_delta(tmp_path / "old.safetensors").manifest.backbone == old
    assert read_delta(tmp_path / "new.safetensors").manifest.backbone == ref


@pytest.mark.parametrize("defect", ["name", "shape", "head", "length", "total"])
def test_delta_must_fit_the_backbone(
    tiny_backbone: Backbone, good: Path, tmp_path: Path, defect: str
) -> None:
    """A forged file has the right fingerprints and the wrong shapes."""
    facts, tensors = opened(good)
    if defect == "name":
        facts["entries"][-1]["name"] = "bert.pooler.dense.other"
        tensors["bert.pooler.dense.other"] = tensors.pop(DENSE)
    elif defect == "shape":
        _entry(SPARSE, shape=[36, 101])(facts, tensors)
    elif defect == "head":
        tensors["classifier.weight"] = torch.ones(3, 35)
        facts["trainable_parameters"] -= 3
    elif defect == "length":
        facts["task"]["max_length"] = 65
    else:
        facts["total_parameters"] += 1
    delta = read_delta(craft(tmp_path / "bad.safetensors", facts, tensors))
    with pytest.raises(DeltaMismatchError):
        check_delta(delta, tiny_backbone)
