"""The console script `deltabert`: its subcommands, its mistakes, and a user's own modules."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltas
from deltas import __main__ as cli

Capture = pytest.CaptureFixture[str]
ROOT = Path(deltas.__file__).parents[1]
NAMES = [
    *("fit", "sweep", "report", "submit", "zoo"),
    *("serve", "cluster", "page", "predict", "deltas"),
]
# Runs the script as pip installs it: the current folder is not on the path.
SCRIPT = ("-P", "-c", "import sys; from deltas.__main__ import deltabert; sys.exit(deltabert())")


@pytest.fixture(scope="session")
def entry_points() -> EntryPoints:
    """The project's entry points, as pyproject.toml declares them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"deltabert": "deltas.__main__:deltabert"}
    return EntryPoints(
        EntryPoint(name, target, group)
        for group, targets in project["entry-points"].items()
        for name, target in targets.items()
    )


def install(monkeypatch: pytest.MonkeyPatch, entry_points: EntryPoints) -> None:
    """Make the running process see an installation with these entry points."""
    ours = SimpleNamespace(entry_points=entry_points)
    monkeypatch.setattr(cli, "distribution", lambda _name: ours)


@pytest.fixture
def installed(entry_points: EntryPoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the running process see this checkout's entry points."""
    install(monkeypatch, entry_points)


@pytest.fixture
def start(tmp_path: Path, entry_points: EntryPoints) -> Callable[..., Any]:
    """Start Python in an empty folder of a user, with this checkout installed."""
    metadata = tmp_path / "site" / "deltabert-0.1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: deltabert\nVersion: 0.1.0\n")
    lines = [f"[{entry.group}]\n{entry.name} = {entry.value}\n" for entry in entry_points]
    (metadata / "entry_points.txt").write_text("".join(lines))
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{metadata.parent}{os.pathsep}{ROOT}"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path / "work",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_each_command_with_one_line(arguments: list[str], capsys: Capture) -> None:
    assert cli.deltabert(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in NAMES:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1


def test_the_installed_commands_are_the_ones_listed(entry_points: EntryPoints) -> None:
    commands = entry_points.select(group="deltabert.commands")
    assert [entry.name for entry in commands] == NAMES == list(cli._COMMANDS)
    audits = entry_points.select(group="deltabert.audits")
    assert [entry.name for entry in audits] == list(cli.AUDITS)


def test_an_unknown_command_gets_a_near_match(capsys: Capture) -> None:
    assert cli.deltabert(["swep"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown command 'swep'. Did you mean 'sweep'")
    assert err.count("\n") == 1


def test_the_version_is_the_distribution_s(capsys: Capture) -> None:
    assert cli.deltabert(["--version"]) == 0
    assert capsys.readouterr().out == "deltabert 0.1.0\n"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "page"])
def test_each_command_shows_its_flags_under_its_own_name(
    name: str, installed: None, capsys: Capture
) -> None:
    try:
        code = cli.deltabert([name, "--help"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 0
    assert capsys.readouterr().out.startswith(f"usage: deltabert {name} ")


@pytest.mark.parametrize("name", list(cli.AUDITS))
def test_audits_are_commands_of_deltas(name: str, installed: None, capsys: Capture) -> None:
    for main, prog in ((cli.main, "python -m deltas"), (cli.deltabert, "deltabert deltas")):
        arguments = [name, "--help"] if main is cli.main else ["deltas", name, "--help"]
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith(f"usage: {prog} {name} ")
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert f"\n    {name} " in capsys.readouterr().out


def test_an_installation_without_audits_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    install(monkeypatch, EntryPoints())
    assert cli.main(["joint"]) == 1
    assert "install it again" in capsys.readouterr().err


def test_the_exit_code_is_the_command_s(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.deltabert(["deltas", "show", "nowhere.safetensors"]) == 1
    assert "no such file" in capsys.readouterr().err


def test_page_hands_its_flags_to_streamlit(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr(
        "streamlit.web.cli.main", lambda args, prog_name: called.append((args, prog_name))
    )
    assert cli.deltabert(["page", "--server.port", "9000"]) == 0
    script = str(ROOT / "frontend" / "main.py")
    assert called == [(["run", script, "--server.port", "9000"], "deltabert page")]


def test_an_installation_without_commands_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    install(monkeypatch, EntryPoints())
    assert cli.deltabert(["fit"]) == 1
    assert "install" in capsys.readouterr().err


def test_another_package_can_not_replace_a_command(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    """Its metadata come first on the path."""
    metadata = tmp_path / "other" / "intruder-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: intruder\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[deltabert.commands]\nfit = os:_exit\n")
    program = f"import sys; sys.path.insert(0, {str(metadata.parent)!r}); {SCRIPT[2]}"
    done = start("-P", "-c", program, "fit", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: deltabert fit")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (SCRIPT, 0),
        ((*SCRIPT, "--help"), 0),
        ((*SCRIPT, "fti"), 2),
        (("-m", "deltas", "--help"), 0),
        (("-m", "deltas", "prune"), 2),
        (("-m", "deltas", "joint", "--help"), 0),
        (("-m", "deltas", "abstain"), 2),
        (("-m", "app", "--help"), 0),
        (("-m", "app", "--port", "9000"), 2),
    ],
)
def test_help_and_misuse_answer_at_once(
    start: Callable[..., Any], arguments: tuple[str, ...], code: int
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = start(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 1.0, "CPU seconds, on a busy machine; to import torch takes more on any"


@pytest.mark.parametrize(
    ("module", "command"),
    [("training.fit", "fit"), ("training.sweep", "sweep"), ("app", "serve")],
)
def test_a_user_s_module_that_hides_deltas_is_named(
    start: Callable[..., Any], tmp_path: Path, module: str, command: str
) -> None:
    hiding = tmp_path / "work" / "deltas.py"
    hiding.write_text("mine = True\n")
    done = start("-m", module, "--help")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {hiding} hides DeltaBERT's `deltas`; start with `deltabert {command}` instead\n"
    )


def test_ctrl_c_while_the_server_loads_is_no_traceback(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    # Stands for a library that takes seconds to load.
    (tmp_path / "site" / "uvicorn.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = start("-m", "app")
    assert done.returncode == 0
    assert done.stderr.endswith("SIGINT: stopped at once\n")
    assert "Traceback" not in done.stderr


def test_a_user_s_modules_do_not_hide_ours_from_the_script(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("app.py", "audit.py", "training.py", "deltas.py", "frontend.py"):
        (tmp_path / "work" / name).write_text("raise RuntimeError('the wrong module')\n")
    for command in (("deltas", "list"), ("fit", "--freeze", "help"), ("serve", "--help")):
        done = start(*SCRIPT, *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_folder_called_deltas_hides_nothing(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "work" / "deltas").mkdir()
    assert start("-m", "training.fit", "--freeze", "help").returncode == 0


@pytest.mark.parametrize("command", ["deltabert()", "main(['list'])", "main(['list', '--help'])"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_nothing_takes_is_no_traceback(
    command: str, unbuffered: str, tmp_path: Path
) -> None:
    """A pager that ended, a full disk, and a stream that the shell closed."""
    script = f"import sys; sys.argv = ['x']; from deltas.__main__ import *; sys.exit({command})"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    python = subprocess.list2cmdline([sys.executable])
    (tmp_path / "script.py").write_text(script)

    def run(redirection: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", "-c", f"PYTHONPATH='{ROOT}' {python} '{tmp_path}/script.py' {redirection}"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        done = subprocess.run(
            [sys.executable, tmp_path / "script.py"],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, "")
    assert run(">&-") == (0, "")
    code, complaint = run(">/dev/full")
    assert "Traceback" not in complaint
    assert "Exception ignored" not in complaint
    if complaint:  # argparse says nothing if its help can't be written at once
        assert code == 1
        assert "No space left on device" in complaint
