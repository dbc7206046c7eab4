"""Laws for any delta: reading returns the written values, and replacing values is exact."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deltas import (
    BackboneRef,
    Delta,
    DeltaFormatError,
    DenseEntry,
    Entry,
    Manifest,
    SparseEntry,
    SplitMetrics,
    StrategySpec,
    TaskSpec,
    TrainingFacts,
    read_delta,
    read_manifest,
    write_delta,
)
from tests.laws import law

pytestmark = pytest.mark.law

LAW = law(40)

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
names = st.from_regex(r"bert\.[a-z]{1,6}\.[0-9]{1,2}\.(weight|bias)", fullmatch=True)
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)  # type: ignore[arg-type]


@st.composite
def tensors(draw: st.DrawFn, shape: tuple[int, ...]) -> Tensor:
    """Any finite float32 values, subnormal and negative zero among them."""
    size = prod(shape)
    return torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size))).reshape(shape)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """A small dense or sparse entry."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    if draw(st.booleans()):
        return DenseEntry(draw(tensors(shape)))
    chosen = draw(st.sets(st.integers(0, prod(shape) - 1), min_size=1, max_size=prod(shape)))
    indices = torch.tensor(sorted(chosen))
    return SparseEntry(indices, draw(tensors((len(chosen),))), shape)


strategies = st.from_regex(r"[A-Za-z0-9][!#-&(-;=?-_a-~]{0,40}", fullmatch=True)


@st.composite
def tasks(draw: st.DrawFn) -> TaskSpec:
    """Any task."""
    kind = draw(st.sampled_from(["single_label", "multi_label", "regression"]))
    fewest = {"single_label": 2, "multi_label": 1, "regression": 0}[kind]
    most = 0 if kind == "regression" else 5
    return TaskSpec(
        name=draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}", fullmatch=True)),
        kind=kind,
        labels=tuple(draw(st.lists(texts, min_size=fewest, max_size=most, unique=True))),
        text_fields=tuple(draw(st.lists(texts, min_size=1, max_size=2, unique=True))),
        max_length=draw(st.integers(4, 512)),
    )


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    """Any delta: kinds, shapes, names, texts and numbers."""
    task = draw(tasks())
    held = draw(st.dictionaries(names, entries(), max_size=4))
    width = draw(st.integers(1, 5))
    weight, bias = draw(tensors((task.num_outputs, width))), draw(tensors((task.num_outputs,)))
    infos = tuple(entry.info(name) for name, entry in held.items())
    trained = sum(info.count for info in infos) + weight.numel() + bias.numel()
    metric = draw(st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False)))
    manifest = Manifest(
        backbone=BackboneRef(
            id=draw(texts),
            revision=draw(st.none() | texts),
            fingerprint="sha256:1",
            tokenizer_fingerprint="sha256:2",
        ),
        task=task,
        strategy=StrategySpec(name=draw(strategies), seed=draw(st.integers(0, 2**40))),
        entries=infos,
        trainable_parameters=trained,
        total_parameters=trained + draw(st.integers(0, 2**40)),
        training=TrainingFacts(
            data="files",
            data_digest="0",
            data_note=draw(texts),
            train_rows=1,
            selection_rows=1,
            epochs=draw(st.floats(0, 100)),
            steps=1,
            batch_size=1,
            learning_rate=draw(st.floats(1e-9, 1)),
            precision="fp32",
            seed=0,
            duration_s=0.0,
            device="cpu",
            versions=draw(st.dictionaries(texts, texts, max_size=2)),
            command=draw(texts),
        ),
        primary_metric="accuracy",
        metrics={"selection": SplitMetrics(rows=1, values=metric, note=draw(texts))},
    )
    return Delta(manifest, held, weight, bias)


def bits(value: Tensor) -> Tensor:
    """Return the bits of the values, in which 0.0 and -0.0 differ."""
    return value.contiguous().view(torch.int32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file, written again and again."""
    return tmp_path_factory.mktemp("law") / "any.safetensors"


@LAW
@given(deltas())
def test_a_delta_is_read_as_it_was_written(file: Path, delta: Delta) -> None:
    written = write_delta(delta, file)
    read = read_delta(file)
    assert read.manifest == delta.manifest
    assert list(read.entries) == list(delta.entries)
    assert (read.version, read.num_bytes) == (written.version, written.num_bytes)
    assert torch.equal(bits(read.head_weight), bits(delta.head_weight))
    assert torch.equal(bits(read.head_bias), bits(delta.head_bias))
    for name, entry in delta.entries.items():
        again = read.entries[name]
        assert type(again) is type(entry)
        assert torch.equal(bits(again.values), bits(entry.values))
        if isinstance(entry, SparseEntry):
            assert isinstance(again, SparseEntry)
            assert torch.equal(again.indices, entry.indices)
            assert again.shape == entry.shape
    assert read_manifest(file) == (read.manifest, read.version)
    assert write_delta(read, file).version == read.version


@LAW
@given(deltas(), st.data())
def test_no_damage_goes_unnoticed(file: Path, delta: Delta, data: st.DataObject) -> None:
    """Bytes are overwritten, removed or inserted at any position."""
    written = write_delta(delta, file)
    content = file.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start, min(len(content), start + 20)))
    new = data.draw(st.binary(max_size=20))
    spoilt = content[:start] + new + content[stop:]
    file.write_bytes(spoilt)
    try:
        read = read_delta(file)
    except DeltaFormatError:
        return
    assert (read.version, read.manifest) == (written.version, delta.manifest)
    assert torch.equal(bits(read.head_weight), bits(delta.head_weight))


@LAW
@given(entries(), st.data())
def test_replacing_values_and_restoring_them_is_exact(entry: Entry, data: st.DataObject) -> None:
    """Values are copied, never added: frozen bits stay untouched, selected ones are set."""
    shape = entry.info("x").shape
    frozen: Any = data.draw(tensors(shape))
    before = bits(frozen).clone()
    laid = entry.resolve(frozen)
    assert torch.equal(bits(frozen), before)
    assert laid.shape == frozen.shape
    if isinstance(entry, DenseEntry):
        assert torch.equal(bits(laid), bits(entry.values))
        return
    assert torch.equal(bits(laid.reshape(-1)[entry.indices]), bits(entry.values))
    back = SparseEntry(entry.indices, frozen.reshape(-1)[entry.indices], entry.shape)
    assert torch.equal(bits(back.resolve(laid)), before)
    assert torch.equal(bits(entry.resolve(laid)), bits(laid))


@LAW
@given(deltas(), st.floats(0, 1e6), texts)
def test_versions_depend_on_values_alone(
    file: Path, delta: Delta, duration: float, command: str
) -> None:
    """Date, duration and command of the training do not change the version."""
    version = write_delta(delta, file).version
    facts = delta.manifest.training.model_copy(
        update={"duration_s": duration, "command": command, "git_commit": command}
    )
    manifest = delta.manifest.model_copy(update={"training": facts, "metrics": {}})
    again = Delta(manifest, delta.entries, delta.head_weight, delta.head_bias)
    assert write_delta(again, file).version == version
    moved = Delta(delta.manifest, delta.entries, delta.head_weight, delta.head_bias + 1.5)
    if torch.isfinite(moved.head_bias).all() and not torch.equal(moved.head_bias, delta.head_bias):
        assert write_delta(moved, file).version != version
