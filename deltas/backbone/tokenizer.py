"""From a user's row of text to token ids, the same way in training and in serving.

Texts are tokenized alone and uncut, then cut and joined here. Left to the tokenizer, cutting a
pair makes every combination of what was cut off: minutes and gigabytes for two long texts. Its
truncation is also a setting of the shared object, so that changing it is a data race between
threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deltas.errors import InvalidTextError, did_you_mean
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
    """Tokenize checked texts, one or two a row; thread-safe.

    What doesn't fit is cut as `transformers` does with truncation="longest_first": from the end of
    the longer text until both are of one length, then from both.
    """
    plain = _plain(tokenizer)
    flat = [text for row in texts for text in row]
    ids = iter(encoding.ids for encoding in plain.encode_batch_fast(flat, add_special_tokens=False))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    return [_joined([next(ids) for _ in row], max_length, cls, sep) for row in texts]


def _joined(parts: list[list[int]], max_length: int, cls: int, sep: int) -> TokenizedRow:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP] with type 1 from b on; BERT, section 3.2."""
    room = max_length - 1 - len(parts)
    kept = _kept_lengths([len(part) for part in parts], room)
    input_ids, token_type_ids = [cls], [0]
    for kind, (part, length) in enumerate(zip(parts, kept, strict=True)):
        input_ids += [*part[:length], sep]
        token_type_ids += [kind] * (length + 1)
    truncated = sum(kept) < sum(map(len, parts))
    return TokenizedRow(input_ids, token_type_ids, truncated)


def _kept_lengths(lengths: list[int], room: int) -> list[int]:
    """How many tokens of each text stay; an odd one goes to the longer text, else the second."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    shorter, longer = sorted(lengths)
    shorter, longer = min(shorter, room // 2), max(room - shorter, room - room // 2)
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


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
        raise InvalidTextError(position, None, f"must be {wanted}, not {_json_type(row)}")
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
        raise InvalidTextError(position, field, f"must be a string, not {_json_type(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTextError(
            position,
            field,
            f"has half a surrogate pair at character {error.start}; send valid Unicode",
        ) from None
    return text


def _json_type(value: object) -> str:
    """What a value is called in JSON, where nearly all rows come from."""
    names = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number"}
    names |= {"list": "an array", "tuple": "an array", "dict": "an object", "str": "a string"}
    return names.get(type(value).__name__, type(value).__name__)


def _unknown_field(name: str, task: TaskSpec) -> str:
    hint = did_you_mean(name, task.text_fields)
    return f"is not a field of {task.name!r}, which takes {_listed(task.text_fields)}.{hint}"


def _listed(fields: Sequence[str]) -> str:
    return " and ".join(repr(field) for field in fields)


@lru_cache(maxsize=8)
def _plain(tokenizer: Any) -> Any:
    return plain_copy(tokenizer)


def plain_copy(tokenizer: Any) -> Any:
    """The backend of a tokenizer as a copy that neither cuts nor pads, whatever is set on it."""
    backend = tokenizer.backend_tokenizer
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain
