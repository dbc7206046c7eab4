"""Read a delta file's bytes and its header; nothing in the file is trusted.

A file may be a pipe, a device or a link to one, larger than memory, or changed while it is read. So
it is opened once without waiting, must be a regular file, and no more is read than its size says.
Files are read, not memory-mapped: if a mapped file shrinks, SIGBUS ends the process.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from deltas.errors import DeltaFormatError

SUFFIX = ".safetensors"
LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
# Far above that of most deltas: 10,000 labels with all their metrics take 2.7 MB. A header of many
# small keys takes 0.27 s and 15 MB of memory for each MB.
MAX_HEADER_BYTES = 4 * 2**20
_MAX_LISTED = 10
_METADATA_KEYS = {"deltabert", "version", "digest", "format"}
_TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
_WIDTHS = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_WIDTHS |= {"I8": 1, "U8": 1, "BOOL": 1}  # bytes of a value; no delta has other dtypes
_ALIGNMENT = 8  # of the tensors, for which safetensors pads the header with spaces


def read_content(path: Path, most_bytes: int | None = None) -> bytes:
    """Read all bytes of a file.

    Args:
        path: the file.
        most_bytes: the size of the largest file that is read.

    Raises:
        DeltaFormatError: the file can't be read, is too large, or its name is not that of a delta.
    """
    with format_errors(path), _opened(path) as (file, size):
        if most_bytes is not None and size > most_bytes:
            reason = f"has {size:,} bytes; a delta of this backbone has at most {most_bytes:,}"
            raise DeltaFormatError(path, f"{reason}: the file is damaged or belongs elsewhere")
        content = file.read(size)
        if len(content) < size or file.read(1):
            raise DeltaFormatError(path, "the file was changed while it was read; read it again")
        return content


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata from a file's header, which is checked against the file's size.

    Raises:
        DeltaFormatError: the file can't be read, or its header is not that of a delta.
    """
    with format_errors(path), _opened(path) as (file, size):
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        _check_length(path, length, size)
        header = parse_header(path, file.read(length))
        _check_offsets(header, size - LENGTH_BYTES - length)
        return metadata_of(path, header)


def header_of(path: Path, content: bytes) -> dict[str, Any]:
    """Return the parsed header of a whole file in memory; errors are those of `format_errors`."""
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    _check_length(path, length, len(content))
    return parse_header(path, content[LENGTH_BYTES : LENGTH_BYTES + length])


