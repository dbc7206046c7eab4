"""The image: sound as written, and in CI its steps are done, without Docker, in a clean folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.meta.test_docs import PYTORCH

ENVIRONMENT = "/opt/deltabert"  # the image's virtual environment


class Step(NamedTuple):
    """An instruction of a Dockerfile, and the number of its stage."""

    stage: int
    kind: str
    text: str


@pytest.fixture(scope="module")
def steps(root: Path) -> list[Step]:
    """The Dockerfile's instructions, with continued lines joined and comments left out."""
    lines = (root / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    found, stage = [], -1
    for line in filter(str.strip, text.splitlines()):
        kind, _, rest = line.partition(" ")
        stage += kind == "FROM"
        found.append(Step(stage, kind, rest.strip()))
    return found


@pytest.fixture(scope="module")
def final(steps: list[Step]) -> dict[str, str]:
    """The last instruction of each kind in the last stage."""
    return {step.kind: step.text for step in steps if step.stage == steps[-1].stage}


def test_the_last_of_two_stages_is_not_root(steps: list[Step], final: dict[str, str]) -> None:
    kinds = [step.kind for step in steps if step.stage == steps[-1].stage]
    assert steps[-1].stage >= 1
    assert int(final["USER"]) > 0
    assert "RUN" not in kinds[kinds.index("USER") :]


def test_the_image_checks_its_health_by_a_prediction(final: dict[str, str]) -> None:
    assert re.search(r"HEALTH_URL=\S+/health/ready\b", final["ENV"])
    assert "HEALTH_URL" in final["HEALTHCHECK"]


def test_every_install_is_locked(steps: list[Step]) -> None:
    """Only PyTorch has no hash, and only PyTorch comes from its own index."""
    commands = [part for step in steps if step.kind == "RUN" for part in step.text.split("&&")]
    installs = [command.strip() for command in commands if re.search(r"\bpip (?!check)", command)]
    locked = "pip install --require-hashes --only-binary :all: --no-deps -r "
    assert installs == [
        f"{locked}requirements.lock",
        f"pip install -c constraints.txt torch --index-url{PYTORCH}",
        f"builder/bin/{locked}requirements-build.lock",
        "builder/bin/pip wheel --no-deps --no-build-isolation --wheel-dir dist .",
        "pip install --no-deps dist/deltabert-*.whl",
    ]


def test_both_stages_are_of_one_base_that_can_be_named_by_its_digest(
    root: Path, steps: list[Step]
) -> None:
    bases = [step.text.removesuffix(" AS build") for step in steps if step.kind == "FROM"]
    assert bases == ["${BASE}"] * 2
    digest = f"python:3.11-slim@sha256:{'0' * 64}"
    command = ["make", "--dry-run", "image", f"BASE={digest}"]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    assert f'--build-arg BASE="{digest}"' in said


def test_only_the_files_that_the_wheel_needs_are_copied(
    root: Path, steps: list[Step], packages: tuple[str, ...]
) -> None:
    copies = [step.text for step in steps if step.kind == "COPY"]
    copied = {name for text in copies if "--from" not in text for name in text.split()[:-1]}
    assert copied == {
        *packages,
        *("pyproject.toml", "constraints.txt", "requirements.lock", "requirements-build.lock"),
        *("README.md", "LICENSE"),
    }
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert [text for text in copies if "--from" in text] == [
        f"--from=build {ENVIRONMENT} {ENVIRONMENT}"
    ]


class Image:
    """The image's files and variables, in folders of this machine in place of the image's."""

    def __init__(self, root: Path, folder: Path, home: str) -> None:
        """Begin with nothing but this environment's Python."""
        self.root, self.home, self.folder = root, folder / "home", folder
        self.folders = {
            ENVIRONMENT: f"{folder}/venv",
            "/src": f"{folder}/src",
            "/cache": f"{folder}/cache",
            home: f"{folder}/home",
        }
        kept = ("PIP_", "UV_", "SSL_CERT_")  # where packages are, and which servers are trusted
        pip = {name: value for name, value in os.environ.items() if name.startswith(kept)}
        programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        # Without bytecode of the thousands of modules that nothing imports: half the time.
        pip["PIP_NO_COMPILE"] = "1"
        self.variables = {"PATH": programs, "HOME": str(folder), **pip}

    def do(self, step: Step) -> None:
        """Do what Docker would do for one instruction."""
        text = step.text
        for theirs, ours in self.folders.items():
            text = text.replace(theirs, ours)
        if step.kind == "ENV":
            words = (word.split("=", 1) for word in shlex.split(text))
            path = self.variables["PATH"]
            self.variables |= {name: value.replace("$PATH", path) for name, value in words}
            self.variables.pop("PIP_NO_CACHE_DIR", None)
        elif step.kind == "WORKDIR":
            self.folder = Path(text)
            self.folder.mkdir(parents=True, exist_ok=True)
        elif step.kind == "COPY" and "--from" not in text:
            *sources, target = text.split()
            for source in (self.root / name for name in sources):
                if source.is_dir():
                    skip = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(source, self.folder / target, ignore=skip)
                else:
                    shutil.copy(source, self.folder)
        elif step.kind == "RUN" and not text.startswith("useradd"):
            # PyTorch comes from wherever this machine has it.
            command = re.sub(r" --index-url \S+", "", text)
            if os.environ.get("INSTALLER") == "uv":  # obeys the same flags, in a third of the time
                python = f"{self.folders[ENVIRONMENT]}/bin/python"
                uv = f"{sys.executable} -m uv pip install --python {python}"
                command = re.sub(r"^pip install", uv, command)
            result = self.start(["/bin/sh", "-c", command], self.folder)
            said = result.communicate()[0].decode()
            assert result.returncode == 0, f"{command}\n{said}"

    def start(
        self, command: list[str], folder: Path | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a command with the image's variables, by default in its last folder."""
        return subprocess.Popen(
            command,
            cwd=folder or self.home,
            env=self.variables | variables,
            executable=shutil.which(command[0], path=self.variables["PATH"]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture(scope="module")
def image(
    root: Path, steps: list[Step], final: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Image]:
    """Made as the Dockerfile says; removed at the end, for it is large."""
    if not os.environ.get("CI"):
        pytest.skip("installs everything anew (minutes, gigabytes): set CI=true to run it")
    folder = tmp_path_factory.mktemp("image")
    made = Image(root, folder, final["WORKDIR"])
    for step in steps:
        made.do(step)
    yield made
    shutil.rmtree(folder)


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_healthy(image: Image, check: str, url: str) -> None:
    """Run the image's health check as Docker would, until it succeeds."""
    command, deadline = json.loads(check.split("CMD", 1)[1]), time.monotonic() + 120
    while True:
        probe = image.start(command, HEALTH_URL=url)
        said = probe.communicate(timeout=30)[0].decode()
        if probe.returncode == 0:
            return
        assert time.monotonic() < deadline, f"{url} did not become healthy:\n{said}"
        time.sleep(1)


@pytest.mark.slow
def test_the_image_serves(image: Image, final: dict[str, str], port: int) -> None:
    process = image.start(json.loads(final["CMD"]), DELTABERT_PORT=str(port))
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(image, final["HEALTHCHECK"], f"{url}/health/ready")
        body = json.dumps({"inputs": "A warm film with a cold heart."}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/predict/sst2", body, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.load(answer)["predictions"][0]["label"]
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_the_image_shows_the_page(
    root: Path, image: Image, final: dict[str, str], port: int
) -> None:
    """The command is the one that the Dockerfile documents."""
    text = (root / "Dockerfile").read_text(encoding="utf-8")
    (documented,) = re.findall(r"^#\s+(streamlit run .*)$", text, re.MULTILINE)
    process = image.start([*shlex.split(documented), "--server.port", str(port)])
    try:
        wait_until_healthy(image, final["HEALTHCHECK"], f"http://127.0.0.1:{port}/_stcore/health")
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
def test_the_image_runs_the_installed_wheel(image: Image) -> None:
    program = "import app, audit, deltabert, deltas, frontend, training; "
    program += (
        "print(*(each.__file__ for each in (app, audit, deltabert, deltas, frontend, training)))"
    )
    process = image.start(["python", "-c", program])
    files = process.communicate(timeout=60)[0].decode().split()
    homes = {str(Path(name).resolve().parents[1]) for name in files}
    assert process.returncode == 0, files
    assert len(homes) == 1
    assert homes.pop().endswith("site-packages")
