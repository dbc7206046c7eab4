"""Lists and reads remote folders: of S3 through obstore, of the hub through huggingface_hub.

Both libraries load when a folder is opened. Whatever goes wrong there is a `RemoteError`; its text
may quote a library's error, with credentials in addresses blacked out. `deltas.store.sync` decides
which files are read, and checks them. Tested by tests/integration/deltas/store/test_remote.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple, Protocol

from deltas.backbone.hub import why_unreachable
from deltas.errors import DeltaError, shortened
from deltas.store.address import RemoteAddress

CONNECT_S, READ_S = 5, 20  # seconds until a silent service counts as down
_CREDENTIALS = re.compile(r"://[^/\s@]*@")
_NEEDS_S3 = "s3:// addresses need obstore, which is not installed: pip install 'deltabert[s3]'"


class RemoteError(DeltaError):
    """A remote folder can't be listed or read now; `reason` says why in one line."""

    def __init__(self, address: RemoteAddress, reason: str) -> None:
        self.reason = _CREDENTIALS.sub("://...@", shortened(reason, 300))
        super().__init__(f"{address}: {self.reason}")


class RemoteFile(NamedTuple):
    """One file of a remote folder."""

    name: str  # below the folder, with / between its parts; any text that the service allows
    num_bytes: int
    tag: str  # changes with the content


class RemoteFolder(Protocol):
    """One folder of a remote service; the methods may be called by several threads."""

    def files(self) -> Iterator[RemoteFile]:
        """Yield the files of the folder and of all below it.

        Raises:
            RemoteError: the service is down, refuses the access, or there is no such folder.
        """

    def read(self, file: RemoteFile) -> bytes:
        """Return the content of a file, as long as it was when it was listed.

        Raises:
            RemoteError: the service is down, refuses the access, or the file has gone.
        """


def open_remote(address: RemoteAddress) -> RemoteFolder:
    """Open a remote folder; nothing is asked of the service yet.

    Raises:
        DeltaError: the library for this service is not installed.
    """
    return _S3Folder(address) if address.scheme == "s3" else _HubFolder(address)


def s3_endpoint() -> str:
    """Return the address of the S3 service that the environment names; "" is Amazon's."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    return next(filter(None, map(os.environ.get, names)), "")


class _S3Folder:
    """Lists keys page by page, and reads the content that was listed or none."""

    def __init__(self, address: RemoteAddress) -> None:
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise DeltaError(_NEEDS_S3) from error
        self._address = address
        self._library = obstore
        self._prefix = f"{address.folder}/" if address.folder else ""
        with _remote_errors(address):
            self._bucket = S3Store(
                address.place,
                client_options={
                    "connect_timeout": timedelta(seconds=CONNECT_S),
                    "timeout": timedelta(seconds=READ_S),
                    "allow_http": s3_endpoint().startswith("http://"),
                },
                retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=READ_S)},
            )

    def files(self) -> Iterator[RemoteFile]:
        with _remote_errors(self._address):
            for page in self._library.list(self._bucket, self._prefix or None, chunk_size=1000):
                for one in page:
                    name = one["path"].removeprefix(self._prefix)
                    yield RemoteFile(name, one["size"], one["e_tag"] or str(one["last_modified"]))

    def read(self, file: RemoteFile) -> bytes:
        with _remote_errors(self._address):
            key = f"{self._prefix}{file.name}"
            found = self._library.get(self._bucket, key, options={"if_match": file.tag})
            if found.meta["size"] != file.num_bytes:
                raise ValueError(f"{file.name} was changed while it was read")
            return bytes(found.bytes())


class _HubFolder:
    """Reads the files of the commit that was the revision's latest when they were listed."""

    def __init__(self, address: RemoteAddress) -> None:
        from huggingface_hub import HfApi, HfFileSystem

        self._address = address
        self._kind = "dataset" if address.is_dataset else "model"
        self._prefix = f"{address.folder}/" if address.folder else ""
        self._service = HfApi()
        self._reader = HfFileSystem(skip_instance_cache=True)
        self._commit = ""

    def files(self) -> Iterator[RemoteFile]:
        from huggingface_hub.hf_api import RepoFile

        address = self._address
        name, revision = address.place, address.revision or None
        if problem := why_unreachable(
            f"{self._path()}/resolve/{revision or 'main'}/.gitattributes"
        ):
            raise RemoteError(address, problem)
        with _remote_errors(address):
            about = self._service.repo_info(
                name, revision=revision, repo_type=self._kind, timeout=READ_S
            )
            self._commit = about.sha or ""
            found = self._service.list_repo_tree(
                name,
                address.folder or None,
                recursive=True,
                revision=self._commit,
                repo_type=self._kind,
            )
            for one in found:
                if isinstance(one, RepoFile):
                    tag = one.lfs.sha256 if one.lfs else one.blob_id
                    yield RemoteFile(one.path.removeprefix(self._prefix), one.size, tag)

    def read(self, file: RemoteFile) -> bytes:
        path = f"{self._path()}@{self._commit}/{self._prefix}{file.name}"
        with _remote_errors(self._address):
            opened = self._reader.open(path, size=file.num_bytes)
            with opened:
                content: bytes = opened.read(file.num_bytes)
        return content

    def _path(self) -> str:
        return f"datasets/{self._address.place}" if self._kind == "dataset" else self._address.place


@contextmanager
def _remote_errors(address: RemoteAddress) -> Iterator[None]:
    """Turn every error of a library into a RemoteError."""
    try:
        yield
    except Exception as error:  # the libraries name dozens, and each means that it can't be used
        text = str(error).partition("\n")[0] or type(error).__name__
        raise RemoteError(address, f"can't be used ({text})") from error