@contextmanager
def format_errors(path: Path) -> Iterator[None]:
    """Turn every error of reading `path` into a DeltaFormatError."""
    try:
        yield
    except FileNotFoundError:
        raise DeltaFormatError(path, "no such file") from None
    except OSError as error:  # its text has the path, which is no business of a client
        reason = f"can't be read ({error.strerror or type(error).__name__})"
        raise DeltaFormatError(path, reason) from error
    except MemoryError as error:
        raise DeltaFormatError(
            path, "can't be read (it needs more memory than there is)"
        ) from error
    except (SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).replace(str(path), path.name)
        raise DeltaFormatError(path, f"not a readable safetensors file ({reason})") from error


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Open a regular file; yields it with its size."""
    if path.suffix != SUFFIX:
        reason = f"a delta's name ends in {SUFFIX}; pickled files are never opened"
        raise DeltaFormatError(path, reason)
    try:
        opened = open_regular(path)
    except NotAFileError:
        raise DeltaFormatError(path, "not a file") from None
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        if size < LENGTH_BYTES:  # or a file of the system, which may wait when it is read
            raise ValueError(f"it has {size} bytes")
        yield file, size


class NotAFileError(OSError):
    """A path is a folder, a pipe or a device, or a link to one."""


def open_regular(path: Path) -> IO[bytes]:
    """Open a regular file to read it, without waiting for the writer of a pipe.

    Raises:
        NotAFileError: it is no regular file.
        OSError: it can't be opened.
    """
    # Before opening, since that has effects on some devices; and then again, for what was opened.
    _check_regular(path, path.stat())
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    file = os.fdopen(handle, "rb")
    try:
        _check_regular(path, os.fstat(handle))
    except NotAFileError:
        file.close()
        raise
    return file


def _check_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        is_folder = stat.S_ISDIR(found.st_mode)
        reason = os.strerror(errno.EISDIR) if is_folder else "not a file"
        raise NotAFileError(errno.EINVAL, reason, str(path))


def _check_length(path: Path, length: int, size: int) -> None:
    """Check the length of a header before it is read."""
    if length > size - LENGTH_BYTES:
        reason = f"the header has {length:,} bytes, the file {size:,}; it is no delta, or cut off"
        raise DeltaFormatError(path, f"not a readable safetensors file ({reason})")
    if length > MAX_HEADER_BYTES:
        reason = f"the header has {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed"
        raise DeltaFormatError(path, reason)


def _check_offsets(header: Mapping[str, Any], size: int) -> None:
    """Check that the tensors fill the data of a file, one after another.

    Raises:
        ValueError: they leave gaps, overlap, or have another size.
        TypeError, KeyError: the header is not that of a safetensors file.
    """
    spans = [(0, 0)]
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        shape, width = info["shape"], _WIDTHS.get(info["dtype"])
        if width is None:
            raise ValueError(f"{shown([name])} has the unknown dtype {ascii(info['dtype'])[:32]}")
        if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
            raise ValueError(f"{shown([name])} has offsets or a shape that are no whole numbers")
        if end - begin != width * prod(shape):
            raise ValueError(f"offsets and shape of {shown([name])} differ in size")
        spans.append((begin, end))
    spans.sort()
    if any(end != begin for (_, end), (begin, _) in pairwise(spans)):
        raise ValueError("offsets of the tensors leave a gap or overlap")
    if spans[-1][1] != size:
        found = f"offsets of the tensors end at byte {spans[-1][1]:,} of the data"
        raise ValueError(f"{found}, which has {size:,}; the file is cut off or still being copied")


def parse_header(path: Path, content: bytes) -> dict[str, Any]:
    """Parse a header, in which nothing lies outside of the digest.

    The header is compact JSON with the fields of the format alone; only their order is free.

    Raises:
        DeltaFormatError: it is spelled in another way, or has other fields.
        ValueError, RecursionError: it is not JSON.
    """
    text = content.decode()
    header = json.loads(text, object_pairs_hook=distinct)
    if not isinstance(header, dict):
        raise TypeError("the header is no JSON object")
    compact = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    for name, info in header.items():
        if name != "__metadata__" and set(info) != _TENSOR_KEYS:
            fields = shown(sorted(set(info) ^ _TENSOR_KEYS))
            raise DeltaFormatError(path, f"the header says {fields} of {shown([name])}")
    if text.rstrip(" ") != compact or len(text) - len(compact) >= _ALIGNMENT:
        reason = "the header is padded, or spelled in another way than safetensors does"
        raise DeltaFormatError(path, reason)
    return header


def metadata_of(path: Path, header: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a header: the manifest, the version and the digest.

    Raises:
        DeltaFormatError: it is not that of a delta.
    """
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise DeltaFormatError(path, "the header's metadata is no object of texts")
    if missing := [key for key in ("deltabert", "version", "digest") if key not in metadata]:
        reason = f"safetensors, but no delta: the header lacks {' and '.join(missing)}"
        raise DeltaFormatError(path, reason)
    if foreign := sorted(set(metadata) - _METADATA_KEYS):
        raise DeltaFormatError(path, f"the header has metadata of no delta: {shown(foreign)}")
    if metadata.get("format", "pt") != "pt":
        raise DeltaFormatError(path, "the header's format is not 'pt'")
    return metadata


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; a key that occurs twice is refused, as readers differ about it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = sorted(name for name, times in counts.items() if times > 1)
        raise ValueError(f"named more than once: {shown(twice)}")
    return found


def shown(names: list[str]) -> str:
    """Join a few names from a file in ASCII, so that a terminal shows them safely."""
    listed = ", ".join(ascii(name[:128])[1:-1] for name in names[:_MAX_LISTED])
    more = len(names) - _MAX_LISTED
    return f"{listed} and {more:,} more" if more > 0 else listed
