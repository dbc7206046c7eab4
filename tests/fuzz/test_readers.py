"""The readers on a few hundred hostile inputs each; `make fuzz` runs them for as long as you like.

Inputs depend on the number of the input alone. So a failure names an input that can be made again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz.limits import Reader, TooSlowError, check_message, cpu_limit, examine
from tests.fuzz.mutation import mutate_delta, mutate_safetensors, mutate_text, with_header
from tests.fuzz.readers import READERS, prepare

# Loading a backbone takes a hundred times as long as reading rows.
INPUTS = {"delta": 120, "backbone-config.json": 40, "backbone-model.safetensors": 8}
SLOW_INPUTS = 4
FAST_INPUTS = 60


def count_of(name: str) -> int:
    return INPUTS.get(name, SLOW_INPUTS if name.startswith("backbone-") else FAST_INPUTS)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The warnings about odd rows are as many as the rows."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries, about the files
@pytest.mark.parametrize("name", READERS)
def test_a_hostile_input_is_a_value_or_a_documented_error(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    prepare(reader, tmp_path)
    seeds, outcomes = reader.seeds(), Counter[str]()
    for number in range(count_of(name)):
        rng, content = Random(f"{name} {number}"), seeds[number % len(seeds)]
        if number >= len(seeds):
            for _ in range(rng.choice((1, 1, 2))):
                content = reader.mutate(content, rng)
        try:
            outcomes[examine(reader, tmp_path, content)] += 1
        except (Exception, TooSlowError) as error:
            error.add_note(f"input {number} of {name}: {content[:200]!r} ({len(content)} bytes)")
            raise
    assert len(outcomes) > 1 or name in ("backbone-vocab.txt", "backbone-modules.json"), outcomes
    assert outcomes["value"]


def test_a_mutation_depends_on_its_seed_alone() -> None:
    (seed, *_) = READERS["delta"].seeds()
    for number in range(5):
        first, second = (mutate_delta(seed, Random(number)) for _ in range(2))
        assert first == second
        assert json.dumps({"a": [1]}) != mutate_text('{"a": [1]}', Random(number))


@pytest.mark.parametrize("header", ['{"a": {"dtype": "F32"}}', '{"a": 1}', "[1]", "[]", "no JSON"])
def test_a_file_that_lost_its_form_can_still_be_mutated(header: str) -> None:
    """A long run mutates its own inputs; an error of the mutation would end the run."""
    content = with_header(header, b"1234")
    assert len({mutate_safetensors(content, Random(number)) for number in range(100)}) > 10


def _reader(read: object, name: str = "x") -> Reader:
    return Reader(name, "x.txt", list, lambda data, rng: data, read, (ValueError,))  # type: ignore[arg-type]


def _spin() -> None:
    while True:
        pass


def test_the_examination_finds_what_breaks_a_promise(tmp_path: Path) -> None:
    """An error of another kind, two outcomes, a message without the file, and too much time."""
    answers = iter("ab")

    def refuse(message: str) -> str:
        raise ValueError(message)

    assert examine(_reader(Path.read_text), tmp_path, b"text") == "value"
    assert (
        examine(_reader(lambda path: refuse(f"{path}: bad 12")), tmp_path, b"") == "/x.txt: bad N"
    )
    with pytest.raises(KeyError):
        examine(_reader(lambda path: {}[path]), tmp_path, b"")
    with pytest.raises(AssertionError, match="two readings differ"):
        examine(_reader(lambda path: next(answers)), tmp_path, b"")
    for message in ("no file", "x.txt\nb", "x.txt" * 1000):
        with pytest.raises(AssertionError):
            check_message(message, tmp_path / "x.txt", tmp_path)
    with pytest.raises(TooSlowError), cpu_limit(0.05):
        _spin()
