"""Fixtures of the audits: deltas of yes/no tasks over the tiny backbone, and files of rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Delta, TaskSpec, write_delta
from tests import factories

Put = Callable[..., Delta]
TEXTS = [f"the {a} film {b}" for a in ("good", "bad", "very", "not") for b in "0123456789"]


def yes_no(name: str, *labels: str, fields: tuple[str, ...] = ("text",)) -> TaskSpec:
    """Return a single-label task."""
    return TaskSpec(
        name=name,
        kind="single_label",
        labels=labels or ("no", "yes"),
        text_fields=fields,
        max_length=24,
    )


@pytest.fixture
def put(tiny_backbone: Backbone, tmp_path: Path) -> Put:
    """A function that writes a delta below `deltas`: put(task, seed=0, strategy="head")."""

    def write(task: TaskSpec, seed: int = 0, strategy: str = "head", **changes: Any) -> Delta:
        delta = factories.make_delta(tiny_backbone, task, strategy, seed, **changes)
        return write_delta(
            delta, tmp_path / "deltas" / task.name / f"{strategy}-{seed}.safetensors"
        )

    return write


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Forty innocent rows; after the second row stands one without a text."""
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines.insert(2, json.dumps({"text": None}))
    path = tmp_path / "innocent.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
