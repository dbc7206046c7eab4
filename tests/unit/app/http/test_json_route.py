"""The number of values in a JSON text is known before the text is parsed."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from app.http import json_route
from app.http.json_route import count_values


def values_in(document: Any) -> int:
    """Strings, commas and opening brackets of a document without spaces."""
    if isinstance(document, str):
        return 1
    if isinstance(document, dict):
        parts = [1 + values_in(value) for value in document.values()]
    elif isinstance(document, list):
        parts = [values_in(value) for value in document]
    else:
        return 0
    return 1 + sum(parts) + max(0, len(parts) - 1)


TEXTS = [
    "",
    "a",
    'a "quoted" [text], {x}',
    "\\",
    '\\"',
    "a\\\\",
    "\n,\n",
    "你,好",
    ",[{" * 9,
    "\\" * 7,
]


def document(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(4 if depth < 4 else 2)
    if kind == 0:
        return draw.choice(TEXTS)
    if kind == 1:
        return draw.choice([None, True, 1, -2.5])
    parts = [document(draw, depth + 1) for _ in range(draw.randrange(5))]
    if kind == 2:
        return parts
    return {f"{draw.choice(TEXTS)}{number}": part for number, part in enumerate(parts)}


@pytest.mark.parametrize("step", [1, 2, 3, 7, 2**18])
def test_values_are_counted_outside_strings(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    monkeypatch.setattr(json_route, "_STEP", step)
    draw = random.Random(0)
    for _ in range(200):
        made = document(draw)
        for ensure_ascii in (False, True):
            text = json.dumps(made, ensure_ascii=ensure_ascii)
            assert count_values(text, 10**9) == values_in(made), text


def test_counting_stops_beyond_the_limit() -> None:
    assert 100 < count_values("[" + "[]," * 10**6, 100) < 10**6
    assert 100 < count_values('["a"' + ',"a"' * 10**6, 100) < 110


@pytest.mark.parametrize("text", ['"', '"\\', '"\\"', '["a', '"a\\\\', '"' + "\\" * 999, "[", ""])
@pytest.mark.parametrize("step", [1, 2, 2**18])
def test_what_is_no_json_is_counted_to_its_end(
    monkeypatch: pytest.MonkeyPatch, text: str, step: int
) -> None:
    monkeypatch.setattr(json_route, "_STEP", step)
    assert count_values(text, 10) <= 2
