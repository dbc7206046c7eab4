"""The image's steps: sound as written, and in CI done in a clean environment, without an engine."""

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
from dataclasses import dataclass
from pathlib import Path

import pytest

ENVIRONMENT = "/opt/deltabert"  # where the image has its virtual environment


@dataclass(frozen=True)
class Step:
    """One instruction, in the stage that it belongs to."""

    stage: int
    kind: str
    text: str


def read_steps(dockerfile: Path) -> list[Step]:
    """The instructions of a Dockerfile, with continued lines joined and comments left out."""
    lines = dockerfile.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    steps = []
    stage = -1
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            kind, _, rest = line.partition(" ")
            stage += kind == "FROM"
            steps.append(Step(stage, kind, " ".join(rest.split()) if kind != "RUN" else rest))
    return steps


@pytest.fixture(scope="module")
def steps(root: Path) -> list[Step]:
    """The Dockerfile's."""
    return read_steps(root / "Dockerfile")


@pytest.fixture(scope="module")
def final(steps: list[Step]) -> dict[str, str]:
    """The last instruction of each kind in the last stage."""
    return {step.kind: step.text for step in steps if step.stage == steps[-1].stage}


def settings_of(step: Step) -> dict[str, str]:
    """The variables of an ENV instruction."""
    return dict(word.split("=", 1) for word in shlex.split(step.text))


def test_two_stages_and_the_last_is_not_root(steps: list[Step], final: dict[str, str]) -> None:
    assert steps[-1].stage >= 1
    assert final["USER"].isdigit()
    assert int(final["USER"]) > 0
    kinds = [step.kind for step in steps if step.stage == steps[-1].stage]
    assert "RUN" not in kinds[kinds.index("USER") :]


def test_cpu_by_default_and_cuda_by_argument(steps: list[Step]) -> None:
    arguments = [step.text for step in steps if step.kind == "ARG"]
    assert "TORCH=cpu" in arguments
    (install,) = [step.text for step in steps if step.kind == "RUN" and " torch " in step.text]
    assert install.endswith("/${TORCH}")


def test_health_is_a_real_prediction(steps: list[Step], final: dict[str, str]) -> None:
    variables: dict[str, str] = {}
    for step in steps:
        if step.kind == "ENV":
            variables |= settings_of(step)
    assert variables["HEALTH_URL"].endswith("/health/ready")
    assert "HEALTH_URL" in final["HEALTHCHECK"]


def test_every_install_is_pinned(steps: list[Step]) -> None:
    installs = [
        part
        for step in steps
        if step.kind == "RUN"
        for part in step.text.split("&&")
        if "pip install" in part
    ]
    assert len(installs) >= 3
    for command in installs:
        assert "-c constraints.txt" in command or "--no-deps" in command, command


