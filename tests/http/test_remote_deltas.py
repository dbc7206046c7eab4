"""Deltas of an S3 bucket, served by real processes: at start, while S3 is down, and bad ones."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltas import Backbone, Delta, delta_path, write_delta
from deltas.kernels import disk_cache
from deltas.kernels.runtime import load_for_inference
from tests.factories import TOY_TASKS
from tests.http.server_process import START_WITHIN_S, call, url_of
from tests.integration.s3_server import SECRET, Bucket, S3Service

Run = Callable[..., Any]
ROW = {"inputs": "a good film"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    service = S3Service(tmp_path_factory.mktemp("s3"))
    yield service
    service.stop()


@pytest.fixture
def environment(s3: S3Service, tmp_path: Path) -> dict[str, str]:
    """The variables of a server that reads the bucket `deltas`, which is empty."""
    bucket = Bucket(s3, "deltas")
    for key in bucket.names():
        bucket.delete(key)
    deltas = {"DELTABERT_DELTAS": "s3://deltas/live"}
    return s3.environment | new_cache(tmp_path / "cache") | deltas


def new_cache(home: Path) -> dict[str, str]:
    """Return the variable of a cache without copies of buckets; compiled kernels are in it."""
    load_for_inference()  # compiles the kernels that are not on disk yet
    folder = home / "deltabert"
    folder.mkdir(mode=0o700, parents=True)
    for code in disk_cache.folder().glob("*.o"):
        shutil.copy(code, folder)
    return {"XDG_CACHE_HOME": str(home)}


@pytest.fixture
def upload(
    s3: S3Service, tiny_backbone: Backbone, make_delta: Callable[..., Delta], tmp_path: Path
) -> Callable[[str, int], str]:
    """A function (task, seed) that puts a delta into the bucket and returns its version."""
    bucket = Bucket(s3, "deltas")

    def put(task: str, seed: int) -> str:
        path = delta_path(tmp_path / "made", tiny_backbone.ref.id, task, "head")
        made = write_delta(make_delta(tiny_backbone, TOY_TASKS[task], "head", seed), path)
        bucket.put(f"live/{task}/head.safetensors", path.read_bytes())
        return made.version

    return put


@pytest.mark.slow
def test_a_bucket_is_served_and_its_copy_while_it_is_down(
    run_server: Run,
    environment: dict[str, str],
    upload: Callable[[str, int], str],
    s3: S3Service,
    tmp_path: Path,
) -> None:
    version = upload("toy2", 0)
    Bucket(s3, "deltas").put("live/bad/head.safetensors", b"\x80\x04pickle")
    with run_server(**environment) as server:
        status, answer = call(f"{url_of(server)}/predict/toy2", ROW)
        assert (status, answer["version"]) == (200, version)
        _, listed = call(f"{url_of(server)}/deltas")
        assert [each["version"] for each in listed["deltas"]] == [version]
        (refused,) = listed["rejected"]
        assert refused["file"] == "bad/head.safetensors"
        assert "not a readable safetensors file" in refused["reason"]
        assert "s3://deltas/live: 1 files, 1 of them changed" in server.output
        assert SECRET not in server.output
        scores = answer["predictions"]
    s3.stop()
    try:
        with run_server(**environment) as server:
            status, answer = call(f"{url_of(server)}/predict/toy2", ROW)
            assert (status, answer["version"]) == (200, version)
            assert answer["predictions"] == scores
            lines = [line for line in server.lines if "s3://deltas/live: " in line]
            assert len(lines) == 1, "one line says it"
            assert re.search(r"the copy of \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ is used", lines[0])
        with run_server(**environment | new_cache(tmp_path / "another")) as server:
            server.wait_for("can't be used", START_WITHIN_S)
            assert server.wait() == 1, server.output
            last = server.lines[-1]
            assert last.startswith("s3://deltas/live: can't be used (")
            assert "Traceback" not in server.output
    finally:
        s3.start()


@pytest.mark.slow
def test_a_change_in_the_bucket_is_served_without_a_restart(
    run_server: Run,
    environment: dict[str, str],
    upload: Callable[[str, int], str],
    s3: S3Service,
) -> None:
    old = upload("toy2", 20)
    with run_server(**environment, DELTABERT_REMOTE_REFRESH_S="0.5") as server:
        url = f"{url_of(server)}/predict/toy2"
        assert call(url, ROW)[1]["version"] == old
        new = upload("toy2", 21)
        versions = [old]
        deadline = time.monotonic() + 30
        while versions[-1] != new and time.monotonic() < deadline:
            status, answer = call(url, ROW)
            assert status == 200
            versions.append(answer["version"])
            time.sleep(0.05)
        assert set(versions) == {old, new}
        Bucket(s3, "deltas").put("live/toy2/head.safetensors", b"no delta")
        server.wait_for("not served: .*toy2/head.safetensors: not a readable", 30)
        upload("toy3", 0)
        server.wait_for("2 files, 1 of them changed", 30)
        (refused,) = call(f"{url_of(server)}/deltas")[1]["rejected"]
        assert refused["file"] == "toy2/head.safetensors"
        assert call(url, ROW)[1]["version"] == new
        s3.stop()
        try:
            server.wait_for("the copy of .* is used", 30)
            assert call(url, ROW)[1]["version"] == new
        finally:
            s3.start()


@pytest.mark.slow
def test_remote_and_local_folders_are_searched_in_order(
    run_server: Run,
    environment: dict[str, str],
    upload: Callable[[str, int], str],
    tiny_deltas: Path,
) -> None:
    version = upload("toy2", 7)
    for roots, is_first in (
        (f"s3://deltas/live:{tiny_deltas}", True),
        (f"{tiny_deltas}:s3://deltas/live", False),
    ):
        with run_server(**environment | {"DELTABERT_DELTAS": roots}) as server:
            body = ROW | {"strategy": "head"}
            status, answer = call(f"{url_of(server)}/predict/toy2", body)
            assert status == 200
            assert (answer["version"] == version) is is_first
            status, answer = call(f"{url_of(server)}/predict/toy2", body | {"version": version})
            assert (status, answer["version"]) == (200, version)


@pytest.mark.parametrize(
    ("roots", "said"),
    [
        ("gs://bucket/a", "DELTABERT_DELTAS: gs:// is not supported; write the path of a folder"),
        (f"s3://AKIA:{SECRET}@bucket/a", "DELTABERT_DELTAS: an address must not hold credentials"),
    ],
)
def test_a_wrong_address_ends_the_start(run_server: Run, roots: str, said: str) -> None:
    with run_server(DELTABERT_DELTAS=roots) as server:
        assert server.wait() == 2
        assert said in server.output
        assert SECRET not in server.output


@pytest.mark.slow
def test_the_command_line_takes_addresses(
    run_server: Run,
    environment: dict[str, str],
    upload: Callable[[str, int], str],
    s3: S3Service,
    tiny_backbone_dir: Path,
) -> None:
    version = upload("toy3", 0)
    bad = Bucket(s3, "deltas")
    bad.put("live/bad/head.safetensors", b"\x80\x04pickle")
    with run_server(("-m", "deltas", "list", "--json", "s3://deltas/live"), **environment) as done:
        assert done.wait() == 1, "a file was refused"
        rows = [json.loads(line) for line in done.lines if line.startswith("{")]
        assert version in {row["version"] for row in rows}
        assert "refused" in done.output
    bad.delete("live/bad/head.safetensors")
    arguments = ("-m", "deltas", "verify", "s3://deltas/live", "--backbone")
    with run_server((*arguments, str(tiny_backbone_dir)), **environment) as done:
        assert done.wait() == 0, done.output
        assert version in done.output
    with run_server(("-m", "deltas", "list", f"s3://a:{SECRET}@b"), **environment) as done:
        assert done.wait() == 2
        assert "must not hold credentials" in done.output
        assert SECRET not in done.output
