"""Fixtures of several unit tests: a store to be spoilt, and an empty bank."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from deltas import Backbone, Store
from deltas.encoder.bank import Bank


@pytest.fixture
def store(tiny_backbone: Backbone, tiny_deltas: Path, tmp_path: Path) -> Store:
    """A copy of the toy deltas, to be spoilt."""
    return Store(
        [Path(shutil.copytree(tiny_deltas, tmp_path / "deltas"))], backbone=tiny_backbone.ref
    )


@pytest.fixture
def bank(tiny_backbone: Backbone) -> Bank:
    """For the tiny backbone, with nothing in it."""
    return Bank(tiny_backbone, torch.device("cpu"), torch.float32)
