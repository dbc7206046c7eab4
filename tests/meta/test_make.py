"""`make setup` and `make run`: what they say when they can't, and that they start and stop both."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A stand-in for the server or the page: answers every GET, and ends on SIGTERM unless told not to.
SERVER = """
import http.server, signal, sys
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
# Runs two stand-ins by the real launcher.
LAUNCH = """
import runpy, sys
script, source, port, page_port, manner = sys.argv[1:]
run = runpy.run_path(script)
run["run"]([
    run["Part"](name, int(port), "PORT", "/", [sys.executable, "-c", source, port, manner])
    for name, port in (("server", port), ("page", page_port))
])
"""


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports that were free a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def listens(port: int) -> bool:
    """Return True if a process accepts connections on the port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Launched:
    """A launcher with the output that it has written so far."""

    def __init__(self, command: list[str], root: Path, log: Path, within_s: float = 60) -> None:
        """Start a command and wait until it says that it is ready."""
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=root,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + within_s
        while "Ready" not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    @property
    def said(self) -> str:
        return self.log.read_text()


@pytest.fixture
def launch(root: Path, tmp_path: Path, ports: tuple[int, int]) -> Iterator[Callable[..., Launched]]:
    """A function (manner="") -> the launcher with two stand-ins on `ports`, stopped at last."""
    started: list[Launched] = []

    def start(manner: str = "") -> Launched:
        arguments = [str(root / ".make" / "run.py"), SERVER, *map(str, ports), manner]
        started.append(Launched(["-c", LAUNCH, *arguments], root, tmp_path / "output"))
        return started[-1]

    yield start
    for one in started:
        one.process.terminate()
        one.process.wait(timeout=30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_both(
    number: signal.Signals, launch: Callable[..., Launched], ports: tuple[int, int]
) -> None:
    launched = launch()
    assert all(map(listens, ports))
    launched.process.send_signal(number)
    assert launched.process.wait(timeout=30) == 0
    assert launched.said.splitlines() == [
        "Starting the server and the page ...",
        "Ready; Ctrl-C stops both.",
        f"  server  http://127.0.0.1:{ports[0]}",
        f"  page    http://127.0.0.1:{ports[1]}",
        "Stopped.",
    ]
    assert not any(map(listens, ports))


def test_when_one_dies_the_other_stops(
    launch: Callable[..., Launched], ports: tuple[int, int]
) -> None:
    launched = launch()
    pid = launched.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children in /proc")
    os.kill(int(children.read_text().split()[1]), signal.SIGKILL)
    assert launched.process.wait(timeout=30) == 1
    assert launched.said.splitlines()[-1] == (
        "The page ended by itself with exit status -9: its last messages above say why."
    )
    assert not any(map(listens, ports))


def test_a_second_ctrl_c_kills_what_does_not_listen(
    launch: Callable[..., Launched], ports: tuple[int, int]
) -> None:
    launched = launch("stubborn")
    launched.process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        launched.process.wait(timeout=0.5)
    launched.process.send_signal(signal.SIGINT)
    assert launched.process.wait(timeout=30) == 0
    assert not any(map(listens, ports))


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the launcher, which is expected to end by itself."""
    command = [sys.executable, str(root / ".make" / "run.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_in_use_is_one_clear_sentence(root: Path, ports: tuple[int, int]) -> None:
    port, page_port = map(str, ports)
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", ports[1]))
        occupant.listen()
        result = run_script(root, "--port", port, "--page-port", page_port)
    assert (result.returncode, result.stdout) == (1, "")
    (sentence,) = result.stderr.splitlines()
    for part in (f"Port {page_port} ", "in use", "make run PAGE_PORT="):
        assert part in sentence


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port=65536"], "PORT=65536 PAGE_PORT=8501: give numbers from 1 to 65535"),
        (["--page-port=http"], "'http'"),
        (["--port=9000", "--page-port=9000"], "PORT and PAGE_PORT are both 9000"),
    ],
)
def test_ports_that_cannot_be_are_refused(arguments: list[str], said: str, root: Path) -> None:
    result = run_script(root, *arguments)
    assert result.returncode == 2
    assert said in result.stderr


