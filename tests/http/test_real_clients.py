"""The real packages of all clients work with one real server, as does each example of the guide.

The server is a process of its own, serves the shipped deltas, and has keys: one for everyone, one
for one task, one for changes. Packages that are not installed are skipped by name.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

import deltabert
from tests.http.admin_key import KEY, KEYS
from tests.http.server_process import Server, call, url_of
from tests.http.test_keys import key, secret_of

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "clients.md"
GENERATOR = "openapi-python-client==0.29.1"
ROWS = ["A delight.", "A bore.", "Not bad at all."]

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of other packages


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that serves the shipped deltas."""
    environment = {
        "DELTABERT_PORT": "0",
        "DELTABERT_WARM_UP": "false",
        "DELTABERT_DELTAS": str(tmp_path_factory.mktemp("deltas")),
        "DELTABERT_KEYS": KEYS + key("router", "predict", "sst2"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    server = Server(("-m", "app"), environment)
    try:
        yield url_of(server)
    finally:
        server.end()


def own(url: str, task: str, rows: Any) -> list[dict[str, Any]]:
    """The answers that `/predict` gives."""
    status, body = call(f"{url}/predict/{task}", {"inputs": rows})
    assert status == 200, body
    predictions: list[dict[str, Any]] = body["predictions"]
    return predictions


EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_of_the_guide_works(url: str, example: str) -> None:
    if "triton" in example:
        pytest.importorskip("tritonclient.http", reason="needs the extra dev, installed again")
    program = example.replace("127.0.0.1:8000", url.removeprefix("http://"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"ROUTER": secret_of("router"), "PATH": ""},
        cwd=GUIDE.parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"positive|entailment", done.stdout), done.stdout


def test_huggingface_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # of the tests
    from huggingface_hub import InferenceClient
    from huggingface_hub.errors import HfHubHTTPError

    client = InferenceClient(model=f"{url}/hf/sst2", token=KEY)
    found = client.text_classification(ROWS[0])
    (expected,) = own(url, "sst2", ROWS[:1])
    assert {each.label: each.score for each in found} == pytest.approx(expected["scores"])
    (best,) = client.text_classification(ROWS[0], top_k=1, function_to_apply="sigmoid")
    assert best.label == expected["label"]
    for wrong in (
        lambda: client.zero_shot_classification("a", ["b", "c"]),
        lambda: client.question_answering(question="a", context="b"),
        lambda: client.feature_extraction("a", normalize=True),
    ):
        with pytest.raises((HfHubHTTPError, ValueError, KeyError, TypeError)) as caught:
            wrong()
        assert isinstance(caught.value, HfHubHTTPError), caught.value
        assert caught.value.response.status_code == 422
        assert "text classification" in str(caught.value)


def test_tritonclient(url: str) -> None:
    triton = pytest.importorskip("tritonclient.http", reason="needs the extra dev, installed again")
    utils = pytest.importorskip("tritonclient.utils")
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("sst2")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "DeltaBERT"
    assert client.get_model_metadata("stsb")["outputs"][0]["name"] == "value"
    assert {"sst2", "sst2:head"} <= {each["name"] for each in client.get_model_repository_index()}
    expected = own(url, "sst2", ROWS)
    labels = [each["label"].encode() for each in expected]
    for as_bytes in (True, False):
        text = triton.InferInput("text", [len(ROWS), 1], "BYTES")
        texts = np.array([[row.encode()] for row in ROWS], dtype=object)
        text.set_data_from_numpy(texts, binary_data=as_bytes)
        outputs = [triton.InferRequestedOutput("scores", binary_data=as_bytes)]
        outputs.append(triton.InferRequestedOutput("label", binary_data=as_bytes))
        answer = client.infer("sst2", [text], outputs=outputs, request_id="7")
        found = [
            each if isinstance(each, bytes) else each.encode() for each in answer.as_numpy("label")
        ]
        assert found == labels
        best = [max(each["scores"].values()) for each in expected]
        assert answer.as_numpy("scores").max(axis=1) == pytest.approx(best, abs=1e-5)
        assert answer.get_response()["id"] == "7"
        everything = client.infer("sst2", [text])
        assert everything.as_numpy("score") == pytest.approx(best, abs=1e-5)
        counted = [triton.InferRequestedOutput("scores", class_count=1)]
        assert client.infer("sst2", [text], outputs=counted).as_numpy("scores").shape == (3, 1)
    wrong = triton.InferInput("no-such-field", [1], "BYTES")
    wrong.set_data_from_numpy(np.array([b"a"], dtype=object))
    with pytest.raises(utils.InferenceServerException, match="is not a field of 'sst2'"):
        client.infer("sst2", [wrong])
    with pytest.raises(utils.InferenceServerException, match="needs a key"):
        client.load_model("sst2")
    admin = {"Authorization": f"Bearer {KEY}"}
    client.load_model("sst2:head", headers=admin)
    with pytest.raises(utils.InferenceServerException, match="name it: sst2:bitfit"):
        client.unload_model("sst2", headers=admin)
    client.close()


def test_our_client(url: str) -> None:
    with deltabert.Client(url, rows_per_request=2) as client:
        answers = client.predict("sst2", ROWS)
        expected = own(url, "sst2", ROWS)
        assert [row.model_dump() for row in answers.rows] == [
            each | {"scores": pytest.approx(each["scores"]), "score": pytest.approx(each["score"])}
            for each in expected
        ]
        assert list(client.stream("sst2", iter(ROWS))) == answers.rows
        two = client.fan_out(ROWS[0], ["sst2", ("cola", "layernorm")], top_k=1)
        assert [(each.task, each.strategy) for each in two] == [
            ("sst2", "bitfit"),
            ("cola", "layernorm"),
        ]
        (value,) = client.predict("stsb", {"text": "a", "text_pair": "b"}).rows
        assert isinstance(value, deltabert.ValueAnswer)
        assert {task.task for task in client.tasks()} >= {"sst2", "stsb"}
        assert {each.strategy for each in client.deltas(task="sst2")} >= {"bitfit", "head"}
        assert client.health().ready
        with pytest.raises(deltabert.RefusedError, match="empty list") as caught:
            client.predict("sst2", [])
        assert (caught.value.status, caught.value.code) == (422, "invalid_input")
    with deltabert.Client(url, key="wrong") as client, pytest.raises(deltabert.RefusedError):
        client.tasks()
    with (
        deltabert.Client("http://127.0.0.1:9", timeout_s=5) as client,
        pytest.raises(deltabert.UnreachableError, match="is the server running there"),
    ):
        client.health()


def test_our_async_client(url: str) -> None:
    async def ask() -> Any:
        async with deltabert.AsyncClient(url, rows_per_request=1) as client:
            answers = await client.predict("sst2", ROWS)
            streamed = [row async for row in client.stream("sst2", ROWS * 3)]
            (first,) = await client.fan_out(ROWS, ["sst2"])
            deltas = [each async for each in client.deltas(q="sst2/head")]
            ready = await client.health()
            return answers, streamed, first, deltas, await client.tasks(), ready

    answers, streamed, first, deltas, tasks, ready = asyncio.run(ask())
    decisions = [row.decision for row in answers.rows]
    assert [row.decision for row in streamed] == decisions * 3
    assert [row.decision for row in first.rows] == decisions
    assert [(each.task, each.strategy) for each in deltas] == [("sst2", "head")]
    assert ready.ready
    assert tasks


def test_a_generated_client_is_typed_and_works(url: str, tmp_path: Path) -> None:
    """The generator's pins do not fit ours, so it has an environment of its own."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = str(environment / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", GENERATOR]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{GENERATOR} can't be installed: {done.stderr[-200:]}")
    document = tmp_path / "openapi.json"
    document.write_bytes(httpx2.get(f"{url}/openapi.json").content)
    generate = [str(environment / "bin" / "openapi-python-client"), "generate", "--meta", "none"]
    generate += ["--path", str(document), "--output-path", str(tmp_path / "bert_client")]
    made = subprocess.run(generate, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "parsing" not in made.stdout, made.stdout
    assert "Unable to" not in made.stdout, made.stdout
    done = subprocess.run(
        [python, "-c", PROGRAM, url], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["positive", "negative", "422", "positive"]


PROGRAM = """
import sys, typing
from bert_client import Client
from bert_client.api.clients import classify_for_hub
from bert_client.api.predictions import predict
from bert_client.models import ErrorBody, LabelPrediction, LabelScore, PredictRequest
from bert_client.models import PredictResponse, TextClassificationRequest

client = Client(base_url=sys.argv[1])
hints = typing.get_type_hints(predict.sync)
assert set(typing.get_args(hints["return"])) == {ErrorBody, PredictResponse, type(None)}
answer = predict.sync("sst2", client=client, body=PredictRequest(inputs=["A delight.", "A bore."]))
for row in answer.predictions:
    assert isinstance(row, LabelPrediction)
    print(row.label)
wrong = predict.sync_detailed("sst2", client=client, body=PredictRequest(inputs=[]))
assert isinstance(wrong.parsed, ErrorBody)
print(wrong.status_code.value)
body = TextClassificationRequest(inputs="A delight.")
lists = classify_for_hub.sync("sst2", client=client, body=body)
assert isinstance(lists[0][0], LabelScore)
print(lists[0][0].label)
"""


def test_the_guide_has_an_example_for_every_protocol() -> None:
    names = (
        "from deltabert",
        "huggingface_hub",
        "/tei/",
        "tritonclient",
        "/classify",
        "/invocations",
    )
    text = "".join(EXAMPLES)
    assert not [name for name in names if name not in text]
    assert len(EXAMPLES) == 8
