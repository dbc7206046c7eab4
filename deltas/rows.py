"""From a user's row of text to token ids, the same way in training and in serving.

Each maximum length has its own frozen tokenizer with truncation fixed at its making, because
setting truncation on a shared one (as calling a `transformers` tokenizer does) is a data race
between threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from deltas.errors import InvalidTextError
from deltas.manifest import TaskSpec

GENERIC_FIELDS = ("text", "text_pair")


@dataclass(frozen=True)
class TokenizedRow:
    """One row, ready for a packed batch.

    Attributes:
        input_ids: with the special tokens.
        token_type_ids: 0 for the first text, 1 for the second.
        truncated: whether text was cut to the task's maximum length.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    truncated: bool

    @property
    def num_tokens(self) -> int:
        """Length, special tokens included."""
        return len(self.input_ids)


def tokenize_rows(
    tokenizer: Any, task: TaskSpec, rows: Sequence[str | Mapping[str, str]]
) -> list[TokenizedRow]:
    """Check rows against the task's fields and tokenize them; thread-safe.

    Args:
        tokenizer: the backbone's.
        task: fields and maximum length.
        rows: a string (tasks with one text), or an object with the task's fields, or with `text`
            and `text_pair`.

    Raises:
        InvalidTextError: naming the first wrong row and field.
    """
    texts = [row_texts(task, row, position) for position, row in enumerate(rows)]
    return tokenize_texts(tokenizer, task.max_length, texts)


def tokenize_texts(
    tokenizer: Any, max_length: int, texts: Sequence[tuple[str, ...]]
) -> list[TokenizedRow]:
    """Tokenize checked texts, one or two a row; the longer one is cut first when both don't fit."""
    frozen = _truncating(tokenizer, max_length)
    inputs = [text if len(text) == 2 else text[0] for text in texts]
    return [
        TokenizedRow(encoding.ids, encoding.type_ids, bool(encoding.overflowing))
        for encoding in frozen.encode_batch(inputs)
    ]


def row_texts(task: TaskSpec, row: object, position: int) -> tuple[str, ...]:
    """The row's texts in the order of the task's fields.

    Raises:
        InvalidTextError: the row is of the wrong type, or a field is missing, unknown or not a
            text.
    """
    fields = task.text_fields
    if isinstance(row, str):
        if len(fields) == 2:
            raise InvalidTextError(
                position,
                None,
                f"{task.name!r} takes two texts: give an object with {_listed(fields)}",
            )
        return (_checked(row, position, None),)
    if not isinstance(row, Mapping):
        wanted = f"an object with {_listed(fields)}"
        wanted = wanted if len(fields) == 2 else f"a string or {wanted}"
        raise InvalidTextError(position, None, f"must be {wanted}, not {type(row).__name__}")
    generic = GENERIC_FIELDS[: len(fields)]
    used = generic if set(row) == set(generic) != set(fields) else fields
    for name in row:
        if name not in used:
            raise InvalidTextError(position, str(name)[:64], _unknown_field(str(name), task))
    for name in used:
        if name not in row:
            raise InvalidTextError(
                position, name, f"is missing; {task.name!r} takes {_listed(fields)}"
            )
    return tuple(_checked(row[name], position, name) for name in used)


def _checked(text: object, position: int, field: str | None) -> str:
    if not isinstance(text, str):
        raise InvalidTextError(position, field, f"must be a string, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            position,
            field,
            f"has half a surrogate pair at character {error.start}; send valid Unicode",
        ) from None
    return text


def _unknown_field(name: str, task: TaskSpec) -> str:
    close = get_close_matches(name[:64], task.text_fields, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"is not a field of {task.name!r}, which takes {_listed(task.text_fields)}{hint}"


def _listed(fields: Sequence[str]) -> str:
    return " and ".join(repr(field) for field in fields)


@lru_cache(maxsize=64)
def _truncating(tokenizer: Any, max_length: int) -> Any:
    backend = tokenizer.backend_tokenizer
    frozen = type(backend).from_str(backend.to_str())
    frozen.no_padding()
    frozen.enable_truncation(max_length, strategy="longest_first")
    return frozen
