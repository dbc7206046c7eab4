"""Reads single cells of a label column: numbers, and lists that were written as text.

Python's own `float` takes too much: underscores, "nan", "inf" and the digits of other scripts.
Lists as text are what pandas, NumPy and others write into CSV files: `['a', 'b']`, `["a", "b"]`,
`['a' 'b']`, `[0. 1. 1.]`, `[np.str_('a')]`, `tensor([0, 1])`, or `"a", "b"` without brackets.
`training.data.labels.forms` decides which cells are what.
"""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from contextlib import suppress
from typing import Any

from deltas.backbone.tokenizer import INVISIBLE

_VISIBLE = re.compile(f"[^{INVISIBLE}]")
_POINT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_COMMA = re.compile(r"[+-]?\d+(,\d+)?", re.ASCII)
# Groups of three digits, as in 1,234.5, in 1.234,5, in 1'234.5 and in 1 234,5.
_GROUPED = re.compile(r"[+-]?\d{1,3}((,\d{3})+(\.\d+)?|(\.\d{3})+(,\d+)?|([' ]\d{3})+([.,]\d+)?)")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
_OTHER_MARKS = str.maketrans("−٫٬", "-.,")  # noqa: RUF001 - the minus sign, and Arabic marks
_AROUND_NUMBERS = re.compile(r"[%‰$€£¥_\s]")

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_QUOTED_LIST = re.compile(rf"(?:{_QUOTED})(?:(?:\s*,\s*|\s+)(?:{_QUOTED}))*\s*,?", re.DOTALL)
_WRAPPER = re.compile(
    r"(?:\w+\.)?(?:array|tensor|frozenset|set|list|tuple)\((?P<inner>.*?)(?:,\s*\w+=[^()]*)*\)",
    re.DOTALL,
)
# An item with its type, as NumPy writes it: np.str_('a'), np.int64(1), np.True_.
_TYPED = re.compile(rf"\b(?:np|numpy)\.(?:(True|False)_|\w+\(({_QUOTED}|[^()'\"]*)\))", re.DOTALL)
_CONSTANTS = {"True": True, "False": False, "None": None, "nan": None}
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


def is_blank(value: Any) -> bool:
    """Return True for a missing value, and for a text without visible characters.

    Characters for private use count as visible: a label may be any sign of its users' font.
    """
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and _VISIBLE.search(value) is None)


def parse_number(value: Any, decimal: str = ".") -> float | None:
    """Return a finite number, or None for all else; `decimal` is the mark in texts.

    A text must be written in the digits 0 to 9, without marks between groups of digits.
    """
    if isinstance(value, str):
        text = value.strip()
        if not (_POINT if decimal == "." else _COMMA).fullmatch(text):
            return None
        value = text.replace(",", ".")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def resembles_number(text: str) -> bool:
    """Return True for a text that people read as a number, though it is not written as one."""
    plain = unicodedata.normalize("NFKC", text).translate(_OTHER_MARKS)
    plain = "".join(str(unicodedata.decimal(char, char)) for char in plain)  # of other scripts
    plain = _AROUND_NUMBERS.sub("", plain)
    return bool(_POINT.fullmatch(plain) or _COMMA.fullmatch(plain) or _GROUPED.fullmatch(plain))


def may_be_thousands(text: str) -> bool:
    """Return True for a number like 1,234 or 1.234, whose mark may be a decimal mark or not."""
    return bool(_THOUSANDS.fullmatch(text.strip()))


def parse_list(text: str) -> list[Any] | None:
    """Return the items of a list that was written as text, or None for any other text."""
    text = _TYPED.sub(r"\1\2", text.strip())
    if wrapped := _WRAPPER.fullmatch(text):
        text = wrapped["inner"].strip() or "[]"
    if _QUOTED_LIST.fullmatch(text):  # without brackets
        return [_unquoted(item) for item in re.findall(_QUOTED, text, re.DOTALL)]
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return None
    inner = text[1:-1].strip()
    if not inner:
        return []
    with suppress(ValueError, RecursionError):
        items = json.loads(text)
        return items if isinstance(items, list) and all(map(_is_scalar, items)) else None
    if _QUOTED_LIST.fullmatch(inner):
        return [_unquoted(item) for item in re.findall(_QUOTED, inner, re.DOTALL)]
    if "'" in inner or '"' in inner:
        return None
    return [_bare(item.strip()) for item in inner.rstrip(",").split("," if "," in inner else None)]


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _bare(text: str) -> Any:
    """Return the value of a literal without quotes, which may be a name, too."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    number = parse_number(text)
    return text if number is None else int(number) if number.is_integer() else number


def _unquoted(text: str) -> str:
    """Return the text of a quoted literal."""
    if "\\" in text:
        with suppress(ValueError, SyntaxError):
            return str(ast.literal_eval(text))
    return text[1:-1]
