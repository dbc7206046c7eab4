"""Example inputs for the known tasks; the texts are in `examples.toml`.

None of the texts comes from GLUE. Other tasks have no examples.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_MAX_TITLE_LENGTH = 76

# For "All tasks on one text", by number of text fields: a text that makes sense to every task.
_SHARED = {
    1: (
        "The soup was cold, the waiter was colder, "
        "and I would go back tomorrow for the bread alone.",
    ),
    2: (
        "The library stays open until midnight during the exam weeks.",
        "During exams you can study in the library at eleven in the evening.",
    ),
}


@dataclass(frozen=True)
class Example:
    """An example input with the answer of its author.

    Attributes:
        texts: one for each text field of the task, in its order.
        answer: the author's answer, a label or words for a value; a delta may differ.
        hard: the reason why the example is hard; empty for plain ones.
    """

    texts: tuple[str, ...]
    answer: str
    hard: str = ""

    @property
    def title(self) -> str:
        """The reason why the example is hard, and the beginning of each text."""
        length = _MAX_TITLE_LENGTH // len(self.texts)
        text = " / ".join(_shorten(text, length) for text in self.texts)
        return f"{self.hard.capitalize()}: {text}" if self.hard else text


def examples_of(task: str, num_fields: int) -> tuple[Example, ...]:
    """Return the examples of a task that have the given number of text fields."""
    return tuple(item for item in _all_examples().get(task, ()) if len(item.texts) == num_fields)


def shared_example(num_fields: int) -> tuple[str, ...]:
    """Return texts for every task with the given number of text fields; empty texts if unknown."""
    return _SHARED.get(num_fields, ("",) * num_fields)


@cache
def _all_examples() -> dict[str, tuple[Example, ...]]:
    tables = tomllib.loads(Path(__file__).with_name("examples.toml").read_text(encoding="utf-8"))
    return {
        task: tuple(
            Example(tuple(item["texts"]), item["answer"], item.get("hard", "")) for item in items
        )
        for task, items in tables.items()
    }


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length].rstrip(" ,.") + "..."
