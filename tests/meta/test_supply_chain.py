"""The image's packages: locked with hashes, in step with the pins, audited where that is possible.

The steps of the Dockerfile that use the locks are checked by tests/meta/test_dockerfile.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = ("requirements.lock", "requirements-build.lock")
TARGET = {"python_version": "3.11", "python_full_version": "3.11.9", "sys_platform": "linux"}
CUDA = re.compile(r"nvidia-|cuda-|triton")


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and hashes of each package of a lock."""
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=")
            name, version = requirement.strip().split("==")
            assert name not in found, f"locked twice: {name}"
            found[name] = version, [each.strip() for each in hashes]
    return found


@pytest.fixture(scope="module")
def locks(root: Path) -> dict[str, dict[str, tuple[str, list[str]]]]:
    return {name: locked((root / name).read_text(encoding="utf-8")) for name in LOCKS}


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def brought_by(asked: list[str]) -> set[str]:
    """Return all that requirements bring on Linux, by the metadata of what is installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [(text, "") for text in asked]
    while waiting:
        text, extra = waiting.pop()
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({**TARGET, "extra": extra}):
            continue
        for each in ("", *needed.extras):
            key = canonicalize_name(needed.name), each
            if key not in seen and not CUDA.match(key[0]):
                seen.add(key)
                waiting += [(one, each) for one in metadata.requires(key[0]) or []]
    return {name for name, _ in seen}


def test_every_package_of_the_image_is_locked_and_no_other(
    root: Path, locks: dict[str, dict[str, tuple[str, list[str]]]]
) -> None:
    """PyTorch has no entry: its builds for CPU and CUDA are other files under one version."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(locks["requirements.lock"]) | {"torch"} == brought_by(
        project["project"]["dependencies"]
    ), "run make lock"
    backend = [Requirement(text).name for text in project["build-system"]["requires"]]
    assert set(locks["requirements-build.lock"]) == brought_by(backend), "run make lock"


def test_locks_have_the_versions_of_the_pins(
    locks: dict[str, dict[str, tuple[str, list[str]]]], pins: dict[str, str]
) -> None:
    for lock in locks.values():
        differing = {name: one for name, (one, _) in lock.items() if pins.get(name) != one}
        assert not differing, "constraints.txt has other versions; run make lock"


def test_every_entry_has_hashes(locks: dict[str, dict[str, tuple[str, list[str]]]]) -> None:
    for lock in locks.values():
        for name, (_, hashes) in lock.items():
            assert hashes, f"{name} has no hash"
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", each) for each in hashes), name
            assert len(set(hashes)) == len(hashes), name


class Database(BaseHTTPRequestHandler):
    """Answers as OSV does; knows one vulnerability of two packages."""

    known: ClassVar[dict[str, str]] = {"jinja2": "PYSEC-2019-217", "urllib3": "PYSEC-2099-1"}

    def do_POST(self) -> None:
        """Answer a query."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, version = asked["package"]["name"], asked["version"]
        found: dict[str, Any] = {}
        if name in self.known and version in ("2.4.1", "1.0"):
            times = dict.fromkeys(("modified", "published"), "2099-01-01T00:00:00Z")
            package = {"name": name, "ecosystem": "PyPI"}
            affected = [{"package": package, "versions": [version]}]
            found = {"vulns": [{"id": self.known[name], "affected": affected, **times}]}
        body = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class ForgetfulDatabase(Database):
    """Answers every query with nothing, as a proxy might."""

    known: ClassVar[dict[str, str]] = {}


@contextmanager
def serving(handler: type[Database]) -> Iterator[str]:
    """Run a database; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()
        thread.join()


def audit(root: Path, url: str, pins: Path) -> subprocess.CompletedProcess[str]:
    """Run what `make audit` runs."""
    command = [sys.executable, str(root / ".make" / "vulnerabilities.py"), "--osv-url", url]
    return subprocess.run(
        [*command, "--pins", str(pins)], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("kind", ["nobody", "forgetful"])
def test_an_audit_without_its_database_is_said_and_fails_nothing(
    root: Path, tmp_path: Path, kind: str
) -> None:
    pins = tmp_path / "pins.txt"
    pins.write_text("urllib3==1.0\n", encoding="utf-8")
    with serving(ForgetfulDatabase) as url:
        asked = url if kind == "forgetful" else "http://127.0.0.1:9/v1/query"
        result = audit(root, asked, pins)
    assert result.returncode == 0
    assert result.stdout.startswith(f"NOT AUDITED: {asked} cannot be used (")


@pytest.mark.parametrize(("version", "status"), [("1.0", 1), ("2.0", 0)])
def test_an_audit_fails_on_a_finding_alone(
    root: Path, tmp_path: Path, version: str, status: int
) -> None:
    if importlib.util.find_spec("pip_audit") is None:
        pytest.skip("pip-audit is not installed: run make audit once, which installs it")
    pins = tmp_path / "pins.txt"
    pins.write_text(f"idna==3.20\nurllib3=={version}\n", encoding="utf-8")
    with serving(Database) as url:
        result = audit(root, url, pins)
    assert result.returncode == status, result.stdout + result.stderr
    assert ("PYSEC-2099-1" in result.stdout) is (status == 1)
    assert "NOT AUDITED" not in result.stdout
