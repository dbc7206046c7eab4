"""Folders of the Hugging Face hub and of S3, asked through their libraries.

The hub is a server on this machine that speaks the few routes that the library uses; the real one
was not reachable where this was written. The library reads its endpoint when it is imported, so
each test asks in a new process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deltas.store import remote
from deltas.store.address import RemoteAddress
from deltas.store.remote import RemoteError, open_remote
from tests.integration.deltas.store.conftest import Contents, files_of
from tests.integration.hub_server import Ask, Hub, serve
from tests.integration.s3_server import Bucket, S3Service

SCRIPT = """
import json, sys, time
from pathlib import Path
from deltas import DeltaError
from deltas.store.address import parse_root
from deltas.store.sync import sync
start = time.perf_counter()
try:
    found = sync(parse_root({address!r}), Path({folder!r}))
    answer = dict(changed=found.num_changed, problem=found.problem, refused=len(found.refused))
except DeltaError as error:
    answer = dict(error=str(error))
print(json.dumps(answer | dict(seconds=time.perf_counter() - start)))
"""
Make = Callable[[int], Contents]


@pytest.fixture
def hub(contents: Make) -> Iterator[Hub]:
    """A model repository with deltas in its folder `live`, beside other files."""
    files = {f"live/{name}": content for name, content in contents(0).items()}
    other = next(iter(contents(1).values()))
    files |= {"README.md": b"# Deltas", "old/a.safetensors": other, "live/card.md": b"a card"}
    yield from serve(Hub(files, "team/deltas", kind="models"))


@pytest.mark.slow
def test_a_folder_of_the_hub_is_copied_and_followed(
    hub: Hub, contents: Make, ask_afresh: Ask, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    script = SCRIPT.format(address="hf://team/deltas/live", folder=str(folder))
    first = ask_afresh(script, hub.url)
    assert (first["changed"], first["problem"]) == (4, ""), first
    assert files_of(folder) == contents(0)

    name, bad, *_, gone = contents(0)
    hub.commit = "d" * 40
    hub.files[f"live/{name}"] = contents(1)[name]
    hub.files[f"live/{bad}"] = contents(1)[bad][:-4] + b"\0\0\0\0"
    del hub.files[f"live/{gone}"]
    second = ask_afresh(script, hub.url)
    assert (second["changed"], second["refused"]) == (2, 1)
    wanted = contents(0) | {name: contents(1)[name]}
    del wanted[gone]
    assert files_of(folder) == wanted


def test_a_revision_and_a_whole_repository(hub: Hub, ask_afresh: Ask, tmp_path: Path) -> None:
    script = SCRIPT.format(address="hf://team/deltas@" + "c" * 40, folder=str(tmp_path / "copy"))
    assert ask_afresh(script, hub.url)["changed"] == 5
    assert (tmp_path / "copy" / "old" / "a.safetensors").is_file()


@pytest.mark.slow
def test_a_copy_of_the_hub_serves_while_it_is_down(
    hub: Hub, contents: Make, ask_afresh: Ask, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    script = SCRIPT.format(address="hf://team/deltas/live", folder=str(folder))
    nowhere = "http://127.0.0.1:9"
    assert "can't be reached" in ask_afresh(script, nowhere)["error"]
    assert ask_afresh(script, hub.url)["changed"] == 4
    assert "can't be reached" in ask_afresh(script, nowhere)["problem"]
    offline = ask_afresh(script, hub.url, HF_HUB_OFFLINE="1")
    assert "offline mode is on" in offline["problem"]
    assert files_of(folder) == contents(0)


def test_an_unknown_repository_is_one_sentence(hub: Hub, ask_afresh: Ask, tmp_path: Path) -> None:
    script = SCRIPT.format(address="hf://team/other", folder=str(tmp_path / "copy"))
    error = ask_afresh(script, hub.url)["error"]
    assert error.startswith("hf://team/other: can't be used (")
    assert "\n" not in error


@pytest.mark.slow
def test_a_silent_service_is_given_up(
    bucket: Bucket,
    s3: S3Service,
    ask_afresh: Ask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The libraries would wait for minutes, or for ever."""
    monkeypatch.setattr(remote, "READ_S", 4)
    with s3.silent():
        start = time.monotonic()
        with pytest.raises(RemoteError, match="can't be used"):
            list(open_remote(RemoteAddress("s3", bucket.name, "")).files())
        assert 3 < time.monotonic() - start < 2 * 4
    with socket.create_server(("127.0.0.1", 0)) as silent:
        script = SCRIPT.format(address="hf://team/deltas", folder=str(tmp_path / "copy"))
        answer = ask_afresh(script, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert answer["seconds"] < 6, answer


def test_credentials_of_an_endpoint_are_blacked_out() -> None:
    address = RemoteAddress("s3", "bucket", "")
    error = RemoteError(address, "no answer from https://user:hunter2@s3.example/bucket")
    assert "hunter2" not in str(error)
    assert "https://...@s3.example" in error.reason
