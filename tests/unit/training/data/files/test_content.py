"""Text files of other encodings, archives and other foreign files are read or named."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.files.content import foreign_format, open_text
from training.errors import DataError

TEXT = "text,label\na caf\u00e9,1\n"


def read(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "a.csv").write_bytes(content)
    with open_text(tmp_path / "a.csv") as lines:
        return lines.read()


def refused(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read(tmp_path: Path, encoding: str) -> None:
    assert read(tmp_path, TEXT.encode(encoding)) == TEXT


@pytest.mark.parametrize(
    ("coding", "mark"), [("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")]
)
def test_utf_16_needs_its_byte_order_mark(tmp_path: Path, coding: str, mark: bytes) -> None:
    assert read(tmp_path, mark + TEXT.encode(coding)) == TEXT
    name = coding.upper().replace("-", "").replace("UTF16", "UTF-16")
    found = refused(tmp_path, TEXT.encode(coding))
    assert f"looks like {name} without a byte order mark" in found
    assert f"`iconv -f {name} -t UTF-8`" in found
    assert "damaged: it begins like UTF-16" in refused(tmp_path, mark + TEXT.encode(coding)[:-1])


def test_another_encoding_is_shown_as_it_would_read(tmp_path: Path) -> None:
    found = refused(tmp_path, TEXT.encode("cp1252"))
    assert (
        "not UTF-8 (line 2, byte 0xe9); read as WINDOWS-1252 the place is 'a caf\u00e9,1'" in found
    )
    assert "`iconv -f WINDOWS-1252 -t UTF-8`, else with its true encoding" in found
    assert len(refused(tmp_path, b"x" * 9999 + b"\xff" + b"y" * 9999)) < 500


def test_one_damaged_line_is_no_other_encoding(tmp_path: Path) -> None:
    """Converting the file would damage all other lines."""
    content = ("caf\u00e9\n" * 20).encode()
    found = refused(tmp_path, content + b"caf\xe9\n" + content)
    assert "not UTF-8 (line 21, byte 0xe9), though most of it is; mend this line" in found
    assert "iconv" not in found


def test_a_nul_byte_is_no_text(tmp_path: Path) -> None:
    assert "no text: byte 13 is NUL" in refused(tmp_path, b"text,label\na,\0\n")


def zipped(name: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, TEXT)
    return content.getvalue()


def parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "remedy"),
    [
        (gzip.compress(TEXT.encode(), mtime=0), "gzip", "gunzip"),
        (bz2.compress(TEXT.encode()), "bzip2", "bunzip2"),
        (lzma.compress(TEXT.encode()), "xz", "unxz"),
        (b"\x28\xb5\x2f\xfd rest", "zstd", "unzstd"),
        (zipped("train.csv"), "zip archive", "unpack it"),
        (zipped("xl/workbook.xml"), "Excel workbook", "save it as CSV"),
        (zipped("[Content_Types].xml"), "Excel workbook", "save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel workbook", "save it as CSV"),
        (parquet(), "parquet", "rename it"),
        (b"SQLite format 3\0", "SQLite", "export"),
        (b"%PDF-1.7", "PDF", "rows are needed"),
        (b"\n<!DOCTYPE html><html>", "web page", "fetch the file itself"),
        (b"\xef\xbb\xbf<HTML>", "web page", "fetch the file itself"),
        (b"<?xml version='1.0'?>", "web page or XML", "fetch the file itself"),
        (b"<table><tr><td>text</td></tr>", "web page or XML", "fetch the file itself"),
        (b'<meta charset="utf-8">\n<style>', "web page or XML", "fetch the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        (b"\x80\x04\x95rest", "pickle", "write it as parquet"),
        (bytes(257) + b"ustar", "tar archive", "unpack it"),
    ],
)
def test_the_format_of_a_foreign_file_is_named(
    tmp_path: Path, content: bytes, name: str, remedy: str
) -> None:
    found = refused(tmp_path, content)
    assert name in found
    assert remedy in found
    assert "iconv" not in found


def test_text_is_no_foreign_format() -> None:
    for text in (
        "",
        "a",
        "BZh,x",
        "Rar!,x",
        "7z,x",
        "PAR,x",
        "text,label\n<html>,1\n",
        "<id>,text\n",
        "version,1",
    ):
        assert foreign_format(text.encode()) == ""


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"no.csv: can't be read: No such file"),
        open_text(tmp_path / "no.csv"),
    ):
        pass


@pytest.mark.parametrize("coding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["text,label\na,1\n", "text,label\n\u3053\u306e\u96fb\u8a71,1\n" * 9]
)
def test_wide_encodings_without_a_mark_are_named(tmp_path: Path, coding: str, text: str) -> None:
    """The named conversion gives the text, which UTF-16 in place of UTF-32 would not."""
    found = refused(tmp_path, text.encode(coding))
    name = found.partition("`iconv -f ")[2].partition(" ")[0]
    assert text.encode(coding).decode(name) == text


def test_other_files_with_nul_are_no_wide_text(tmp_path: Path) -> None:
    for content in (b"a\0b\0c\0d\0\0\xd8\0\0", b"\x5d\0\0\x80\0\0\xff\xff", b"a\0"):
        assert "no text: byte 1 is NUL" in refused(tmp_path, content)
