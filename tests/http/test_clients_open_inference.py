"""`/v2` speaks the Open Inference Protocol: JSON, bytes, metadata, and the repository."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message

from tests.http.admin_key import ADMIN, KEYS

LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, *texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)} | changes


def infer(client: TestClient, model: str, *inputs: Any, **more: Any) -> dict[str, Any]:
    answer = client.post(f"/v2/models/{model}/infer", json={"inputs": list(inputs)} | more)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found | {each["name"]: each for each in found["outputs"]}


def test_every_kind_has_its_tensors(client: TestClient) -> None:
    one = infer(client, "toy2", tensor("text", "a film", "a play"), id="7", model_name="toy2")
    assert (one["model_name"], one["id"]) == ("toy2", "7")
    assert one["scores"]["shape"] == [2, 2]
    assert one["scores"]["parameters"] == {"labels": ["bad", "good"]}
    own = client.post("/predict/toy2", json={"inputs": ["a film", "a play"]}).json()
    assert one["model_version"] == own["version"]
    assert one["label"]["data"] == [each["label"] for each in own["predictions"]]
    several = infer(client, "toymulti", tensor("text", "a film"))
    assert several["fires"]["shape"] == several["scores"]["shape"] == [1, 4]
    assert several["fires"]["data"] == [score >= 0.5 for score in several["scores"]["data"]]
    texts = tensor("second", "he dines"), tensor("first", "a man eats")
    value = infer(client, "toyreg", *texts)["value"]["data"]
    row = {"first": "a man eats", "second": "he dines"}
    own = client.post("/predict/toyreg", json={"inputs": row}).json()
    assert value == pytest.approx([own["predictions"][0]["value"]])


def test_outputs_are_chosen(client: TestClient) -> None:
    wanted = [{"name": "scores", "parameters": {"classification": 3, "binary_data": False}}]
    best = infer(client, "toy68", tensor("utterance", "a", "b"), outputs=wanted)
    assert [each["name"] for each in best["outputs"]] == ["scores"]
    assert best["scores"]["shape"] == [2, 3]
    score, number, label = best["scores"]["data"][0].split(":")
    assert 0 <= float(score) <= 1
    assert label == f"label {number}"


def test_bytes_lie_after_the_json(client: TestClient) -> None:
    text = "ein Film, très bon".encode()
    tail = struct.pack("<I", len(text)) + text
    given = tensor("text", "x", parameters={"binary_data_size": len(tail)})
    del given["data"]
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    headers = {LENGTH: str(len(head))}
    answer = client.post("/v2/models/toy2/infer", content=head + tail, headers=headers)
    assert answer.status_code == 200, answer.text
    size = int(answer.headers[LENGTH])
    found, rest = json.loads(answer.content[:size]), answer.content[size:]
    assert answer.headers["content-type"] == "application/octet-stream"
    sizes = [each["parameters"]["binary_data_size"] for each in found["outputs"]]
    assert sum(sizes) == len(rest)
    scores = struct.unpack("<2f", rest[-8:])
    own = infer(client, "toy2", tensor("text", text.decode()))
    assert scores == pytest.approx(own["scores"]["data"], abs=1e-6)


def test_versions_and_strategies_are_models(client: TestClient) -> None:
    about = client.get("/v2/models/toy2:top:1").json()
    assert about["inputs"] == [{"name": "sentence", "datatype": "BYTES", "shape": [-1]}]
    (version,) = about["versions"]
    path = f"/v2/models/toy2:top:1/versions/{version}"
    answer = client.post(f"{path}/infer", json={"inputs": [tensor("sentence", "a")]})
    assert answer.json()["model_version"] == version
    assert client.get(path).json()["versions"] == [version]
    assert client.get(f"{path}/ready").json() == {"name": "toy2:top:1", "ready": True}
    assert client.get("/v2/models/toy2/ready/").json()["ready"] is True
    for path in ("/v2/models/toy2/versions/1", "/v2/models/toy2:x", "/v2/models/x/ready"):
        missing = client.get(path)
        assert missing.status_code == 404
        assert isinstance(missing.json()["error"], str)


def test_the_server_describes_itself(client: TestClient) -> None:
    assert client.get("/v2/").json()["extensions"][0] == "binary_tensor_data"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    index = client.post("/v2/repository/index", content=b"").json()
    names = [each["name"] for each in index]
    assert {"toy2", "toy2:top:1", "toyreg"} <= set(names)
    assert len(names) == len(set(names)) == 25


@pytest.mark.parametrize(
    ("inputs", "more", "reason"),
    [
        ([tensor("text", "a"), tensor("text_pair", "b")], {}, "is not a field of 'toy2'"),
        ([tensor("text", "a", datatype="FP32")], {}, "must be 'BYTES'"),
        ([tensor("text", "a", shape=[2])], {}, "has the shape [2] and 1 texts"),
        ([tensor("text", "a"), tensor("b", "b", "c")], {}, "1 in 'text' and 2 in 'b'"),
        ([tensor("text", "a")], {"outputs": [{"name": "logits"}]}, "gives label, score, scores"),
        ([tensor("text", "a")], {"parameters": {"priority": 1}}, "'parameters.priority'"),
        ([tensor("text")], {}, "is an empty list"),
        ([tensor("text", "a")], {"model_name": "toy3"}, "is 'toy3', but the path names 'toy2'"),
        ([{"name": "text", "shape": [1], "datatype": "BYTES", "data": [1]}], {}, "not a number"),
        (
            [tensor("text", "a")],
            {"outputs": [{"name": "label", "parameters": {"classification": 1}}]},
            "only scores have one",
        ),
    ],
)
def test_wrong_requests_are_texts(
    client: TestClient, inputs: Any, more: dict[str, Any], reason: str
) -> None:
    answer = client.post("/v2/models/toy2/infer", json={"inputs": inputs} | more)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == {"error"}
    assert reason in answer.json()["error"]


@pytest.mark.parametrize(
    ("length", "body", "status", "reason"),
    [
        ("x", b"{}", 422, "in digits alone"),
        ("99", b"{}", 422, "says 99, but the body has 2 bytes"),
        ("1", b"{}", 400, "not valid JSON"),
        (None, b"", 422, "is missing"),
        (None, b"[]", 422, "must be"),
    ],
)
def test_wrong_bodies_are_texts(
    client: TestClient, length: str | None, body: bytes, status: int, reason: str
) -> None:
    headers = {} if length is None else {LENGTH: length}
    answer = client.post("/v2/models/toy2/infer", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["error"]


def test_models_are_loaded_and_unloaded_by_admins(
    start: Any, folder: Path, tiny_deltas: Path
) -> None:
    client = start(deltas=(folder, tiny_deltas), keys=KEYS)
    (source,) = tiny_deltas.glob("**/toy2/head.safetensors")
    new = folder / source.relative_to(tiny_deltas).parent.parent / "toynew" / "head.safetensors"
    path = "/v2/repository/models/toy2:head"
    assert client.post(f"{path}/load").status_code == 401
    assert isinstance(client.post(f"{path}/load").json()["error"], str)
    loaded = client.post(f"{path}/load", headers=ADMIN, json={})
    assert (loaded.status_code, loaded.json()) == (200, {})
    assert not new.exists()
    upload = client.put("/deltas/toy2/head", content=source.read_bytes(), headers=ADMIN)
    assert upload.status_code == 200, upload.text
    bare = client.post("/v2/repository/models/toy2/unload", headers=ADMIN)
    assert bare.status_code == 422
    assert "name it: toy2:bitfit" in bare.json()["error"]
    assert list(folder.glob("**/toy2/head*.safetensors"))
    gone = client.post(
        f"{path}/unload", headers=ADMIN, json={"parameters": {"unload_dependents": False}}
    )
    assert (gone.status_code, gone.json()) == (200, {})
    assert not list(folder.glob("**/toy2/head*.safetensors"))
    bodies: list[Any] = [{"parameters": {"config": "{}"}}, [], {"parameters": 1}]
    for body in bodies:
        wrong = client.post(f"{path}/load", headers=ADMIN, json=body)
        assert wrong.status_code == 422, wrong.text
    missing = client.post("/v2/repository/models/nothing/load", headers=ADMIN)
    assert missing.status_code == 404
    shutil.rmtree(folder)


def test_flags_with_more_bytes_are_refused_not_cut(client: TestClient) -> None:
    answer = client.post("/v2/repository/index", content=b"{}" + b" " * 5000)
    assert answer.status_code == 422
    assert "at most 4,096 bytes" in answer.json()["error"]


def test_a_client_that_leaves_within_its_flags_is_no_fault(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    parts: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v2/repository/index",
        "raw_path": b"/v2/repository/index",
        "query_string": b"",
        "headers": [],
    }

    async def receive() -> Message:
        return parts.pop(0) if len(parts) > 1 else parts[0]

    async def send(message: Message) -> None: ...

    async def call() -> None:
        await client.app(scope, receive, send)

    assert client.portal is not None
    client.portal.call(call)
    assert not [record for record in caplog.records if record.exc_info]
