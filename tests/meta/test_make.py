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
import importlib.util, sys
spec = importlib.util.spec_from_file_location("run", sys.argv[1])
run = sys.modules["run"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
names = (("server", "PORT"), ("page", "PAGE_PORT"))
script, source, *ports, manner = sys.argv[1:]
parts = [
    run.Part(name, variable, int(port), "/", [sys.executable, "-c", source, port, manner], {})
    for (name, variable), port in zip(names, ports)
]
try:
    run.run(parts)
except run.LaunchError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two ports that were free a moment ago."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def is_listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def launch(root: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command in a session of its own, wait until it says it is ready; ended at last."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], within_s: float = 30) -> subprocess.Popen[str]:
        output = (tmp_path / "output").open("w")
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        output.close()
        started.append(process)
        deadline = time.monotonic() + within_s
        while "Ready" not in (said := (tmp_path / "output").read_text()):
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def stand_ins(
    root: Path, ports: tuple[int, int], launch: Callable[..., subprocess.Popen[str]]
) -> Callable[..., subprocess.Popen[str]]:
    """The launcher with two stand-ins on `ports`."""

    def start(manner: str = "") -> subprocess.Popen[str]:
        script = str(root / ".make" / "run.py")
        return launch(["-c", LAUNCH, script, SERVER, *map(str, ports), manner])

    return start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_both(
    number: signal.Signals,
    stand_ins: Callable[..., subprocess.Popen[str]],
    ports: tuple[int, int],
    tmp_path: Path,
) -> None:
    process = stand_ins()
    assert all(is_listening(port) for port in ports)
    process.send_signal(number)
    assert process.wait(timeout=10) == 0
    said = (tmp_path / "output").read_text()
    assert said.splitlines() == [
        "Starting the server and the page ...",
        "Ready; Ctrl-C stops both.",
        f"  server  http://127.0.0.1:{ports[0]}",
        f"  page    http://127.0.0.1:{ports[1]}",
        "Stopped.",
    ]
    assert not any(is_listening(port) for port in ports)


@pytest.mark.parametrize(("dying", "name"), [(0, "server"), (1, "page")])
def test_when_one_dies_the_other_stops(
    dying: int,
    name: str,
    root: Path,
    stand_ins: Callable[..., subprocess.Popen[str]],
    ports: tuple[int, int],
    tmp_path: Path,
) -> None:
    process = stand_ins()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        pytest.skip("this system does not list a process's children in /proc")
    os.kill(int(children.read_text().split()[dying]), signal.SIGKILL)
    assert process.wait(timeout=10) == 1
    last = (tmp_path / "output").read_text().splitlines()[-1]
    assert last == (
        f"The {name} ended by itself with exit status -9: its last messages above say why."
    )
    assert not any(is_listening(port) for port in ports)


def test_a_second_ctrl_c_kills_what_does_not_listen(
    stand_ins: Callable[..., subprocess.Popen[str]], ports: tuple[int, int]
) -> None:
    process = stand_ins("stubborn")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert not any(is_listening(port) for port in ports)


@pytest.mark.parametrize(("taken", "variable"), [(0, "PORT"), (1, "PAGE_PORT")])
def test_a_port_in_use_is_one_clear_sentence(
    taken: int, variable: str, root: Path, ports: tuple[int, int]
) -> None:
    with socket.socket() as occupant:
        occupant.bind(("127.0.0.1", ports[taken]))
        occupant.listen()
        result = run_script(root, "--port", str(ports[0]), "--page-port", str(ports[1]))
    assert result.returncode == 1
    assert result.stdout == ""
    (sentence,) = result.stderr.splitlines()
    assert f"Port {ports[taken]} " in sentence
    assert "already in use" in sentence
    assert f"make run {variable}=" in sentence


@pytest.mark.parametrize("port", ["0", "65536", "http", "", "-1", "8000.0"])
def test_a_bad_port_is_refused_with_its_value(port: str, root: Path) -> None:
    result = run_script(root, f"--port={port}")
    assert result.returncode == 2
    assert repr(port) in result.stderr
    assert "1 to 65535" in result.stderr


def test_two_equal_ports_are_refused(root: Path) -> None:
    result = run_script(root, "--port", "9000", "--page-port", "9000")
    assert result.returncode == 2
    assert "PORT and PAGE_PORT are both 9000" in result.stderr


