"""Reads the settings from the environment, and only when `load_settings` is called.

Every field of `Settings` is an environment variable with the prefix `DELTABERT_`. `app.main`
unpacks the settings into plain arguments, so batcher and engine do not know this module.
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from deltas.errors import did_you_mean
from deltas.store.address import FORMS, RemoteAddress, parse_root, split_roots

PREFIX = "DELTABERT_"
DEFAULT_BATCH_TOKENS = 4096  # tokens per batch of a server that does not warm up


class SettingsError(Exception):
    """Settings that cannot be used.

    Attributes:
        problems: all problems, each as one sentence that names the variable.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def _split(separator: str) -> BeforeValidator:
    def split(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(separator) if part.strip())

    return BeforeValidator(split)


def _split_folders(value: Any) -> Any:
    return split_roots(value, os.pathsep) if isinstance(value, str) else value


def _folder(value: Any) -> Path | RemoteAddress:
    if isinstance(value, RemoteAddress):
        return value
    root = parse_root(str(value))
    if isinstance(root, Path) and not root.is_dir():
        raise ValueError(f"{str(root)!r} is not a folder; create it, or remove it from the list")
    return root


def _watchable(is_on: bool) -> bool:
    if is_on and find_spec("watchfiles") is None:
        raise ValueError("needs the library watchfiles; pip install 'deltabert[watch]'")
    return is_on


def _origin(text: str) -> str:
    if text != "*" and not text.startswith(("http://", "https://")):
        raise ValueError(f"{text!r} is not an origin; write it like https://example.org, or *")
    return text.rstrip("/")


def _prefix(text: str) -> str:
    path = text.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
        raise ValueError(f"{text!r} is not a path prefix; write it like /deltabert")
    return path


File = Annotated[Path, AfterValidator(Path.expanduser)]
Folder = Annotated[Path | RemoteAddress, BeforeValidator(_folder), PlainSerializer(str)]
Origin = Annotated[str, AfterValidator(_origin)]
Lowercase = BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value)