def test_only_what_the_wheel_needs_is_copied(
    root: Path, steps: list[Step], packages: tuple[str, ...]
) -> None:
    copied = set()
    for step in steps:
        if step.kind == "COPY" and "--from" not in step.text:
            copied.update(step.text.split()[:-1])
    assert copied == {*packages, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert allowed == copied
    assert all((root / name).exists() for name in copied)


def test_the_checkout_is_not_where_it_runs(steps: list[Step], final: dict[str, str]) -> None:
    sources = {step.text for step in steps if step.kind == "WORKDIR" and step.stage == 0}
    assert final["WORKDIR"] not in sources
    copies = [step.text for step in steps if step.kind == "COPY" and step.stage > 0]
    assert copies == [f"--from=build {ENVIRONMENT} {ENVIRONMENT}"]


class Image:
    """What the image would hold, in folders of our own in place of the image's."""

    def __init__(self, root: Path, place: Path, final: dict[str, str]) -> None:
        """Nothing is in it yet."""
        self.root = root
        self.final = final
        self.home = place / "home"
        self.folder = place  # where the next instruction works
        self.folders = {
            ENVIRONMENT: str(place / "venv"),
            "/src": str(place / "src"),
            final["WORKDIR"]: str(self.home),
        }
        # How packages are reached is this machine's business.
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        programs = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        self.variables = {"PATH": programs, "HOME": str(place), **pip}

    def here(self, text: str) -> str:
        """Put our folders in place of the image's."""
        for theirs, ours in self.folders.items():
            text = text.replace(theirs, ours)
        return text

    def do(self, step: Step) -> None:
        """Do what an engine would do for one instruction."""
        if step.kind == "ENV":
            for name, value in settings_of(step).items():
                self.variables[name] = self.here(value).replace("$PATH", self.variables["PATH"])
            self.variables.pop("PIP_NO_CACHE_DIR", None)
        elif step.kind == "WORKDIR":
            self.folder = Path(self.here(step.text))
            self.folder.mkdir(parents=True, exist_ok=True)
        elif step.kind == "COPY" and "--from" not in step.text:
            *sources, target = step.text.split()
            for name in sources:
                self.copy(name, target)
        elif step.kind == "RUN" and not step.text.startswith("useradd"):
            self.run(step.text)

    def copy(self, name: str, target: str) -> None:
        """Copy a file or folder of the checkout."""
        if (self.root / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__")
            shutil.copytree(self.root / name, self.folder / target, ignore=skip)
        else:
            shutil.copy(self.root / name, self.folder)

    def run(self, text: str) -> None:
        """Run a shell command; PyTorch comes from wherever this machine has it."""
        command = re.sub(r" --extra-index-url \S+", "", self.here(text))
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"

    def start(self, command: list[str], **variables: str) -> subprocess.Popen[bytes]:
        """Start a command as a container would."""
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=self.variables | variables,
            executable=shutil.which(command[0], path=self.variables["PATH"]),
        )


@pytest.fixture(scope="module")
def image(
    root: Path,
    steps: list[Step],
    final: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Image]:
    """Made as the Dockerfile says; removed at the end, for it is large."""
    if not os.environ.get("CI"):
        pytest.skip("installs everything anew (minutes, gigabytes): set CI=true to run it")
    place = tmp_path_factory.mktemp("image")
    made = Image(root, place, final)
    for step in steps:
        made.do(step)
    yield made
    shutil.rmtree(place)


@pytest.fixture
def port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def running(image: Image, port: int) -> Iterator[Image]:
    """The image's own command, on a free port."""
    process = image.start(json.loads(image.final["CMD"]), DELTABERT_PORT=str(port))
    yield image
    process.terminate()
    process.wait(timeout=30)


def wait_until_healthy(image: Image, url: str, within_s: float = 120) -> None:
    """Run the image's health check as an engine would, until it succeeds."""
    command = json.loads(image.final["HEALTHCHECK"].split("CMD", 1)[1])
    deadline = time.monotonic() + within_s
    while image.start(command, HEALTH_URL=url).wait(timeout=30) != 0:
        assert time.monotonic() < deadline, f"{url} did not become healthy"
        time.sleep(1)


@pytest.mark.slow
def test_the_image_serves(running: Image, port: int) -> None:
    wait_until_healthy(running, f"http://127.0.0.1:{port}/health/ready")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/predict/sst2",
        data=json.dumps({"inputs": "A warm film with a cold heart."}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["predictions"][0]["label"]


@pytest.mark.slow
def test_the_image_shows_the_page(root: Path, image: Image, port: int) -> None:
    """By the command that the Dockerfile documents."""
    text = (root / "Dockerfile").read_text(encoding="utf-8")
    (documented,) = re.findall(r"^#\s+(streamlit run .*)$", text, re.MULTILINE)
    process = image.start([*shlex.split(documented), "--server.port", str(port)])
    try:
        wait_until_healthy(image, f"http://127.0.0.1:{port}/_stcore/health")
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_image_runs_the_installed_wheel(image: Image) -> None:
    program = "import app, deltas, frontend, training; "
    program += "print(*(each.__file__ for each in (app, deltas, frontend, training)))"
    result = subprocess.run(
        ["python", "-c", program],
        executable=shutil.which("python", path=image.variables["PATH"]),
        cwd=image.home,
        env=image.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    homes = {str(Path(name).resolve().parents[1]) for name in result.stdout.split()}
    assert len(homes) == 1
    assert homes.pop().endswith("site-packages")
