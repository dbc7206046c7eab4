"""No name of a request leaves the folder of the deltas, or meets the file of another name."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltas import DeltaNotFoundError
from deltas.manifest import NAME_PATTERN, STRATEGY_PATTERN
from deltas.store.files import checked_path, default_of, kept_path

pytestmark = pytest.mark.law

ROOT = Path("/deltas/root")
SEPARATORS = ["..", ".", "/", "\\", "\0", "%2e%2e", "%2f", "~", "\n", "@", ":", "-", " "]
LOOK_ALIKES = ["\u2024\u2024", "\uff0e", "\u2215", "\u202e", "\u0430", "\ud800"]
TRICKS = st.sampled_from([*SEPARATORS, *LOOK_ALIKES, "a", "A", "0", "CON", "x" * 300])
ANY_NAME = st.one_of(st.text(max_size=40), st.lists(TRICKS, max_size=8).map("".join))
GOOD_TASK = st.from_regex(NAME_PATTERN, fullmatch=True)
GOOD_STRATEGY = st.from_regex(STRATEGY_PATTERN, fullmatch=True)


@given(task=ANY_NAME | GOOD_TASK, strategy=ANY_NAME | GOOD_STRATEGY, backbone=ANY_NAME)
@example(task="..", strategy="head", backbone="..")
@example(task="a..", strategy="a/../../../etc/passwd", backbone="/")
@example(task="toy2", strategy="a\\..\\x", backbone="a/b")
@settings(max_examples=500, deadline=None)
def test_a_path_lies_two_folders_below_the_root(task: str, strategy: str, backbone: str) -> None:
    try:
        path = checked_path(ROOT, backbone, task, strategy)
    except DeltaNotFoundError:
        is_sound = re.fullmatch(NAME_PATTERN, task) and re.fullmatch(STRATEGY_PATTERN, strategy)
        assert not is_sound
        return
    assert path.parent.parent.parent == ROOT
    assert os.path.normpath(path) == str(path)
    assert not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    assert path.name.isascii()
    assert all(len(part.encode()) <= 255 for part in path.parts)
    assert path.suffix == ".safetensors"
    assert default_of(path) is None, "no name is mistaken for a kept version"


@given(version=ANY_NAME | st.from_regex("[0-9a-f]{16}", fullmatch=True))
@settings(max_examples=300, deadline=None)
def test_a_kept_version_lies_beside_its_default_file(version: str) -> None:
    default = checked_path(ROOT, "b", "toy2", "random:0.05")
    try:
        kept = kept_path(default, version)
    except DeltaNotFoundError:
        assert not re.fullmatch("[0-9a-f]{16}", version)
        return
    assert kept.parent == default.parent
    assert default_of(kept) == (default, version)


@pytest.mark.parametrize("number", range(3))
def test_the_law_can_fail(number: int) -> None:
    """Without the check, these names do leave the folder."""
    task = ("..", "../..", "/etc")[number]
    path = ROOT / "b" / task / "x.safetensors"
    assert os.path.normpath(path) != str(path) or not path.is_relative_to(ROOT)
