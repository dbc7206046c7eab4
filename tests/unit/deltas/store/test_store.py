"""The store: lookup by name, rejected files, and names that never become paths."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from deltas import (
    Backbone,
    BackboneRef,
    Delta,
    DeltaFormatError,
    DeltaNotFoundError,
    Store,
    TaskSpec,
    delta_path,
    write_delta,
    zoo_path,
)

Put = Callable[..., Delta]


@pytest.fixture
def put(
    tmp_path: Path, tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> Put:
    """A function that writes a delta: put("root/file", task, strategy, seed, data=...)."""

    def write(
        file: str, task: str = "toy2", strategy: str = "head", seed: int = 0, data: str = "folder"
    ) -> Delta:
        delta: Delta = make_delta(tiny_backbone, toy_tasks[task], strategy, seed)
        training = delta.manifest.training.model_copy(update={"data": data})
        manifest = delta.manifest.model_copy(update={"training": training})
        path = tmp_path / f"{file}.safetensors"
        return write_delta(Delta(**(vars(delta) | {"manifest": manifest})), path)

    return write


def test_tasks_strategies_and_defaults(tiny_deltas: Path, tiny_backbone: Backbone) -> None:
    store = Store([tiny_deltas], backbone=tiny_backbone.ref)
    assert store.tasks == ["toy2", "toy3", "toy68", "toymulti", "toyreg"]
    assert store.strategies("toy3") == ["bitfit", "head", "layernorm", "random:0.05", "top:1"]
    assert store.default_strategy("toy3") == "bitfit"
    assert len(store.records) == 25
    assert store.rejected == []
    assert all(record.is_default for record in store.records)
    assert store.resolve("toy3").manifest.strategy.name == "bitfit"
    assert store.resolve("toy3", "random:0.05").manifest.key == ("toy3", "random:0.05")


def test_without_bitfit_the_first_by_name_answers(put: Put, tmp_path: Path) -> None:
    put("a/1", strategy="top:1")
    put("a/2", strategy="layernorm")
    store = Store([tmp_path / "a"])
    assert store.default_strategy("toy2") == "layernorm"
    assert store.resolve("toy2").manifest.strategy.name == "layernorm"


def test_earlier_root_wins_and_both_answer_to_their_version(put: Put, tmp_path: Path) -> None:
    second, first = put("second/a", seed=1), put("first/z", seed=2)
    store = Store([tmp_path / "first", tmp_path / "second"])
    assert store.resolve("toy2").version == first.version
    assert store.resolve("toy2", "head", first.version).version == first.version
    assert store.resolve("toy2", "head", second.version).version == second.version
    assert [record.is_default for record in store.records] == [True, False]
    turned = Store([tmp_path / "second", tmp_path / "first"])
    assert turned.resolve("toy2").version == second.version


@pytest.mark.parametrize("roots", [("a", "b"), ("b", "a")])
def test_the_sample_never_wins(put: Put, tmp_path: Path, roots: tuple[str, str]) -> None:
    sample, real = put("a/1", seed=1, data="sample"), put("b/1", seed=2, data="files")
    store = Store([tmp_path / root for root in roots])
    assert store.resolve("toy2").version == real.version
    assert store.resolve("toy2", version=sample.version).version == sample.version


def test_the_sample_answers_when_there_is_nothing_else(put: Put, tmp_path: Path) -> None:
    sample = put("a/1", data="sample")
    assert Store([tmp_path]).resolve("toy2").version == sample.version


def test_the_same_delta_twice_is_one(put: Put, tmp_path: Path) -> None:
    put("first/a")
    put("second/b")
    (record,) = Store([tmp_path / "first", tmp_path / "second"]).records
    assert record.path == tmp_path / "first/a.safetensors"


def test_bad_files_are_listed_and_others_served(put: Put, tmp_path: Path) -> None:
    good = put("a/good")
    content = (tmp_path / "a/good.safetensors").read_bytes()
    (tmp_path / "a/empty.safetensors").touch()
    (tmp_path / "a/short.safetensors").write_bytes(content[:100])
    (tmp_path / "a/folder.safetensors").mkdir()
    (tmp_path / "a/dangling.safetensors").symlink_to("nowhere")
    save_file({"a": torch.ones(1)}, tmp_path / "a/other.safetensors")
    for name, text in (("deep", "[" * 100_000), ("old", '{"format_version":0}')):
        header = {"deltabert": text, "version": "0" * 16, "digest": "0" * 64}
        save_file({"a": torch.ones(1)}, tmp_path / f"a/{name}.safetensors", header)
    store = Store([tmp_path / "a"])
    assert [record.version for record in store.records] == [good.version]
    reasons = {path.stem: reason for path, reason in store.rejected}
    assert set(reasons) >= {"empty", "short", "other", "deep", "old"}
    assert set(reasons) <= {"empty", "short", "folder", "dangling", "other", "deep", "old"}
    assert "format version 0" in reasons["old"]
    assert "no delta" in reasons["other"]
    assert not any(str(tmp_path) in reason for reason in reasons.values())


def test_deltas_of_another_backbone_are_listed_with_both(
    put: Put, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    put("a/1")
    other = tiny_backbone.ref.model_copy(update={"fingerprint": "sha256:0123"})
    store = Store([tmp_path], backbone=other)
    assert store.records == []
    ((_, reason),) = store.rejected
    assert "sha256:0123" in reason
    assert tiny_backbone.ref.fingerprint in reason


def test_another_tokenizer_is_another_backbone(
    put: Put, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    put("a/1")
    other = tiny_backbone.ref.model_copy(update={"tokenizer_fingerprint": "sha256:cased"})
    ((_, reason),) = Store([tmp_path], backbone=other).rejected
    assert "tokenizer fingerprint" in reason
    assert "sha256:cased" in reason


def test_names_of_backbones_do_not_matter(
    put: Put, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    put("a/1")
    renamed = tiny_backbone.ref.model_copy(update={"id": "elsewhere", "revision": "abc"})
    assert len(Store([tmp_path], backbone=renamed).records) == 1


def test_hidden_and_foreign_files_are_not_looked_at(put: Put, tmp_path: Path) -> None:
    put("a/1")
    put("a/.hidden/2", seed=1)
    put("a/.3", seed=2)
    for name in ("x.bin", "x.safetensors.tmp", "README.md", "x.SAFETENSORS"):
        (tmp_path / "a" / name).write_bytes(b"x")
    store = Store([tmp_path / "a"])
    assert len(store.records) == 1
    assert store.rejected == []


def test_a_root_may_lie_in_a_hidden_folder(put: Put, tmp_path: Path) -> None:
    put(".cache/deltas/1")
    assert len(Store([tmp_path / ".cache/deltas"]).records) == 1


def test_a_root_may_be_a_file(put: Put, tmp_path: Path) -> None:
    first, second = put("a/one"), put("a/two", task="toy3")
    path = tmp_path / "a" / "two.safetensors"
    store = Store([path])
    assert store.rejected == []
    assert [record.version for record in store.records] == [second.version]
    assert store.shown_name(path) == "two.safetensors"
    store = Store([path, tmp_path / "a"])
    assert {record.version for record in store.records} == {first.version, second.version}
    assert store.shown_name(path) == "two.safetensors"


def test_an_empty_folder_is_an_empty_store(tmp_path: Path) -> None:
    store = Store([tmp_path, tmp_path / "none"])
    assert store.tasks == store.records == store.rejected == []  # type: ignore[comparison-overlap]
    with pytest.raises(DeltaNotFoundError, match="Available: none"):
        store.resolve("cola")


def test_circular_links_end(put: Put, tmp_path: Path) -> None:
    good = put("a/b/1")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a/self.safetensors").symlink_to(tmp_path / "a/self.safetensors")
    store = Store([tmp_path / "a"])
    assert [record.version for record in store.records] == [good.version]


NAMES = [
    "../toy2",
    "toy2/../toy2",
    "/etc/passwd",
    "toy2\0",
    "toy2.safetensors",
    "TOY2",
    "t\u043ey2",  # a Cyrillic letter in the middle
    "",
    ".",
    "\ud800",
    "%2e%2e",
    "a" * 100_000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_name_is_ever_a_path(put: Put, tmp_path: Path, name: str) -> None:
    """A lookup needs no disk: with the files gone, known names still resolve, others don't."""
    put("a/1")
    store = Store([tmp_path])
    shutil.rmtree(tmp_path / "a")
    assert store.resolve("toy2", "head").manifest.task.name == "toy2"
    for arguments in ((name,), ("toy2", name), ("toy2", "head", name)):
        with pytest.raises(DeltaNotFoundError) as caught:
            store.resolve(*arguments)
        assert caught.value.name == name


