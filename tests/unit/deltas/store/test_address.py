"""Folders that a user names: paths and addresses, lists of them, and no credentials anywhere."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltas.store.address import RemoteAddress, is_safe_name, parse_root, split_roots

SECRET = "wJalrXUtnFEMI/K7MDENG"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://bucket", RemoteAddress("s3", "bucket", "")),
        ("s3://bucket/", RemoteAddress("s3", "bucket", "")),
        ("S3://bucket/a/b/", RemoteAddress("s3", "bucket", "a/b")),
        ("hf://team/deltas", RemoteAddress("hf", "team/deltas", "")),
        ("hf://team/deltas@v1.2/a", RemoteAddress("hf", "team/deltas", "a", "v1.2")),
        ("hf://datasets/team/d", RemoteAddress("hf", "team/d", "", is_dataset=True)),
        ("runs/deltas", Path("runs/deltas")),
        ("./s3://bucket", Path("s3:/bucket")),
    ],
)
def test_a_root_is_a_path_or_an_address(text: str, found: Path | RemoteAddress) -> None:
    assert parse_root(text) == found
    if isinstance(found, RemoteAddress):
        assert parse_root(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gs://bucket/a", "gs:// is not supported; write the path of a folder, s3://BUCKET/FOLDER"),
        ("s3://Bucket/a", "has no sound bucket"),
        ("s3:///a", "has no sound bucket"),
        ("s3://bucket/a/../b", "a part that is hidden or has unusual characters"),
        ("s3://bucket/a?versionId=1", "a part that is hidden or has unusual characters"),
        ("s3://bucket//a//b", "a part that is hidden or has unusual characters"),
        ("hf://team", "has no sound repository"),
        ("hf://team/deltas@", "has no sound repository"),
        ("hf://team/deltas/.hidden", "a part that is hidden or has unusual characters"),
    ],
)
def test_another_form_is_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse_root(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIA:{SECRET}@bucket/a",
        f"s3://{SECRET}@bucket",
        f"https://user:{SECRET}@host:443/a",
        "hf://hf_MDENGwJalr@team/deltas",
        f"hf://user:{SECRET}@team/deltas",
    ],
)
def test_credentials_are_refused_and_not_repeated(text: str) -> None:
    for read in (parse_root, lambda each: [parse_root(one) for one in split_roots(each, ":")]):
        with pytest.raises(ValueError, match="must not hold credentials") as caught:
            read(text)
        assert "wJalr" not in str(caught.value)
        assert "MDENG" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        ("a", ("a",)),
        ("a:b", ("a", "b")),
        (" a : b :", ("a", "b")),
        ("s3://b/c", ("s3://b/c",)),
        ("s3://b/c:d", ("s3://b/c", "d")),
        ("a:s3://b/c:/d", ("a", "s3://b/c", "/d")),
        ("s3://b:hf://o/n@v1:~/x", ("s3://b", "hf://o/n@v1", "~/x")),
        ("hf://o/n@v1:s3://b/c", ("hf://o/n@v1", "s3://b/c")),
        ("/a://b", ("/a", "//b")),
        ("s3://b/c:/data/x@home", ("s3://b/c", "/data/x@home")),
    ],
)
def test_a_list_is_split_between_its_folders(text: str, found: tuple[str, ...]) -> None:
    assert split_roots(text, ":") == found


def test_a_list_is_split_at_another_separator() -> None:
    assert split_roots("a;s3://b/c; d", ";") == ("a", "s3://b/c", "d")


_PARTS = st.text(st.sampled_from("ab/.:@~-\\\0 \u2025s"), max_size=12)


@given(_PARTS)
def test_no_safe_name_leads_out_of_a_folder(name: str) -> None:
    if is_safe_name(name):
        path = os.path.normpath(os.path.join("/copy", name))  # noqa: PTH118 - of any name
        assert path == f"/copy/{name}"
        assert not any(part.startswith(".") for part in name.split("/"))


@given(st.lists(st.sampled_from(["a", "b/c", "/d", "s3://b/c", "hf://o/n@v1", "s3://b"])))
def test_a_joined_list_is_split_into_the_same(roots: list[str]) -> None:
    assert split_roots(":".join(roots), ":") == tuple(roots)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", ".a", "a/.b", "%2e%2e/a"),
        *("a\\b", "a\0", "a b", "\u00e9", "a\n", "~", "a:b", "a" * 201, "a/" * 16 + "a"),
    ],
)
def test_an_unsafe_name_is_found(name: str) -> None:
    assert not is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "all-MiniLM-L6-v2/sst2/bitfit.safetensors",
        "b/sst2/random-0.001@a55a61fcaf8020f8.safetensors",
        "b/t/initbias+bitfit.traffic.json",
    ],
)
def test_names_of_deltas_are_safe(name: str) -> None:
    assert is_safe_name(name)
