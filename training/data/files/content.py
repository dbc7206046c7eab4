"""Opens text files, and names files whose content is something else than their name says.

Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Everything else is refused with the step
that mends it: a guess would turn letters into others without an error.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from training.errors import DataError

_HEAD_BYTES = 4096
_AS_CSV = "open it in a spreadsheet program and save it as CSV UTF-8"
# How a format's files begin, its name, and the step that makes it readable.
_FORMATS = (
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (b"BZh91AY&SY", "a bzip2 archive", "unpack it with bunzip2"),
    (b"\xfd7zXZ\0", "an xz archive", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it with unzstd"),
    (b"\x04\x22\x4d\x18", "an lz4 archive", "unpack it with unlz4"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (b"Rar!\x1a", "a rar archive", "unpack it"),
    (b"PAR1", "a parquet file", "rename it to end in .parquet"),
    (b"ARROW1", "an Arrow file", "rename it to end in .arrow"),
    (b"FEA1", "a Feather file of version 1", "write it again as parquet"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook or another Office file", _AS_CSV),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"%PDF", "a PDF document", "rows are needed, as CSV, JSON Lines or parquet"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
    (b"\x89HDF", "an HDF5 file", "write it again as parquet"),
    (b"\x93NUMPY", "a NumPy file", "write it again as CSV or parquet"),
    (b"\x80\x04\x95", "a pickle, which is never opened, as it may run code", "write it as parquet"),
    (b"\x80\x05\x95", "a pickle, which is never opened, as it may run code", "write it as parquet"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the data", "run git lfs pull"),
)
# A declaration, or a tag directly before another one.
_WEB_PAGE = re.compile(rb"\s*(<!|<\?xml|<html|<[a-z][^<>]*>\s*<)", re.IGNORECASE)
_JSON = re.compile(r"\s*(\[\s*)?\{\s*\"")
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Encodings with NUL in each ASCII character: bytes a character, and the place of its own byte.
_WIDE = (("UTF-32LE", 4, 0), ("UTF-32BE", 4, 3), ("UTF-16LE", 2, 0), ("UTF-16BE", 2, 1))
_WIDE_START = 4  # characters that must be ASCII


def read_head(path: Path) -> bytes:
    """Return the first bytes of a file.

    Raises:
        DataError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", path=path) from error


def foreign_format(head: bytes) -> str:
    """Return the format of a file that is not text, by its first bytes, and the remedy, or ""."""
    for start, name, remedy in _FORMATS:
        if head.startswith(start):
            return f"the content is {name}, whatever the file is called; {remedy}"
    if head.startswith(b"PK\x03\x04"):
        if any(part in head for part in (b"xl/", b"[Content_Types].xml", b"opendocument")):
            return f"the content is an Excel workbook or another Office file; {_AS_CSV}"
        return f"the content is a zip archive or a workbook; unpack it, or {_AS_CSV}"
    if head[257:262] == b"ustar":
        return "the content is a tar archive; unpack it, and name a file of it"
    if _WEB_PAGE.match(head.removeprefix(codecs.BOM_UTF8)):
        return (
            "the content is a web page or XML, perhaps an error page of a failed download; fetch "
            "the file itself"
        )
    return ""


def is_text(head: bytes) -> bool:
    """Return True if the first bytes of a file are UTF-8 without NUL."""
    with suppress(UnicodeDecodeError):
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(head) and bool(head)
    return False


def is_json(text: str) -> bool:
    """Return True for the beginning of a JSON object, or of an array of objects."""
    return bool(_JSON.match(text))


def encoding_of(head: bytes) -> str:
    """Return a text file's encoding by its byte order mark; UTF-8 without one."""
    found = (name for mark, name in _ENCODINGS.items() if head.startswith(mark))
    return next(found, "utf-8-sig")


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Open a text file, whose line ends are kept.

    Raises:
        DataError: the file can't be read, is no text, or is in another encoding.
    """
    head = read_head(path)
    encoding = encoding_of(head)
    if problem := foreign_format(head) or (encoding == "utf-8-sig" and _nul_problem(head)):
        raise DataError(problem, path=path)
    try:
        with path.open(encoding=encoding, newline="") as lines:
            yield lines
    except UnicodeError as error:
        raise DataError(_encoding_problem(path, encoding), path=path) from error
    except OSError as error:
        raise DataError(f"can't be read: {error.strerror}", path=path) from error


def _nul_problem(head: bytes) -> str:
    """Return the problem with the first bytes of a file if they contain NUL, else ""."""
    for coding, width, place in _WIDE:
        if _is_wide(head, coding, width, place):
            return (
                f"not UTF-8, it looks like {coding} without a byte order mark; convert it with "
                f"`iconv -f {coding} -t UTF-8`"
            )
    if b"\0" in head:
        return f"no text: byte {head.index(0):,} is NUL; is this the right file, and undamaged?"
    return ""


def _is_wide(head: bytes, coding: str, width: int, place: int) -> bool:
    """Return True for text of `width` bytes a character, of which the first four are ASCII.

    `place` is that of the byte of an ASCII character that is not NUL.
    """
    start = head[: min(_WIDE_START, len(head) // width) * width]
    others = (byte for at, byte in enumerate(start) if at % width != place)
    if len(start) < 2 * width or any(others) or not all(start[place::width]):
        return False
    text = head[: len(head) // width * width].decode(coding, errors="replace")
    return "\ufffd" not in text[:-1] and "\0" not in text


def _encoding_problem(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    if encoding != "utf-8-sig":
        return f"damaged: it begins like {encoding.upper()}, but is not; write or fetch it again"
    text = content.decode("utf-8", errors="replace")
    position = 0
    try:
        content.decode()
    except UnicodeDecodeError as error:
        position = error.start
    line = content.count(b"\n", 0, position) + 1
    where = f"not UTF-8 (line {line:,}, byte 0x{content[position]:02x})"
    if sum(char > "\x7f" for char in text) > 3 * text.count("\ufffd"):
        return f"{where}, though most of it is; mend this line, or write or fetch the file again"
    start, end = content.rfind(b"\n", 0, position) + 1, content.find(b"\n", position)
    last = min(end if end > 0 else len(content), position + 30)
    shown = content[max(start, position - 30) : last].decode("cp1252", errors="replace").strip()
    return (
        f"{where}; read as WINDOWS-1252 the place is {shown!r}: if that is right, convert the file "
        "with `iconv -f WINDOWS-1252 -t UTF-8`, else with its true encoding after -f"
    )