def test_near_matches_at_each_step(tiny_deltas: Path) -> None:
    store = Store([tiny_deltas])
    for arguments, kind, suggestion in (
        (("toy33",), "task", "toy3"),
        (("Toy3",), "task", "toy3"),
        (("toy3", "layernrom"), "strategy", "layernorm"),
        (("toy3", "random:0.5"), "strategy", "random:0.05"),
    ):
        with pytest.raises(DeltaNotFoundError) as caught:
            store.resolve(*arguments)
        assert caught.value.kind == kind
        assert suggestion in caught.value.suggestions
    version = store.resolve("toy3").version
    with pytest.raises(DeltaNotFoundError) as caught:
        store.resolve("toy3", "bitfit", version[:-1] + "x")
    assert caught.value.suggestions == [version]


def test_a_version_of_one_strategy_is_unknown_to_another(tiny_deltas: Path) -> None:
    store = Store([tiny_deltas])
    with pytest.raises(DeltaNotFoundError, match="unknown version"):
        store.resolve("toy3", "head", store.resolve("toy3", "bitfit").version)


def test_loading_notices_a_replaced_file(put: Put, tmp_path: Path) -> None:
    old = put("a/1", seed=1)
    (record,) = Store([tmp_path]).records
    assert record.load().version == old.version
    new = put("a/1", seed=2)
    with pytest.raises(DeltaFormatError, match=f"from version {old.version} to {new.version}"):
        record.load()
    record.path.unlink()
    with pytest.raises(DeltaFormatError, match="no such file"):
        record.load()


