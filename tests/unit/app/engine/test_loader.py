"""The loader: full checks at first, shortcuts for the same bytes later, and bad files."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.cache import DeltaCache
from app.engine.loader import Loader
from app.errors import DeltaUnavailableError
from deltas import Backbone, DeltaFormatError, DeltaMismatchError, Record, Store, write_delta
from deltas.encoder.bank import Bank, Reading, StagedDelta
from tests.factories import POOLED_TASKS, make_delta

CPU = torch.device("cpu")


def same(one: StagedDelta, other: StagedDelta) -> bool:
    """Compare bit for bit."""
    if one.vectors.keys() != other.vectors.keys() or one.reading != other.reading:
        return False
    pairs = [(one.head_weight, other.head_weight), (one.head_bias, other.head_bias)]
    pairs += [(vectors, other.vectors[kind]) for kind, vectors in one.vectors.items()]
    pairs += [(one.matrices[name], other.matrices[name]) for name in one.matrices]
    pairs += [(one.sparse[name].differences, other.sparse[name].differences) for name in one.sparse]
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_again_gives_the_same_bits(
    tiny_backbone: Backbone, store: Store, dtype: torch.dtype
) -> None:
    loader = Loader(tiny_backbone, Bank(tiny_backbone, CPU, dtype), again=True)
    first = [loader.load(record) for record in store.records]
    # Only deltas of vectors and a head have recipes.
    known = {record.manifest.key[1] for record in store.records if record.path in loader._recipes}
    assert known == {"bitfit", "layernorm", "head"}
    assert len(loader._recipes) == 15
    for record, expected in zip(store.records, first, strict=True):
        assert same(loader.load(record), expected)


def test_files_that_differ_in_pooling_only_keep_theirs(
    tiny_backbone: Backbone, bank: Bank, pooled_deltas: Path
) -> None:
    """Their tensors have the same names and shapes, and share a layout."""
    store = Store([pooled_deltas], backbone=tiny_backbone.ref)
    loader = Loader(tiny_backbone, bank, again=True)
    for _ in range(2):
        found = {
            task: loader.load(store.resolve(task, "bitfit"))
            for task in ("toy2", "toymean", "toysplit", "toysplitmean", "toylayers")
        }
        assert {task: staged.reading for task, staged in found.items()} == {
            "toy2": Reading(mean=False, every_layer=False, pairs=False),
            "toymean": Reading(mean=True, every_layer=False, pairs=False),
            "toysplit": Reading(mean=False, every_layer=False, pairs=True),
            "toysplitmean": Reading(mean=True, every_layer=False, pairs=True),
            "toylayers": Reading(mean=True, every_layer=True, pairs=False),
        }
        slots = bank.add(list(found.values()))
        assert bank.pair_slots == {slots[2], slots[3]}
        assert bank.mean_slots == {slots[1], slots[3], slots[4]}
        assert bank.layers_slots == {slots[4]}
        for slot in slots:
            bank.remove(slot)
        assert not (bank.mean_slots)
        assert not (bank.layers_slots)
        assert not (bank.pair_slots)


def test_a_head_of_another_width_is_refused(
    tiny_backbone: Backbone, bank: Bank, tmp_path: Path
) -> None:
    """The manifest says that pairs are read separately, the head reads one vector."""
    task = POOLED_TASKS["toysplit"]
    delta = make_delta(tiny_backbone, task, "head")
    narrow = delta.head_weight[:, : tiny_backbone.config.hidden_size].contiguous()
    less = delta.head_weight.numel() - narrow.numel()
    manifest = delta.manifest.model_copy(
        update={
            "trainable_parameters": delta.manifest.trainable_parameters - less,
            "total_parameters": delta.manifest.total_parameters - less,
        }
    )
    path = tmp_path / "narrow.safetensors"
    write_delta(replace(delta, manifest=manifest, head_weight=narrow), path)
    (record,) = Store([tmp_path], backbone=tiny_backbone.ref).records
    with pytest.raises(DeltaMismatchError, match=r"width of the head.*144.*36"):
        Loader(tiny_backbone, bank, again=True).load(record)


def test_checked_bytes_are_not_checked_again(
    tiny_backbone: Backbone, bank: Bank, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(tiny_backbone, bank, again=True)
    record = store.resolve("toy2", "bitfit")
    expected = loader.load(record)

    def refuse(_record: Record, _content: bytes) -> None:
        pytest.fail("checked in full again")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "parse", refuse)
        assert same(loader.load(record), expected)
        os.utime(record.path, (1, 1))  # dates don't matter, bytes do
        assert same(loader.load(record), expected)


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(flip(path.read_bytes())), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "not a readable safetensors"),
        (lambda path: path.write_bytes(b""), "not a readable safetensors"),
        (lambda path: path.unlink(), "no such file"),
        (to_pipe, "not a file"),
        (lambda path: shutil.copy(path.with_name("layernorm.safetensors"), path), "changed from"),
    ],
    ids=["flipped", "cut", "empty", "gone", "pipe", "another"],
)
def test_a_file_that_goes_bad_after_its_check_is_an_error(
    tiny_backbone: Backbone, bank: Bank, store: Store, spoil: Any, reason: str
) -> None:
    loader = Loader(tiny_backbone, bank, again=True)
    cache = DeltaCache(bank, loader.load, max_slots=1)
    record = store.resolve("toy2", "bitfit")
    before = loader.load(record)
    content = record.path.read_bytes()
    spoil(record.path)
    with cache.acquire([record]) as claimed:
        (outcome,) = claimed.values()
    assert isinstance(outcome, DeltaUnavailableError)
    assert re.search(reason, str(outcome)), str(outcome)
    assert str(record.path) not in str(outcome)
    record.path.unlink(missing_ok=True)
    record.path.write_bytes(content)
    assert same(loader.load(record), before)
    with cache.acquire([record]) as claimed:
        assert claimed == {record.key: 1}


def test_a_file_that_changes_while_it_is_checked_is_checked_again(
    tiny_backbone: Backbone, bank: Bank, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest belongs to the checked bytes, not to the file's later content."""
    record, other = store.resolve("toy2", "bitfit"), store.resolve("toy2", "layernorm")
    expected = Loader(tiny_backbone, bank, again=False).load(record)
    parse = Record.parse
    for change in (
        lambda path: path.write_bytes(flip(path.read_bytes())),
        lambda path: shutil.copy(other.path, path),
        lambda path: path.write_bytes(b"\xff" * 1000),
        lambda path: os.truncate(path, 5000),
        lambda path: path.unlink(),
    ):
        loader = Loader(tiny_backbone, bank, again=True)
        kept = record.path.read_bytes()

        def parse_and_change(self: Record, content: bytes, change: Any = change) -> Any:
            change(self.path)
            return parse(self, content)

        with monkeypatch.context() as patch:
            patch.setattr(Record, "parse", parse_and_change)
            assert same(loader.load(record), expected)
        with pytest.raises(DeltaFormatError):
            loader.load(record)
        record.path.write_bytes(kept)
        assert same(loader.load(record), expected)


def test_one_load_needs_no_recipe(tiny_backbone: Backbone, bank: Bank, store: Store) -> None:
    """An engine that holds everything reads each file once."""
    loader = Loader(tiny_backbone, bank, again=False)
    for record in store.records:
        loader.load(record)
    assert not loader._recipes
