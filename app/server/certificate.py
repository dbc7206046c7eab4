"""Loads the certificate and its private key, and loads them again when they have changed.

uvicorn makes its TLS context (`ssl.SSLContext`) of them once. Loaded into that context again, they
count for all connections that begin afterwards. Tested by tests/http/test_tls.py.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from app.process.settings import PREFIX, SettingsError

logger = logging.getLogger("app")

_CHECK_EVERY_S = 10.0


class Certificate:
    """The files of a certificate with its chain, and of its private key, both in PEM.

    Args:
        certfile: file of the certificate.
        keyfile: file of the private key, which has no password.

    Attributes:
        is_stale: True if the files could not be used when they were last read.

    Raises:
        SettingsError: they cannot be used.
    """

    def __init__(self, certfile: Path, keyfile: Path) -> None:
        self.is_stale = False
        self._files = {"SSL_CERTFILE": certfile, "SSL_KEYFILE": keyfile}
        self._seen = self._look()
        self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    async def watch(self, context: ssl.SSLContext) -> None:
        """Load changed files into a context, until the task is cancelled."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                if await asyncio.to_thread(self.has_changed):
                    self.renew(context)
            except Exception:  # whatever it is, the next change must be seen
                logger.exception("the certificate was not read; the previous one stays in use")

    def has_changed(self) -> bool:
        """Tell whether the files have changed since they were loaded; may wait for a disk."""
        return self._look() != self._seen

    def renew(self, context: ssl.SSLContext) -> None:
        """Load the files into a context if they have changed; log once if they can't be used.

        Call it in the thread that accepts connections: OpenSSL copies certificate and key for each
        of them, and must not do so while they are replaced.
        """
        seen = self._look()
        if seen == self._seen:
            return
        self._seen = seen
        self.is_stale = True
        try:
            # First into another context, because half of a pair would break every handshake.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(context)
        except SettingsError as error:
            logger.error("the previous certificate stays in use: %s", error)
            return
        self.is_stale = False
        logger.info("read the certificate again")

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_facts, self._files.values()))

    def _load(self, context: ssl.SSLContext) -> None:
        certfile, keyfile = self._files.values()
        for name, path in self._files.items():
            try:
                if not path.is_file() and not path.is_dir() and path.exists():
                    raise SettingsError([f"{PREFIX}{name}: {path}: not a file"])  # such as a pipe
                path.open("rb").close()
            except OSError as error:
                raise SettingsError([f"{PREFIX}{name}: {path}: {error.strerror}"]) from None
        try:
            # Without a password here, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(certfile, keyfile, password="")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise SettingsError(
                [
                    f"{PREFIX}SSL_CERTFILE and {PREFIX}SSL_KEYFILE cannot be used ({reason}); they "
                    "must be PEM files that belong together, the key without a password"
                ]
            ) from None


def _facts(path: Path) -> tuple[int, int, int] | None:
    """Return the facts by which a changed file is noticed; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