def test_loading_checks_what_the_header_cannot_show(put: Put, tmp_path: Path) -> None:
    """The store reads only headers, so loading finds damage elsewhere in the file."""
    put("a/1")
    path = tmp_path / "a/1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (record,) = Store([tmp_path]).records
    with pytest.raises(DeltaFormatError, match="the file is damaged"):
        record.load()


def test_a_rejected_record_is_replaced_by_the_next(put: Put, tmp_path: Path) -> None:
    first, second = put("1/a", seed=1), put("2/a", seed=2)
    put("1/b", strategy="bitfit")
    store = Store([tmp_path / "1", tmp_path / "2"])
    assert store.resolve("toy2", "head").version == first.version
    store.reject(store.resolve("toy2", "head"), "why")
    assert store.rejected == [(tmp_path / "1/a.safetensors", "why")]
    answer = store.resolve("toy2", "head")
    assert (answer.version, answer.is_default) == (second.version, True)
    store.reject(answer, "why")
    assert store.strategies("toy2") == ["bitfit"]
    store.reject(store.resolve("toy2"), "why")
    assert store.tasks == []


def test_both_versions_of_a_name_can_be_rejected_as_they_were_listed(
    put: Put, tmp_path: Path
) -> None:
    put("1/a", seed=1), put("2/a", seed=2)
    store = Store([tmp_path / "1", tmp_path / "2"])
    for record in list(store.records):
        store.reject(record, "why")
    assert store.records == []
    assert len(store.rejected) == 2


def test_a_copy_steps_in_for_a_damaged_file(put: Put, tmp_path: Path) -> None:
    put("1/a", seed=1)
    put("2/a", seed=1)
    store = Store([tmp_path / "1", tmp_path / "2"])
    (first,) = store.records
    store.reject(first, "why")
    (second,) = store.records
    assert (second.version, second.path) == (first.version, tmp_path / "2/a.safetensors")


def test_a_version_can_be_rejected_with_its_copies(put: Put, tmp_path: Path) -> None:
    put("1/a", seed=1)
    put("2/a", seed=1)
    store = Store([tmp_path / "1", tmp_path / "2"])
    store.reject(store.records[0], "why", with_copies=True)
    assert (store.records, len(store.rejected)) == ([], 2)


def test_the_sample_answers_by_default_only_alone(put: Put, tmp_path: Path) -> None:
    put("1/a", strategy="bitfit", data="sample")
    assert Store([tmp_path]).default_strategy("toy2") == "bitfit"
    put("1/b", strategy="layernorm")
    assert Store([tmp_path]).default_strategy("toy2") == "layernorm"


def test_deltas_of_one_strategy_share_their_list_of_entries(put: Put, tmp_path: Path) -> None:
    """The entries are most of a manifest, and a store may hold thousands of manifests."""
    for seed in range(3):
        put(f"1/{seed}", strategy="bitfit", seed=seed)
    first, *others = Store([tmp_path]).records
    assert len(others) == 2
    assert all(record.manifest.entries is first.manifest.entries for record in others)


def test_names_are_shown_below_their_root(put: Put, tmp_path: Path) -> None:
    put("1/a/b")
    (tmp_path / "1" / os.fsdecode(b"\xff.safetensors")).write_bytes(b"x")
    store = Store([tmp_path / "1"])
    assert store.shown_name(store.records[0].path) == "a/b.safetensors"
    assert store.shown_name(store.rejected[0][0]) == "\ufffd.safetensors"


@pytest.mark.parametrize(
    ("strategy", "file"),
    [
        ("bitfit", "bitfit"),
        ("random:0.001", "random-0.001"),
        ("params:../../etc/x", "params-..-..-etc-x-f88fb9ac"),
        ("params:(a|b)", "params-a-b-9cc3f59d"),
        ("params:a-b", "params-a-b-6d0cd905"),
        ("a+b", "a+b"),
        ("..", "unnamed"),
        ("x" * 300, "x" * 100 + "-0d4e2ca9"),
        ("...hidden", "hidden"),
    ],
)
def test_file_names_are_safe(tmp_path: Path, strategy: str, file: str) -> None:
    path = delta_path(tmp_path, "google-bert/bert-base", "cola", strategy)
    assert path == tmp_path / "google-bert-bert-base/cola" / f"{file}.safetensors"
    assert path.resolve().is_relative_to(tmp_path.resolve())


def test_the_zoo_is_beside_the_code() -> None:
    import deltas

    assert deltas.__file__ is not None
    assert zoo_path() == Path(deltas.__file__).parent / "zoo"


def test_fingerprints_decide(tiny_backbone: Backbone) -> None:
    assert isinstance(tiny_backbone.ref, BackboneRef)
    assert tiny_backbone.ref.fingerprint.startswith("sha256:")