@pytest.fixture
def setup(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run setup.sh where the only programs are fake Pythons of the given behaviour."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def run(
        python: str, fakes: dict[str, str], **variables: str
    ) -> subprocess.CompletedProcess[str]:
        for name, body in fakes.items():
            (programs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        return subprocess.run(
            ["/bin/sh", str(root / ".make" / "setup.sh"), str(tmp_path / "venv")],
            env={"PATH": str(programs), "PYTHON": python, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


OLD = 'case "$2" in *sys.exit*) exit 1 ;; *platform*) echo 3.9.2 ;; esac'
GOOD = 'case "$2" in *platform*) echo 3.12.1 ;; esac'
WITHOUT_VENV = 'case "$2" in *sys.exit*) ;; *ensurepip*) exit 1 ;; *) echo 3.12 ;; esac'


@pytest.mark.parametrize(
    ("python", "fakes", "parts"),
    [
        ("", {}, ["needs Python 3.11 to 3.14", "none was found", "make setup PYTHON="]),
        ("", {"python3": OLD}, ["needs Python 3.11 to 3.14", "python3 is 3.9.2"]),
        ("", {"python3.12": WITHOUT_VENV}, ["python3.12 cannot", "apt install python3.12-venv"]),
        ("python3", {"python3": OLD}, ["PYTHON=python3 is 3.9.2", "make setup PYTHON="]),
    ],
)
def test_an_unusable_python_is_one_clear_sentence(
    python: str,
    fakes: dict[str, str],
    parts: list[str],
    setup: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    result = setup(python, fakes)
    assert (result.returncode, result.stdout) == (1, "")
    (sentence,) = result.stderr.splitlines()
    for part in parts:
        assert part in sentence
    assert not (tmp_path / "venv").exists()


def test_a_failed_install_is_tried_again(
    setup: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The environment counts as made only when everything is in it."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    pip = tmp_path / "venv" / "bin" / "python"
    pip.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n", encoding="utf-8")
    pip.chmod(0o755)
    result = setup("", {"python3": GOOD})
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "no such package"
    assert "'make setup' tries again" in result.stderr
    assert not (tmp_path / "venv" / ".installed").exists()


# A Python that notes each install, with a uv that ends with a given status.
NOTING = """#!/bin/sh
case "$*" in
"-m uv pip install --no-config "*) echo uv >>{notes}; exit {status} ;;
*"pip install"*) echo pip >>{notes} ;;
esac
"""


@pytest.mark.parametrize(
    ("installer", "status", "asked"),
    [
        ("", 0, ["pip"]),
        ("uv", 0, ["pip", "uv"]),  # pip brings uv
        ("uv", 1, ["pip", "uv", "pip"]),
    ],
)
def test_pip_installs_what_uv_cannot(
    installer: str,
    status: int,
    asked: list[str],
    setup: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    python, notes = tmp_path / "venv" / "bin" / "python", tmp_path / "notes"
    python.write_text(NOTING.format(notes=notes, status=status), encoding="utf-8")
    python.chmod(0o755)
    setup("", {"python3": GOOD, "touch": 'exec /usr/bin/touch "$@"'}, INSTALLER=installer)
    assert notes.read_text(encoding="utf-8").split() == asked
    assert (tmp_path / "venv" / ".installed").exists()


def test_a_folder_that_is_no_environment_is_never_emptied(
    setup: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").write_text("years of work", encoding="utf-8")
    result = setup("", {"python3": GOOD})
    assert result.returncode == 1
    assert "no virtual environment" in result.stderr
    assert (tmp_path / "venv" / "thesis.txt").exists()


def test_make_installs_again_only_when_the_pins_changed(root: Path, tmp_path: Path) -> None:
    stamp = tmp_path / ".installed"
    question = ["make", "--question", "setup", f"VENV={tmp_path}"]

    def is_up_to_date() -> bool:
        return subprocess.run(question, cwd=root, capture_output=True, check=False).returncode == 0

    assert not is_up_to_date()
    stamp.touch()
    assert is_up_to_date()
    before = (root / "constraints.txt").stat().st_mtime - 10
    os.utime(stamp, (before, before))
    assert not is_up_to_date()


def test_make_alone_lists_every_target(root: Path) -> None:
    command = ["make", "--no-print-directory"]  # printed where another make started the tests
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    makefile = (root / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = [line.split()[:2] for line in result.stdout.splitlines()]
    assert listed == [["make", target] for target in phony.split()]


@pytest.mark.slow
def test_the_real_server_and_page_answer_and_stop(
    root: Path, ports: tuple[int, int], tmp_path: Path
) -> None:
    """The README promises what `make run` does, its curl command included."""
    port, page_port = map(str, ports)
    command = [".make/run.py", "--port", port, "--page-port", page_port]
    launched = Launched(command, root, tmp_path / "output", within_s=300)
    readme = (root / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^curl .*$", readme, re.MULTILINE)
    words = shlex.split(line)
    answer = send(words[1].replace(":8000/", f":{port}/"), words[words.index("-d") + 1])
    (prediction,) = json.loads(answer)["predictions"]
    assert prediction["label"] in prediction["scores"]
    assert "<title>" in send(f"http://127.0.0.1:{page_port}/")
    launched.process.send_signal(signal.SIGINT)
    assert launched.process.wait(timeout=60) == 0
    assert launched.said.endswith("Stopped.\n")
    assert "Traceback" not in launched.said
    assert not any(map(listens, ports))


def send(url: str, body: str | None = None) -> str:
    """GET, or POST a JSON body, and return the answer's text."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, data=body.encode() if body else None, timeout=30) as answer:
        return str(answer.read().decode("utf-8"))
