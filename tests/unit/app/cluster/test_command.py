"""`python -m app.cluster`: what it says before anything is started."""

from __future__ import annotations

import pytest

from app.cluster import __main__ as command
from training import sweep


def test_without_ray_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main([]) == 2
    assert "pip install 'deltabert[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--replicas", "0"], "'0' is no whole number of at least 1"),
        (["--replicas", "3", "--max-replicas", "2"], "--max-replicas is 2, less than --replicas"),
        (["--threads", "two"], "'two' is no whole number"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(words)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_wrong_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DELTABERT_PORT", "no number")
    assert command.main([]) == 2
    assert capsys.readouterr().err.startswith("DELTABERT_PORT")


def test_a_certificate_that_no_client_would_see_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)  # else a cluster would start
    monkeypatch.setenv("DELTABERT_SSL_CERTFILE", "cert.pem")
    monkeypatch.setenv("DELTABERT_SSL_KEYFILE", "key.pem")
    assert command.main([]) == 2
    assert "speaks plain HTTP" in capsys.readouterr().err


def test_a_sweep_without_ray_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    monkeypatch.setattr(sweep, "find_spec", lambda name: None)
    words = ["--tasks", "rte", "--freeze", "head", "--data", "sample", "--ray"]
    words += ["--out", f"{tmp_path}/runs.jsonl", "--work", f"{tmp_path}/work"]
    assert sweep.main(words) == 2
    assert "pip install 'deltabert[ray]'" in capsys.readouterr().err
