"""Files of one delta: published, switched, pruned, removed, and a crash between any two steps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Delta, DeltaNotFoundError, Store, TaskSpec, write_delta
from deltas.store import versions
from deltas.store.files import (
    checked_path,
    default_of,
    delta_path,
    find_delta_files,
    is_version,
    kept_files,
    kept_path,
)

Write = Callable[..., Delta]


@pytest.fixture
def write(
    tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any, tmp_path: Path
) -> Write:
    """A function (path, seed) that writes a version of toy2/head."""

    def write_one(path: Path, seed: int) -> Delta:
        return write_delta(make_delta(tiny_backbone, toy_tasks["toy2"], "head", seed), path)

    return write_one


@pytest.fixture
def publish(write: Write, tmp_path: Path, tiny_backbone: Backbone) -> Callable[[int], str]:
    """A function (seed) -> version that publishes a version of toy2/head below `tmp_path`."""

    def publish_one(seed: int) -> str:
        upload = versions.new_upload(tmp_path)
        version = write(upload, seed).version
        target = delta_path(tmp_path, tiny_backbone.ref.id, "toy2", "head")
        versions.publish(upload, target, version, keep=True)
        return version

    return publish_one


@pytest.fixture
def target(tmp_path: Path, tiny_backbone: Backbone) -> Path:
    return delta_path(tmp_path, tiny_backbone.ref.id, "toy2", "head")


def served(folder: Path) -> list[tuple[str, bool]]:
    return [(record.version, record.is_default) for record in Store([folder]).records]


def test_published_versions_are_kept_and_the_last_one_is_the_default(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    first, second, third = (publish(seed) for seed in (1, 2, 3))
    assert served(tmp_path) == [(third, True), (second, False), (first, False)]
    assert target.read_bytes() == kept_path(target, third).read_bytes()
    assert not target.samefile(kept_path(target, third)), "cp would change both"
    assert len(list(tmp_path.rglob("*"))) == 6, "two folders and four files, no upload is left"


def test_a_file_that_was_there_before_is_kept(
    write: Write, publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    old = write(target, 9).version
    assert served(tmp_path) == [(old, True)]
    new = publish(1)
    assert served(tmp_path) == [(new, True), (old, False)]


def test_an_earlier_version_becomes_the_default(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    first, second = publish(1), publish(2)
    versions.switch(kept_path(target, first), target, keep=True)
    assert served(tmp_path) == [(first, True), (second, False)]


def test_the_default_is_kept_before_another_version_takes_its_place(
    write: Write, publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    first = publish(1)
    copied = write(target, 5).version  # as cp does
    versions.switch(kept_path(target, first), target, keep=True)
    assert served(tmp_path)[0] == (first, True)
    assert dict(served(tmp_path))[copied] is False


def test_a_published_version_leads_a_real_one_of_an_earlier_root(
    tmp_path: Path, tiny_backbone: Backbone, toy_tasks: dict[str, TaskSpec], make_delta: Any
) -> None:
    delta = make_delta(tiny_backbone, toy_tasks["toy2"], "head", 1)
    training = delta.manifest.training.model_copy(update={"data": "sample"})
    sample = Delta(
        **(vars(delta) | {"manifest": delta.manifest.model_copy(update={"training": training})})
    )
    real = make_delta(tiny_backbone, toy_tasks["toy2"], "head", 2)
    first = write_delta(real, tmp_path / "1/a.safetensors").version
    upload = versions.new_upload(tmp_path)
    version = write_delta(sample, upload).version
    there = delta_path(tmp_path / "2", tiny_backbone.ref.id, "toy2", "head")
    versions.publish(upload, there, version, keep=False)
    store = Store([tmp_path / "1", tmp_path / "2"])
    assert [record.version for record in store.records] == [version, first]
    assert store.resolve("toy2").is_published


def test_kept_versions_without_their_default_file_are_refused(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    publish(1)
    publish(2)
    target.unlink()
    store = Store([tmp_path])
    assert store.records == []
    assert {reason for _, reason in store.rejected} == {
        "kept beside head.safetensors, which is gone; remove this file or publish again"
    }
    again = publish(3)
    assert served(tmp_path) == [(again, True)], "the removed versions don't come back"


def test_a_damaged_default_file_leaves_the_newest_kept_version(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    first, second = publish(1), publish(2)
    target.write_bytes(b"half")
    assert served(tmp_path) == [(second, True), (first, False)]
    assert [path for path, _ in Store([tmp_path]).rejected] == [target]


def test_a_renamed_version_is_refused(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    version = publish(1)
    other = kept_path(target, "0" * 16)
    kept_path(target, version).rename(other)
    ((path, reason),) = Store([tmp_path]).rejected
    assert (path, reason) == (other, f"its name says version {'0' * 16}, but it has {version}")


def test_the_oldest_versions_go_except_needed_ones(
    publish: Callable[[int], str], target: Path
) -> None:
    first, second, third, fourth = (publish(seed) for seed in (1, 2, 3, 4))
    files = {version: kept_path(target, version) for version in (first, second, third, fourth)}
    assert versions.outdated(target, 2, {fourth}) == [files[second], files[first]]
    assert versions.outdated(target, 2, {fourth, first}) == [files[third], files[second]]
    assert versions.outdated(target, 1, {first, second}) == [files[fourth], files[third]]
    assert versions.outdated(target, 4, {fourth}) == []


@pytest.mark.parametrize("steps", range(40))
def test_a_crash_after_any_step_leaves_a_whole_version(
    publish: Callable[[int], str],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    """Each call that changes names or content is a step; from then on, all of them fail."""
    first, second = publish(1), publish(2)
    left = [steps]

    def crash_later(name: str, owner: Any) -> None:
        call = getattr(owner, name)

        def step(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise InterruptedError("the power is off")
            left[0] -= 1
            return call(*args, **kwargs)

        monkeypatch.setattr(owner, name, step)

    crash_later("replace", Path)
    crash_later("unlink", Path)
    crash_later("fsync", os)
    crash_later("utime", os)
    crash_later("copyfile", shutil)
    third = None
    try:
        third = publish(3)
        versions.switch(kept_path(target, first), target, keep=True)
        versions.remove([target, *kept_files(target)])
    except InterruptedError:
        is_whole = False
    else:
        is_whole = True
    monkeypatch.undo()
    found = served(tmp_path)
    assert (found == []) == (not target.exists())
    assert not (is_whole and list(target.parent.iterdir()))
    if found:
        assert found[0][0] in {first, second, third or found[0][0]}
        assert [is_default for _, is_default in found] == [True] + [False] * (len(found) - 1)
        for record in Store([tmp_path]).records:
            record.load()


def test_left_over_uploads_go_after_an_hour(tmp_path: Path) -> None:
    old, new = versions.new_upload(tmp_path), versions.new_upload(tmp_path)
    os.utime(old, (0, 0))
    versions.remove_left_over_uploads(tmp_path)
    assert list(tmp_path.iterdir()) == [new]
    assert list(find_delta_files([tmp_path])) == []


def test_names_of_kept_files() -> None:
    path = Path("root/b/toy2/random-0.05.safetensors")
    kept = kept_path(path, "0123456789abcdef")
    assert kept.name == "random-0.05@0123456789abcdef.safetensors"
    assert default_of(kept) == (path, "0123456789abcdef")
    assert default_of(path) is default_of(path.with_name("me@home.safetensors")) is None
    assert not is_version("0123456789ABCDEF")
    with pytest.raises(DeltaNotFoundError):
        kept_path(path, "../../x")


def test_a_name_of_no_delta_has_no_path(tmp_path: Path) -> None:
    assert checked_path(tmp_path, "b", "toy2", "random:0.05").is_relative_to(tmp_path)
    for task, strategy in (("..", "head"), ("toy2/..", "head"), ("toy2", "../x"), ("", "head")):
        with pytest.raises(DeltaNotFoundError):
            checked_path(tmp_path, "b", task, strategy)


@pytest.mark.parametrize("num_before", [0, 1])
def test_a_version_that_does_not_fit_on_the_disk_leaves_nothing(
    publish: Callable[[int], str],
    target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_before: int,
) -> None:
    for seed in range(num_before):
        publish(seed)
    before, copy = served(tmp_path), shutil.copyfile

    def copy_some(source: Path, to: Path) -> None:
        if len(list(target.parent.glob("head@*"))) > num_before:
            raise OSError(28, "No space left on device")
        copy(source, to)

    monkeypatch.setattr(shutil, "copyfile", copy_some)
    with pytest.raises(OSError, match="No space"):
        publish(7)
    assert served(tmp_path) == before
    assert len(list(tmp_path.rglob("*@*"))) == num_before
    monkeypatch.setattr(shutil, "copyfile", copy)
    assert served(tmp_path)[:1] == before[:1]
    assert (publish(7), True) == served(tmp_path)[0]


def test_a_clock_that_was_set_back_does_not_change_the_order(
    publish: Callable[[int], str], target: Path, tmp_path: Path
) -> None:
    first, second = publish(1), publish(2)
    for number, path in enumerate((kept_path(target, first), kept_path(target, second), target)):
        later = path.stat().st_mtime + 1e6 + number
        os.utime(path, (later, later))
    third, fourth = publish(3), publish(4)
    assert [version for version, _ in served(tmp_path)] == [fourth, third, second, first]
    kept = [default_of(path) for path in kept_files(target)]
    assert [found[1] for found in kept if found] == [fourth, third, second, first]
    assert versions.outdated(target, 2, set()) == [kept_path(target, v) for v in (second, first)]