def run_script(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The launcher, expected to end by itself."""
    return subprocess.run(
        [sys.executable, str(root / ".make" / "run.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def setup(root: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run setup.sh where the only programs are fake Pythons of the given behaviour."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def run(
        python: str = "", fakes: dict[str, str] | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        for name, body in (fakes or {}).items():
            (programs / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            (programs / name).chmod(0o755)
        return subprocess.run(
            ["/bin/sh", str(root / ".make" / "setup.sh"), str(tmp_path / "venv")],
            env={"PATH": str(programs), "PYTHON": python, **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


OLD = 'case "$2" in *sys.exit*) exit 1 ;; *platform*) echo 3.9.2 ;; esac'
WITHOUT_VENV = 'case "$2" in *sys.exit*) ;; *ensurepip*) exit 1 ;; *) echo 3.12 ;; esac'


@pytest.mark.parametrize(
    ("python", "fakes", "parts"),
    [
        ("", {}, ["needs Python 3.11 to 3.14", "none was found", "make setup PYTHON="]),
        ("", {"python3": OLD}, ["needs Python 3.11 to 3.14", "python3 is 3.9.2"]),
        ("", {"python3": OLD, "python3.13": WITHOUT_VENV}, ["python3.13 cannot make virtual"]),
        ("", {"python3.12": WITHOUT_VENV}, ["apt install python3.12-venv"]),
        ("python3", {"python3": OLD}, ["PYTHON=python3 is 3.9.2", "make setup PYTHON="]),
        ("missing", {"python3": OLD}, ["PYTHON=missing is no Python that runs"]),
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
    assert result.returncode == 1
    assert result.stdout == ""
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
    result = setup("", {"python3": 'case "$2" in *platform*) echo 3.12.1 ;; esac'})
    assert result.returncode == 1
    assert result.stderr.splitlines()[0] == "no such package"
    assert "'make setup' tries again" in result.stderr
    assert not (tmp_path / "venv" / ".installed").exists()


def test_what_is_imported_is_compiled_once(
    setup: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Whatever the user's shell says: else each process would spend seconds on it."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "[$PYTHONDONTWRITEBYTECODE] $*"\n', encoding="utf-8")
    python.chmod(0o755)
    fakes = {"python3": 'case "$2" in *platform*) echo 3.12.1 ;; esac', "touch": ""}
    result = setup("", fakes, PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 0, result.stderr
    *_, installed, imported, _ = result.stdout.splitlines()
    assert installed.startswith("[1] -m pip install")
    assert imported.startswith("[] -c import app.main, ")


def test_a_folder_that_is_no_environment_is_never_emptied(
    setup: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "thesis.txt").write_text("years of work", encoding="utf-8")
    result = setup("", {"python3": 'case "$2" in *platform*) echo 3.12.1 ;; esac'})
    assert result.returncode == 1
    assert "no virtual environment" in result.stderr
    assert (tmp_path / "venv" / "thesis.txt").exists()


def test_make_installs_again_only_when_the_pins_changed(root: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    venv.mkdir()
    stamp = venv / ".installed"
    question = ["make", "--question", "setup", f"VENV={venv}"]

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
    root: Path,
    ports: tuple[int, int],
    launch: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    """What the README promises of `make run`, its curl included."""
    port, page_port = map(str, ports)
    process = launch([".make/run.py", "--port", port, "--page-port", page_port], within_s=300)
    readme = (root / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^curl .*$", readme, re.MULTILINE)
    words = shlex.split(line)
    answer = send(words[1].replace(":8000/", f":{port}/"), words[words.index("-d") + 1])
    (prediction,) = json.loads(answer)["predictions"]
    assert prediction["label"] in prediction["scores"]
    assert "<title>" in send(f"http://127.0.0.1:{page_port}/")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0
    said = (tmp_path / "output").read_text()
    assert said.endswith("Stopped.\n")
    assert "Traceback" not in said
    assert not any(is_listening(each) for each in ports)


def send(url: str, body: str | None = None) -> str:
    """GET, or POST a JSON body; the answer's text."""
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, data=body.encode() if body else None, timeout=30) as answer:
        return str(answer.read().decode("utf-8"))