class Settings(BaseSettings):
    """All settings of a server process; settings that are not given come from the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid"
    )

    host: str = Field("127.0.0.1", description="Address to listen on.", min_length=1)
    port: int = Field(
        8000, description="TCP port to listen on; 0 takes any free port.", ge=0, le=65535
    )
    backbone: str | None = Field(
        None,
        description="Hub id or folder of the backbone; unset takes the packaged all-MiniLM-L6-v2.",
    )
    deltas: Annotated[tuple[Folder, ...], NoDecode, BeforeValidator(_split_folders)] = Field(
        (),
        description=f"Folders with deltas, as paths, {FORMS}; separated as in PATH "
        f"({os.pathsep!r} here), and searched in this order before the shipped zoo.",
    )
    remote_max_bytes: int = Field(
        10 * 2**30,
        description="Maximum bytes of deltas that are copied from a folder of S3 or of the hub.",
        ge=1024,
        le=2**50,
    )
    remote_refresh_s: float = Field(
        60.0,
        description="Seconds between two looks at the remote folders for changed deltas; 0 looks "
        "at the start only.",
        ge=0,
        le=86_400,
    )
    zoo: bool = Field(True, description="Serve the shipped zoo, too (true or false).")
    device: Annotated[Literal["auto", "cpu", "cuda"], Lowercase] = Field(
        "auto", description="Device of the forward pass; auto takes CUDA if it is available."
    )
    precision: Annotated[Literal["auto", "fp32", "bf16", "int8"], Lowercase] = Field(
        "auto",
        description="Arithmetic of the forward pass; auto takes bf16 where it is faster. int8 "
        "is faster on CPUs with VNNI but without AMX, and changes about one label in 300.",
    )
    threads: int = Field(
        0,
        description="CPU threads of the forward pass; 0 measures at start which number is fastest.",
        ge=0,
        le=1024,
    )
    workers: int = Field(
        0,
        description="Batches that run at a time under load, each on its share of the threads; 0 "
        "measures at start which number is fastest.",
        ge=0,
        le=1024,
    )
    max_slots: int = Field(
        0,
        description="Maximum deltas resident on the device (LRU eviction); 0 means no limit.",
        ge=0,
        le=1_000_000,
    )
    pinned: Annotated[tuple[str, ...], NoDecode, _split(",")] = Field(
        (),
        description="Deltas that are loaded first and never evicted: task or task/strategy, "
        "separated by commas.",
    )
    max_batch_tokens: int = Field(
        0,
        description="Maximum tokens in one forward pass, or in all passes that run at a time; 0 "
        "measures at start which number is fast.",
        ge=0,
        le=1_000_000,
    )
    warm_up: bool = Field(
        True,
        description="Measure the fastest settings and compile kernels at start (true or false). "
        f"Without it, the server starts faster, with {DEFAULT_BATCH_TOKENS:,} tokens, all threads "
        "and one batch at a time unless set.",
    )
    reuse_tuning: bool = Field(
        True,
        description="Take the numbers that an earlier start has measured on this machine, kept in "
        "$XDG_CACHE_HOME/deltabert (true or false). False measures again and keeps nothing.",
    )
    max_batch_rows: int = Field(
        256, description="Maximum rows in one forward pass.", ge=1, le=65536
    )
    max_queue_rows: int = Field(
        4096,
        description="Maximum rows in the queue; requests beyond it get 429. Tasks that hold "
        "less than their share may queue up to as many again.",
        ge=1,
        le=1_000_000,
    )
    max_queue_tokens: int = Field(
        262_144,
        description="Maximum tokens in the queue; requests beyond it get 429, with the same "
        "exception as for rows.",
        ge=16,
        le=100_000_000,
    )
    max_queue_s: float = Field(
        2.0,
        description="Maximum estimated queueing delay in seconds; requests that would wait "
        "longer get 429.",
        gt=0,
        le=3600,
    )
    deadline_s: float = Field(
        30.0,
        description="Seconds until a request gets 504; a client may ask for less.",
        gt=0,
        le=3600,
    )
    ready_timeout_s: float = Field(
        5.0, description="Seconds that the prediction of the readiness check may take.", gt=0, le=60
    )
    shutdown_timeout_s: float = Field(
        10.0, description="Seconds to finish accepted requests at shutdown.", ge=0, le=600
    )
    max_rows_per_request: int = Field(
        1024,
        description="Maximum rows in one request, counted once per target; more get 413.",
        ge=1,
        le=1_000_000,
    )
    max_text_chars: int = Field(
        200_000,
        description="Maximum characters in one text; longer texts get 413.",
        ge=1,
        le=100_000_000,
    )
    max_body_bytes: int = Field(
        8 * 2**20,
        description="Maximum bytes in a request body; larger bodies get 413.",
        ge=1024,
        le=2**30,
    )
    max_bodies_bytes: int = Field(
        64 * 2**20,
        description="Maximum bytes in all request bodies at a time; requests beyond it get 429.",
        ge=1024,
        le=2**40,
    )
    body_timeout_s: float = Field(
        10.0,
        description="Seconds for a request body to arrive; slower requests get 408.",
        gt=0,
        le=3600,
    )
    stream_timeout_s: float = Field(
        0.0,
        description="Seconds that a stream of rows may take in all, from the arrival of its head; "
        "a longer one ends with an error. 0 for no limit.",
        ge=0,
        le=7 * 86400,
    )
    upload_timeout_s: float = Field(
        600.0,
        description="Seconds for an uploaded delta to arrive; slower uploads get 408. Each of its "
        "parts has the time of a body.",
        gt=0,
        le=86400,
    )
    max_head_bytes: int = Field(
        32 * 2**10,
        description="Maximum bytes in a request's line and headers; larger heads get 431.",
        ge=1024,
        le=2**20,
    )
    connection_timeout_s: float = Field(
        10.0,
        description="Seconds for a request's line and headers to arrive (408), and for a client "
        "to read some of its answer before the connection is closed.",
        gt=0,
        le=3600,
    )
    keep_alive_s: int = Field(
        5,
        description="Seconds that a connection may wait for its next request. Behind a proxy, "
        "more than the proxy's own limit avoids requests on closed connections.",
        ge=1,
        le=3600,
    )
    max_connections: int = Field(
        800,
        description="Maximum connections at a time, or fewer if the process may open fewer "
        "files. A new one replaces the one that has waited longest for a request; if all have "
        "requests, it gets 503, except for /health.",
        ge=1,
        le=1_000_000,
    )
    watch: Annotated[bool, AfterValidator(_watchable)] = Field(
        False,
        description="Serve files that are added, replaced or removed below the folders with "
        "deltas at once (true or false); needs the extra watch.",
    )
    keep_versions: int = Field(
        5,
        description="Versions to keep of each delta that is changed over HTTP, the default one "
        "included.",
        ge=1,
        le=1000,
    )
    max_delta_bytes: int = Field(
        512 * 2**20,
        description="Maximum bytes of a delta that is uploaded; larger ones get 413.",
        ge=1024,
        le=2**40,
    )
    keys_file: File | None = Field(
        None,
        description="File of API keys (TOML), followed while the server runs; unset, with no "
        "DELTABERT_KEYS, asks for no keys.",
    )
    keys: SecretStr | None = Field(
        None, description="API keys as the content of such a file; both together are one list."
    )
    ssl_certfile: File | None = Field(
        None,
        description="File with the certificate and its chain (PEM); with DELTABERT_SSL_KEYFILE, "
        "the server speaks HTTPS alone.",
    )
    ssl_keyfile: File | None = Field(
        None, description="File with the certificate's private key (PEM), not encrypted."
    )
    max_delta_series: int = Field(
        100,
        description="Maximum deltas with metrics of their own, the busiest ones; all others are "
        'counted together as task "other".',
        ge=1,
        le=1000,
    )
    log_format: Annotated[Literal["text", "json"], Lowercase] = Field(
        "text", description="Format of the log, one record a line: text, or a JSON object."
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Lowercase] = Field(
        "info", description="Least severe level that is logged."
    )
    root_path: Annotated[str, AfterValidator(_prefix)] = Field(
        "",
        description="Path prefix under which a proxy serves this server, such as /deltabert; the "
        "proxy may remove it or leave it.",
    )
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, _split(",")] = Field(
        (),
        description="Web origins that browsers may call from, separated by commas; default none.",
    )

    @model_validator(mode="after")
    def _limits_agree(self) -> Settings:
        if self.max_rows_per_request > self.max_queue_rows:
            raise ValueError(
                f"{PREFIX}MAX_ROWS_PER_REQUEST is {self.max_rows_per_request}, more than "
                f"{PREFIX}MAX_QUEUE_ROWS ({self.max_queue_rows}); lower one or raise the other"
            )
        if self.max_body_bytes > self.max_bodies_bytes:
            raise ValueError(
                f"{PREFIX}MAX_BODY_BYTES is {self.max_body_bytes}, more than "
                f"{PREFIX}MAX_BODIES_BYTES ({self.max_bodies_bytes}); lower one or raise the other"
            )
        if (self.ssl_certfile is None) != (self.ssl_keyfile is None):
            raise ValueError(
                f"{PREFIX}SSL_CERTFILE and {PREFIX}SSL_KEYFILE belong together; set both or none"
            )
        return self


def load_settings() -> Settings:
    """Read the environment and check it.

    Raises:
        SettingsError: the error lists every problem, mistyped variable names included.
    """
    names = (name.upper() for name in os.environ)
    given = sorted(name[len(PREFIX) :].lower() for name in names if name.startswith(PREFIX))
    problems = [_unknown(name) for name in given if name not in Settings.model_fields]
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_problem(item) for item in error.errors()]
    if problems:
        raise SettingsError(problems)
    return settings


def _unknown(name: str) -> str:
    """Name a mistyped variable, which pydantic-settings ignores silently."""
    hint = did_you_mean(name, Settings.model_fields, lambda field: PREFIX + field.upper())
    allowed = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
    return f"{PREFIX}{name.upper()} is not a setting.{hint or f' Allowed: {allowed}'}"


def _problem(item: Any) -> str:
    message = item["msg"].removeprefix("Value error, ")
    if not item["loc"]:
        return str(message)
    variable = f"{PREFIX}{str(item['loc'][0]).upper()}"
    if item["type"] == "value_error":
        return f"{variable}: {message}"
    return f"{variable} is {item['input']!r}: {message[0].lower()}{message[1:]}"
