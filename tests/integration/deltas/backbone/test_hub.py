"""A hub that doesn't answer is noticed in a bounded time."""

from __future__ import annotations

import re
import socket

import pytest

from deltas.backbone.hub import PROBE_S
from tests.integration.hub_server import Ask

SCRIPT = """
import json, time
from deltas import BackboneError, load_backbone
import huggingface_hub
start = time.perf_counter()
try:
    load_backbone("google-bert/bert-base-uncased")
except BackboneError as error:
    print(json.dumps(dict(seconds=time.perf_counter() - start, message=str(error))))
"""


@pytest.mark.slow
def test_a_backbone_of_a_silent_hub_is_refused_within_five_seconds(ask_afresh: Ask) -> None:
    """The hub's libraries would wait for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        answer = ask_afresh(SCRIPT, endpoint)
    assert answer["seconds"] < 5 + 1.5
    assert re.search(f"{endpoint} (did not answer|can.t be reached)", answer["message"])


def test_the_wait_for_the_hub_takes_less_than_five_seconds() -> None:
    assert PROBE_S < 5
