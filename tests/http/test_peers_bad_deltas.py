"""Peers' rows 9 and 13: a bad delta never harms the server, and a delta of another base is refused.

The numbers are those of the list of ways in which other servers of adapters failed their users.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file, save_file

from app.main import create_app
from app.process.settings import Settings
from deltas import (
    Backbone,
    DeltaMismatchError,
    TaskSpec,
    delta_path,
    load_backbone,
    read_delta,
    write_delta,
)
from deltas.format import check_backbone

Start = Callable[..., TestClient]
Spoil = Callable[[bytes], bytes]


def _header(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _with_header(header: str, data: bytes) -> bytes:
    text = header.encode() + b" " * (-len(header.encode()) % 8)
    return struct.pack("<Q", len(text)) + text + data


def _compact(header: dict[str, Any]) -> str:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False)


def _changed(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Return a function that changes the header of a file."""

    def spoil(content: bytes) -> bytes:
        header, data = _header(content)
        change(header)
        return _with_header(_compact(header), data)

    return spoil


def _key_twice(content: bytes) -> bytes:
    header, data = _header(content)
    return _with_header(_compact(header).replace('"version":', '"version":"0","version":', 1), data)


def _huge_header(content: bytes) -> bytes:
    header, data = _header(content)
    header["__metadata__"]["deltabert"] += " " * 50 * 2**20
    return _with_header(_compact(header), data)


# What is spoilt, and the reason that `GET /deltas` gives.
BAD: dict[str, tuple[Spoil, str]] = {
    "truncated": (lambda content: content[:-100], "cut off or still being copied"),
    "truncated in the header": (lambda content: content[:100], "cut off"),
    "empty": (lambda content: b"", "0 bytes"),
    "NaN": (lambda content: content[:-4] + struct.pack("<f", float("nan")), "NaN or infinite"),
    "a flipped bit": (
        lambda content: content[:-4] + bytes([content[-4] ^ 1]) + content[-3:],
        "damag",
    ),
    "a wrong shape": (
        _changed(lambda header: header["classifier.bias"].update(shape=[1, 2])),
        "head of shape",
    ),
    "a wrong dtype": (
        _changed(lambda header: header["classifier.bias"].update(dtype="I32")),
        "dtype torch.int32",
    ),
    "a huge header": (_huge_header, "at most 4,194,304"),
    "a header that lies": (
        lambda content: struct.pack("<Q", 2**62) + content[8:],
        "the header has",
    ),
    "a key twice": (_key_twice, "named more than once: version"),
    "a pickle": (lambda content: b"\x80\x04\x95" + content[3:], "not a readable safetensors file"),
}


@pytest.mark.parametrize("max_slots", [0, 2], ids=["resident", "slots"])
def test_peers_row_09_a_bad_delta_harms_no_other(
    start: Start,
    tiny_deltas: Path,
    tiny_backbone: Backbone,
    toy_tasks: dict[str, TaskSpec],
    make_delta: Callable[..., Any],
    tmp_path: Path,
    max_slots: int,
) -> None:
    """All kinds at once: each is refused with its reason; the others answer as before."""
    shutil.copytree(tiny_deltas, tmp_path, dirs_exist_ok=True)
    expected = _answers(start(deltas=(tmp_path,)), toy_tasks)
    for number, (spoil, _) in enumerate(BAD.values()):
        task = toy_tasks["toy2"].model_copy(update={"name": f"bad{number}"})
        path = delta_path(tmp_path, tiny_backbone.ref.id, task.name, "bitfit")
        write_delta(make_delta(tiny_backbone, task, "bitfit"), path)
        path.write_bytes(spoil(path.read_bytes()))
    client = start(deltas=(tmp_path,), max_slots=max_slots)
    asked = [client.post(f"/predict/bad{n}", json={"inputs": "x"}) for n in range(len(BAD))]
    reasons = {
        item["file"].split("/")[1]: item["reason"]
        for item in client.get("/deltas").json()["rejected"]
    }
    for number, (kind, (_, reason)) in enumerate(BAD.items()):
        answer = asked[number]
        assert answer.status_code in (404, 503), kind
        told = reasons.get(f"bad{number}") or answer.json()["error"]["message"]
        assert reason in told, kind
        assert str(tmp_path) not in told
        # Nothing of the task stays behind: neither a strategy without weights nor a slot.
        again = client.post(f"/predict/bad{number}", json={"inputs": "x"})
        assert again.status_code in (404, 503), kind
    assert _answers(client, toy_tasks) == expected
    assert client.get("/health/ready").status_code == 200


