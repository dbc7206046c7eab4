"""Check a user's row of text and turn it into token ids, for training and for serving.

Each text is tokenized alone and in full; this module truncates and joins the ids. The tokenizer's
own truncation of a pair builds every combination of the overflow, which takes minutes and gigabytes
for two long texts. It is also a setting of the shared object, so changing it would be a data race
between threads. `deltas.encoder.packing` packs the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from deltas.errors import InvalidTextError, did_you_mean
from deltas.manifest import PairEncoding, TaskSpec

GENERIC_FIELDS = ("text", "text_pair")
# Spaces, control characters and characters without width, for a set of a regular expression.
INVISIBLE = r"\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
# Other characters of which no token is made, such as those for private use and the mark of lost
# ones (U+FFFD).
_WITHOUT_TOKEN = (
    r"\u0600-\u0605\u061c\u06dd\u070f\u180e\ue000-\uf8ff\ufff9-\ufffb\ufffd\U000110bd"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001\U000e0020-\U000e007f"
    r"\U000f0000-\U0010ffff"
)
_READABLE = re.compile(f"[^{INVISIBLE}{_WITHOUT_TOKEN}]")


def has_text(text: str) -> bool:
    """Tell whether a text gives a token; training and serving refuse all others."""
    return _READABLE.search(text) is not None


@dataclass(frozen=True)
class TokenizedRow:
    """One row, ready for a packed batch."""

    input_ids: list[int]  # special tokens included
    token_type_ids: list[int]  # 0 for the first text, 1 for a second one in the same sequence
    truncated: bool  # text was cut to the task's maximum length
    # Index of the second sequence's first token; None if all texts are in one sequence.
    second_start: int | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens, special tokens included."""
        return len(self.input_ids)

    @property
    def sequences(self) -> list[tuple[list[int], list[int]]]:
        """Input ids and token types of each sequence that the encoder reads by itself."""
        ids, types, start = self.input_ids, self.token_type_ids, self.second_start
        if start is None:
            return [(ids, types)]
        return [(ids[:start], types[:start]), (ids[start:], types[start:])]


def tokenize_rows(
    tokenizer: Any, task: TaskSpec, rows: Sequence[str | Mapping[str, str]]
) -> list[TokenizedRow]:
    """Check rows against the task's fields and tokenize them; thread-safe.

    Args:
        tokenizer: the backbone's.
        task: text fields and maximum length.
        rows: for each row a string (tasks with one text), or an object with the task's fields, or
            with `text` and `text_pair`.

    Raises:
        InvalidTextError: names the first wrong row and field.
    """
    texts = [row_texts(task, row, position) for position, row in enumerate(rows)]
    return tokenize_texts(tokenizer, task.max_length, texts, pairs=task.pairs)


def tokenize_texts(
    tokenizer: Any,
    max_length: int,
    texts: Sequence[tuple[str, ...]],
    *,
    pairs: PairEncoding = "joint",
) -> list[TokenizedRow]:
    """Tokenize checked texts, one or two per row; thread-safe.

    If pairs are read separately, each text is a sequence of at most `max_length` tokens; otherwise
    the texts of a row share one. A long sequence is truncated like `transformers` does with
    truncation="longest_first": from the end of the longer text until both have the same length,
    then from both.
    """
    plain = _plain(tokenizer)
    flat = [text for row in texts for text in row]
    ids = iter(encoding.ids for encoding in plain.encode_batch_fast(flat, add_special_tokens=False))
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = ([next(ids) for _ in row] for row in texts)
    if pairs == "joint":
        return [_join(parts, max_length, cls, sep) for parts in rows]
    return [_side_by_side([_join([part], max_length, cls, sep) for part in row]) for row in rows]


def _side_by_side(sequences: list[TokenizedRow]) -> TokenizedRow:
    first, second = sequences
    return TokenizedRow(
        first.input_ids + second.input_ids,
        first.token_type_ids + second.token_type_ids,
        first.truncated or second.truncated,
        first.num_tokens,
    )


def _join(parts: list[list[int]], max_length: int, cls: int, sep: int) -> TokenizedRow:
    """Frame texts as [CLS] a [SEP] b [SEP], with type 1 from b on (BERT, section 3.2)."""
    kept = _kept_lengths([len(part) for part in parts], max_length - 1 - len(parts))
    input_ids, token_type_ids = [cls], [0]
    for token_type, (part, length) in enumerate(zip(parts, kept, strict=True)):
        input_ids += [*part[:length], sep]
        token_type_ids += [token_type] * (length + 1)
    truncated = sum(kept) < sum(map(len, parts))
    return TokenizedRow(input_ids, token_type_ids, truncated)


def _kept_lengths(lengths: list[int], most: int) -> list[int]:
    """Return the truncated lengths; an odd token goes to the longer text, else to the second."""
    if sum(lengths) <= most:
        return lengths
    if len(lengths) == 1:
        return [most]
    shorter, longer = sorted(lengths)
    shorter, longer = min(shorter, most // 2), max(most - shorter, most - most // 2)
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


def row_texts(task: TaskSpec, row: object, position: int) -> tuple[str, ...]:
    """Return the row's texts in the order of the task's fields.

    Raises:
        InvalidTextError: the row has the wrong type, or a field is missing, unknown or not a
            string.
    """
    fields = task.text_fields
    if isinstance(row, str):
        if len(fields) == 2:
            problem = f"{task.name!r} takes two texts: give an object with {_listed(fields)}"
            raise InvalidTextError(position, None, problem)
        return (_check_text(row, position, None),)
    if not isinstance(row, Mapping):
        wanted = f"an object with {_listed(fields)}"
        wanted = wanted if len(fields) == 2 else f"a string or {wanted}"
        raise InvalidTextError(position, None, f"must be {wanted}, not {_json_type(row)}")
    generic = GENERIC_FIELDS[: len(fields)]
    used = generic if set(row) == set(generic) != set(fields) else fields
    for name in row:
        if name not in used:
            problem = f"is not a field of {task.name!r}, which takes {_listed(fields)}."
            problem += did_you_mean(str(name), fields)
            raise InvalidTextError(position, str(name)[:64], problem)
    for name in used:
        if name not in row:
            problem = f"is missing; {task.name!r} takes {_listed(fields)}"
            raise InvalidTextError(position, name, problem)
    return tuple(_check_text(row[name], position, name) for name in used)


def _check_text(text: object, position: int, field: str | None) -> str:
    if not isinstance(text, str):
        raise InvalidTextError(position, field, f"must be a string, not {_json_type(text)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"has a lone surrogate at character {error.start}; send valid Unicode"
        raise InvalidTextError(position, field, problem) from None
    return text


def _json_type(value: object) -> str:
    """Return the JSON name of a value's type, since nearly all rows arrive as JSON."""
    names = {"NoneType": "null", "bool": "a boolean", "int": "a number", "float": "a number"}
    names |= {"list": "an array", "tuple": "an array", "dict": "an object", "str": "a string"}
    return names.get(type(value).__name__, type(value).__name__)


def _listed(fields: Sequence[str]) -> str:
    return " and ".join(repr(field) for field in fields)


def plain_copy(tokenizer: Any) -> Any:
    """Return a tokenizer's backend that neither truncates nor pads: a copy unless it is plain."""
    backend = tokenizer.backend_tokenizer
    if getattr(tokenizer, "is_plain", False):  # one copy less takes 10 MB and 0.1 s less
        return backend
    plain = type(backend).from_str(backend.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


_plain = lru_cache(maxsize=8)(plain_copy)
