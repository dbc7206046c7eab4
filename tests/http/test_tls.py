"""HTTPS with a certificate made here: answers, clients that leave, files that can't be used."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.process.settings import Settings, SettingsError
from app.server.certificate import Certificate
from tests.http.server_process import START_WITHIN_S


def make_certificate(folder: Path, password: bytes | None = None) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 that signs itself, and its private key."""
    folder.mkdir(exist_ok=True)
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False
        )
        .sign(private, hashes.SHA256())
    )
    encryption: Any = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    certfile, keyfile = folder / "cert.pem", folder / "key.pem"
    certfile.write_bytes(certificate.public_bytes(pem))
    keyfile.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    return certfile, keyfile


def connect(port: int, certfile: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certfile))
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    return context.wrap_socket(plain, server_hostname="127.0.0.1")


REQUEST = (
    b"POST /predict/toy2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: 23\r\n\r\n"
    b'{"inputs": "good film"}'
)


def test_a_server_with_a_certificate_speaks_https_alone(
    run_server: Callable[..., Any], tmp_path: Path
) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    files = {"DELTABERT_SSL_CERTFILE": str(certfile), "DELTABERT_SSL_KEYFILE": str(keyfile)}
    with run_server(**files) as server:
        port = int(server.wait_for(r"listening on https://127\.0\.0\.1:(\d+)", START_WITHIN_S)[1])
        with connect(port, certfile) as client:
            client.sendall(REQUEST)
            answer = b""
            while part := client.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert json.loads(body)["task"] == "toy2"
        with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
            plain.sendall(REQUEST)
            assert not plain.recv(65536).startswith(b"HTTP/1.1 200")
        for _ in range(5):  # clients that leave without waiting for the answer
            with connect(port, certfile) as client:
                client.sendall(REQUEST)
                with suppress(ssl.SSLError):  # an answer may come after all
                    client.unwrap()
        time.sleep(0.5)
        with connect(port, certfile) as client:
            client.sendall(REQUEST)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        server.process.terminate()
        assert server.wait() == 0
        assert "Traceback" not in server.output
        assert "eof_received" not in server.output, "asyncio warns of a half-closed TLS connection"


def test_a_certificate_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    certfile, keyfile = make_certificate(tmp_path)
    Certificate(certfile, keyfile)
    _, foreign = make_certificate(tmp_path / "other")
    _, encrypted = make_certificate(tmp_path / "locked", b"a password")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate", encoding="utf-8")
    pipe = tmp_path / "pipe.pem"
    os.mkfifo(pipe)
    for cert, key, said in (
        (tmp_path / "none.pem", keyfile, "DELTABERT_SSL_CERTFILE: "),
        (certfile, tmp_path / "none.pem", "DELTABERT_SSL_KEYFILE: "),
        (certfile, foreign, "must be PEM files that belong together"),
        (certfile, encrypted, "the key without a password"),
        (certfile, garbage, "must be PEM files"),
        (certfile, pipe, "pipe.pem: not a file"),
        (garbage, keyfile, "must be PEM files"),
    ):
        with pytest.raises(SettingsError) as caught:
            Certificate(cert, key)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_renewed_certificate_counts_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    certfile, keyfile = make_certificate(tmp_path)
    certificate, context = Certificate(certfile, keyfile), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    certificate.renew(context)
    assert not caplog.records
    first = served_by(context)
    assert first == certfile.read_text(encoding="ascii")
    newer, newer_key = make_certificate(tmp_path / "newer")
    newer.replace(certfile)  # its key comes later
    certificate.renew(context)
    certificate.renew(context)
    (record,) = caplog.records
    assert record.getMessage().startswith("the previous certificate stays in use: ")
    assert certificate.is_stale
    assert served_by(context) == first
    newer_key.replace(keyfile)
    certificate.renew(context)
    assert served_by(context) == certfile.read_text(encoding="ascii") != first
    assert caplog.records[-1].getMessage() == "read the certificate again"
    assert not certificate.is_stale


def test_a_certificate_is_replaced_where_connections_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL copies a context for each connection, and no other thread may change it meanwhile."""

    class Context(ssl.SSLContext):
        loaded_by: threading.Thread | None = None

        def load_cert_chain(self, *arguments: Any, **options: Any) -> None:
            self.loaded_by = threading.current_thread()
            super().load_cert_chain(*arguments, **options)

    async def renewed_by() -> threading.Thread | None:
        certificate = Certificate(*make_certificate(tmp_path))
        context = Context(ssl.PROTOCOL_TLS_SERVER)
        watching = asyncio.create_task(certificate.watch(context))
        make_certificate(tmp_path)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if context.loaded_by is not None:
                break
        watching.cancel()
        return context.loaded_by

    monkeypatch.setattr("app.server.certificate._CHECK_EVERY_S", 0.01)
    assert asyncio.run(renewed_by()) is threading.current_thread()


def served_by(context: ssl.SSLContext) -> str:
    """Return the certificate that a server with this context shows, by a handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    client = anyone.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    shown = client.getpeercert(binary_form=True)
    assert shown is not None
    return ssl.DER_cert_to_PEM_cert(shown)


def test_certificate_and_key_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set both or none"):
        Settings(ssl_certfile=tmp_path / "cert.pem")
