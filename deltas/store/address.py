"""Reads the folders that a user names: local ones, and ones of S3 or of the Hugging Face hub.

An address never holds credentials: it is refused, and no part of it is repeated, since addresses
stand in logs. Only the standard library is imported, because the server reads its settings before
torch is loaded. `deltas.store.remote` lists and reads the folder of an address.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deltas.errors import home_path

FORMS = "s3://BUCKET/FOLDER or hf://OWNER/NAME@REVISION/FOLDER"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_SCHEME_ALONE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_PART = re.compile(r"[A-Za-z0-9_+@=,-][A-Za-z0-9_+@=,.-]{0,199}")
_MAX_PARTS, _MAX_CHARS = 16, 512
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REPOSITORY = re.compile(
    r"(?P<kind>datasets/)?(?P<name>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(@(?P<revision>[A-Za-z0-9][\w.-]{0,127}))?(/(?P<folder>.*))?",
    re.ASCII | re.DOTALL,
)
_CREDENTIALS = (
    "an address must not hold credentials, since it stands in logs; remove them, and give them as "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as HF_TOKEN"
)


@dataclass(frozen=True)
class RemoteAddress:
    """Names a remote folder.

    Attributes:
        scheme: "s3" or "hf".
        place: the bucket, or the repository as OWNER/NAME.
        folder: the folder below it, with / between its parts; "" for all of it.
        revision: branch, tag or commit of a repository; "" for S3.
        is_dataset: whether the repository is one for data sets; they and models are apart.
    """

    scheme: str
    place: str
    folder: str
    revision: str = ""
    is_dataset: bool = False

    def __str__(self) -> str:
        kind = "datasets/" if self.is_dataset else ""
        revision = f"@{self.revision}" if self.revision else ""
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.scheme}://{kind}{self.place}{revision}{folder}"


def parse_root(text: str) -> Path | RemoteAddress:
    """Read one folder: a path, or the address of a remote folder.

    Raises:
        ValueError: the address is of an unknown form, or the path names an unknown user.
    """
    found = _SCHEME.fullmatch(text)
    if found is None:
        return home_path(text)
    scheme, rest = found[1].lower(), found[2]
    host = rest.partition("/")[0]
    # A colon or @ in the host divides a user, a password and a host; a secret may have a slash.
    if "@" in (host if scheme == "hf" else rest) or (scheme in ("s3", "hf") and ":" in host):
        raise ValueError(_CREDENTIALS)
    if scheme == "s3":
        return _parse_s3(rest)
    if scheme == "hf":
        return _parse_hub(rest)
    raise ValueError(f"{scheme}:// is not supported; write the path of a folder, {FORMS}")


def _parse_s3(rest: str) -> RemoteAddress:
    bucket, _, folder = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(
            "an s3:// address has no sound bucket: a bucket's name has 3 to 63 lower-case letters, "
            "digits, dots and hyphens. Write s3://BUCKET/FOLDER"
        )
    return RemoteAddress("s3", bucket, _parse_folder(folder))


def _parse_hub(rest: str) -> RemoteAddress:
    found = _REPOSITORY.fullmatch(rest)
    if found is None:
        raise ValueError(
            "an hf:// address has no sound repository. Write hf://OWNER/NAME, or "
            "hf://datasets/OWNER/NAME, with @REVISION and /FOLDER after it if needed"
        )
    folder = _parse_folder(found["folder"] or "")
    return RemoteAddress("hf", found["name"], folder, found["revision"] or "", bool(found["kind"]))


def _parse_folder(text: str) -> str:
    folder = text.strip("/")
    if folder and not is_safe_name(folder):
        raise ValueError(
            "the folder of an address has a part that is hidden or has unusual characters; "
            "letters, digits and _+@=,.- are allowed, and no part begins with a dot"
        )
    return folder


def is_safe_name(name: str) -> bool:
    """Return whether a remote name may become a path below a local folder.

    Its parts hold plain characters only, and none is hidden, `.` or `..`.
    """
    parts = name.split("/")
    is_short = len(name) <= _MAX_CHARS and len(parts) <= _MAX_PARTS
    return is_short and all(map(_PART.fullmatch, parts))


def split_roots(text: str, separator: str) -> tuple[str, ...]:
    """Split a list of folders at its separator, which an address contains if it is a colon.

    Raises:
        ValueError: an address seems to hold credentials.
    """
    found: list[str] = []
    parts = text.split(separator)
    while parts:
        part = parts.pop(0).strip()
        is_address = separator == ":" and parts and parts[0].startswith("//")
        if is_address and _SCHEME_ALONE.fullmatch(part):
            part = f"{part}:{parts.pop(0).strip()}"
            host = part.partition("://")[2]
            if "/" not in host and parts and "@" in parts[0]:  # s3://KEY:SECRET@BUCKET
                raise ValueError(_CREDENTIALS)
        if part:
            found.append(part)
    return tuple(found)
