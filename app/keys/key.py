"""Defines a key and reads keys from TOML; secrets are made here and never kept.

A file of keys has a table for each key, under its name:

    [team-a]
    sha256 = "the SHA-256 of the secret, as 64 hexadecimal digits"
    scopes = ["predict"]
    tasks = ["team-a-*", "sst2"]
    rows_per_minute = 6000

The table `anonymous` has no digest; its rights are those of requests without a key.

No message quotes a value of the file, since somebody may have put a secret there. Read
`app.keys.keyring` next.
"""

from __future__ import annotations

import hashlib
import secrets
import tomllib
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from deltas.errors import did_you_mean

ANONYMOUS = "anonymous"
PREFIX = "dbk_"  # by which programs that look for leaked secrets can find them
MAX_KEYS = 1000  # each request is compared with all of them, and each has a metric
_SECRET_BYTES = 32
_MAX_PER_MINUTE = 6_000_000  # GCRA rounds the time of a row up to microseconds; here it is ten

Scope = Literal["predict", "admin"]
Pattern = Annotated[str, Field(min_length=1, max_length=256)]
PerMinute = Annotated[int | None, Field(strict=True, ge=1, le=_MAX_PER_MINUTE)]


class KeysError(Exception):
    """Keys that cannot be used; the message is a sentence that quotes no value."""


class Key(BaseModel):
    """The rights and limits of a client, by the digest of its secret.

    Attributes:
        name: name in logs and metrics.
        sha256: digest of the secret, 64 hexadecimal digits; None for requests without a key.
        scopes: changes that the client may ask for; without any it may only read.
        tasks: names of tasks, in which `*` and `?` stand for any characters and for one.
        requests_per_minute: predictions that it may ask for, on average.
        rows_per_minute: rows that it may send, on average, counted once per target.
        burst_s: seconds for which an unused rate is saved up.
        queue_share: part of the queue's rows that its unanswered rows may take.
        expires: first day, in UTC, on which the key is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-f]{64}$", repr=False)] = None
    scopes: frozenset[Scope]
    tasks: Annotated[tuple[Pattern, ...], Field(max_length=MAX_KEYS)]
    requests_per_minute: PerMinute = None
    rows_per_minute: PerMinute = None
    burst_s: Annotated[float, Field(ge=1, le=3600)] = 60.0
    queue_share: Annotated[float | None, Field(gt=0, le=1)] = None
    expires: Annotated[date | None, Field(strict=True)] = None

    @property
    def expires_at(self) -> float | None:
        """The first second of the time since 1970 at which the key is refused."""
        if self.expires is None:
            return None
        return datetime.combine(self.expires, time(), UTC).timestamp()


def new_secret() -> str:
    """Return 256 random bits as text."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest_of(secret: bytes) -> bytes:
    """Return the SHA-256 of a secret.

    Passwords need a slow digest with a salt, because they can be guessed. 256 random bits cannot.
    """
    return hashlib.sha256(secret).digest()


def parse_keys(text: str) -> dict[str, Key]:
    """Read the keys of a TOML text, by name.

    Raises:
        KeysError: the text is no TOML, or a key is wrong; only the first problem is told.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise KeysError(f"not TOML: {error}") from None
    keys = {name: _parse_key(name, table) for name, table in tables.items()}
    return checked(keys)


def checked(keys: dict[str, Key]) -> dict[str, Key]:
    """Return the keys, which together may be used.

    Raises:
        KeysError: there are too many keys, or two have the same secret.
    """
    if len(keys) > MAX_KEYS:
        raise KeysError(f"{len(keys):,} keys, at most {MAX_KEYS:,}; remove some")
    owners: dict[str, str] = {}
    for name, key in keys.items():
        other = owners.setdefault(key.sha256 or name, name)
        if other != name:
            raise KeysError(f"the keys {other!r} and {name!r} have the same sha256; make a new one")
    return keys


def _parse_key(name: str, table: Any) -> Key:
    if not isinstance(table, dict):
        raise KeysError("a value stands outside of a table; each key is a table such as [team-a]")
    if name.startswith(PREFIX):
        raise KeysError(f"the name of a key begins with {PREFIX}, as secrets do; choose another")
    for field in table:
        if field not in Key.model_fields or field == "name":
            known = [each for each in Key.model_fields if each != "name"]
            hint = did_you_mean(field[:64], known)
            raise KeysError(
                f"key {name[:64]!r}: {field[:64]!r} is no field of a key.{hint} "
                f"Allowed: {', '.join(known)}"
            )
    if (name == ANONYMOUS) == ("sha256" in table):
        wrong = "has no secret, so no sha256" if name == ANONYMOUS else "sha256 is missing"
        raise KeysError(f"key {name[:64]!r}: {wrong}")
    try:
        key = Key(name=name, **table)
    except ValidationError as error:
        raise KeysError(_sentence(name, error.errors(include_url=False)[0])) from None
    if key.sha256 == digest_of(b"").hex():
        raise KeysError(f"key {name!r}: sha256 is that of an empty secret, which all can send")
    if name == ANONYMOUS and "admin" in key.scopes:
        raise KeysError(f"key {name!r}: requests without a key can't have the scope 'admin'")
    return key


def _sentence(name: str, item: Any) -> str:
    field = str(item["loc"][0])
    if field == "name":
        return f"key {name[:64]!r}: a name has 1 to 64 letters, digits, hyphens and underscores"
    if field == "sha256":
        return (
            f"key {name!r}: sha256 must be the 64 hexadecimal digits of the secret's SHA-256; "
            "python -m app keys new makes both"
        )
    if item["type"] == "missing":
        return f"key {name!r}: {field} is missing"
    where = ".".join(str(part) for part in item["loc"] if isinstance(part, str | int))
    message = str(item["msg"]).replace("Input should", "must", 1)
    for word in ("tuple", "frozenset"):
        message = message.replace(f"a valid {word}", "a list")
    return f"key {name!r}: {where} {message[0].lower()}{message[1:]}"