def _answers(client: TestClient, tasks: dict[str, TaskSpec]) -> list[Any]:
    """The answers of all sound tasks and strategies to one row."""
    found = []
    for task in tasks.values():
        row: Any = dict.fromkeys(task.text_fields, "a very good film")
        for strategy in ("bitfit", "layernorm", "head"):
            body = {"inputs": [row], "strategy": strategy}
            response = client.post(f"/predict/{task.name}", json=body)
            assert response.status_code == 200, response.text
            found.append(response.json()["predictions"])
    return found


@pytest.fixture
def another(tiny_backbone_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone, to be changed."""
    return Path(shutil.copytree(tiny_backbone_dir, tmp_path / "another"))


def _other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    draw = torch.Generator().manual_seed(1)
    values = {name: torch.randn(v.shape, generator=draw) for name, v in load_file(path).items()}
    save_file(values, path, metadata={"format": "pt"})


def _flipped_bit(folder: Path) -> None:
    """Flip the lowest bit of one weight: 1 of 300,000 bits or so."""
    path = folder / "model.safetensors"
    values = load_file(path)
    values["encoder.layer.1.output.dense.weight"].view(torch.int32)[7, 11] ^= 1
    save_file(values, path, metadata={"format": "pt"})


def _cased(folder: Path) -> None:
    """Let the tokenizer keep capitals, as that of bert-base-cased; the weights stay."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace('"lowercase": true', '"lowercase": false')
        text = text.replace('"lowercase":true', '"lowercase":false')
        (folder / name).write_text(text, encoding="utf-8")


def _other_vocabulary(folder: Path) -> None:
    """Swap two pieces, so that every size stays the same."""
    path = folder / "tokenizer.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = facts["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    path.write_text(json.dumps(facts), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_other_weights, "fingerprint"),
        (_flipped_bit, "fingerprint"),
        (_cased, "tokenizer_fingerprint"),
        (_other_vocabulary, "tokenizer_fingerprint"),
    ],
    ids=["other weights", "one flipped bit", "cased", "other vocabulary"],
)
def test_peers_row_13_a_delta_of_another_base_is_refused(
    another: Path,
    tiny_backbone: Backbone,
    tiny_deltas: Path,
    change: Callable[[Path], None],
    part: str,
) -> None:
    """Every shape is the same, so that nothing but the fingerprints tells; both are named."""
    assert load_backbone(str(another)).ref.fingerprint == tiny_backbone.ref.fingerprint
    change(another)
    other = load_backbone(str(another))
    prints = [getattr(ref, part) for ref in (tiny_backbone.ref, other.ref)]
    assert prints[0] != prints[1]
    path = next(tiny_deltas.rglob("bitfit.safetensors"))
    with pytest.raises(DeltaMismatchError) as caught:
        check_backbone(read_delta(path).manifest, other.ref)
    assert all(each in str(caught.value) for each in prints)
    settings = Settings(deltas=(tiny_deltas,), zoo=False, device="cpu", warm_up=False)
    with TestClient(create_app(settings, backbone=other)) as client:
        found = client.get("/deltas").json()
        assert found["deltas"] == []
        assert len(found["rejected"]) == len(list(tiny_deltas.rglob("*.safetensors")))
        assert all(each in item["reason"] for item in found["rejected"] for each in prints)
        assert client.post("/predict/toy2", json={"inputs": "x"}).status_code == 404
