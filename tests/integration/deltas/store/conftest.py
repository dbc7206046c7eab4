"""Fixtures of remote folders: one S3 service for all tests, a bucket with deltas for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltas import Backbone, delta_path, write_delta
from tests.factories import TOY_TASKS, make_delta
from tests.integration.s3_server import Bucket, S3Service

Contents = dict[str, bytes]


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    service = S3Service(tmp_path_factory.mktemp("s3"))
    yield service
    service.stop()


@pytest.fixture
def s3(s3_service: S3Service, monkeypatch: pytest.MonkeyPatch) -> S3Service:
    """The service, with its environment set for this process."""
    for name, value in s3_service.environment.items():
        monkeypatch.setenv(name, value)
    return s3_service


@pytest.fixture
def bucket(s3: S3Service, request: pytest.FixtureRequest) -> Bucket:
    """An empty bucket of this test."""
    return Bucket(s3, f"deltas-{abs(hash(request.node.nodeid)):x}")


@pytest.fixture(scope="session")
def contents(
    tiny_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Contents]:
    """A function (seed) -> the files of four deltas by name; the seed changes their values."""
    made: dict[int, Contents] = {}

    def make(seed: int) -> Contents:
        if seed not in made:
            root = tmp_path_factory.mktemp("contents")
            for task in ("toy2", "toy3"):
                for strategy in ("head", "bitfit"):
                    path = delta_path(root, tiny_backbone.ref.id, task, strategy)
                    write_delta(make_delta(tiny_backbone, TOY_TASKS[task], strategy, seed), path)
            made[seed] = files_of(root)
        return made[seed]

    return make


def files_of(folder: Path) -> Contents:
    """Return the content of all files of a folder that are not hidden, by name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
