"""An S3 service on this machine, in a process of its own that tests stop and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.http.server_process import free_port, opener

SECRET = "not-a-real-secret-4711"
START_WITHIN_S = 30.0


class S3Service:
    """Nanio, which keeps objects as files and checks the signature of each request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the process and wait for its first answer."""
        options = ["--data-dir", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "nanio", "serve", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"NANIO_ACCESS_KEY": "test", "NANIO_SECRET_KEY": SECRET},
        )
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            try:
                with opener.open(self.url, timeout=5):
                    return
            except urllib.error.HTTPError:
                return  # it refuses requests without a signature
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the S3 service did not start")

    def stop(self) -> None:
        """End the process: connections are refused; the objects stay on disk."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let the service accept connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class Bucket:
    """A bucket of a service, made if it is new, whose objects tests change."""

    def __init__(self, service: S3Service, name: str) -> None:
        self.service = service
        self.name = name
        (service.folder / name).mkdir(exist_ok=True)
        self._store = S3Store(
            name,
            endpoint=service.url,
            access_key_id="test",
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
        )

    def put(self, key: str, content: bytes) -> None:
        obstore.put(self._store, key, content)

    def names(self) -> list[str]:
        return [each["path"] for part in obstore.list(self._store) for each in part]

    def delete(self, key: str) -> None:
        obstore.delete(self._store, key)
