"""Settings: types, ranges, paths, and mistyped names, each with a sentence that helps."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.process.settings import PREFIX, Settings, SettingsError, load_settings
from deltas.store.address import RemoteAddress


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> list[str]:
    """Return the problems that `load_settings` finds in some variables."""
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_defaults_need_no_environment() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.deltas == ()
    assert settings.zoo is True
    assert settings.cors_origins == ()


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("DELTABERT_PORT", "9000")
    monkeypatch.setenv("deltabert_zoo", "false")
    monkeypatch.setenv("DELTABERT_DELTAS", f"{tmp_path}{os.pathsep}{other}{os.pathsep}")
    monkeypatch.setenv("DELTABERT_CORS_ORIGINS", "http://a.example/, https://b.example:8443")
    monkeypatch.setenv("DELTABERT_DEVICE", "CPU")
    monkeypatch.setenv("DELTABERT_BACKBONE", "")
    settings = load_settings()
    assert settings.port == 9000
    assert settings.zoo is False
    assert settings.deltas == (tmp_path, other)
    assert settings.cors_origins == ("http://a.example", "https://b.example:8443")
    assert settings.device == "cpu"
    assert settings.backbone is None, "an empty variable is as good as none"


def test_folders_and_addresses_are_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DELTABERT_DELTAS", f"s3://bucket/live:{tmp_path}:hf://team/deltas@v1")
    settings = load_settings()
    s3, hub = RemoteAddress("s3", "bucket", "live"), RemoteAddress("hf", "team/deltas", "", "v1")
    assert settings.deltas == (s3, tmp_path, hub)
    shown = ["s3://bucket/live", str(tmp_path), "hf://team/deltas@v1"]
    assert settings.model_dump(mode="json")["deltas"] == shown


def test_a_home_folder_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    monkeypatch.setenv("DELTABERT_DELTAS", "~/mine")
    assert load_settings().deltas == (tmp_path / "mine",)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "99999", "DELTABERT_PORT is '99999': input should be less than or equal to 65535"),
        ("PORT", "http", "valid integer"),
        ("DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("PRECISION", "int4", "'auto', 'fp32', 'bf16' or 'int8'"),
        ("ZOO", "maybe", "DELTABERT_ZOO is 'maybe'"),
        ("MAX_BATCH_TOKENS", "-1", "greater than or equal to 0"),
        ("DEADLINE_S", "0", "greater than 0"),
        ("DEADLINE_S", "nan", "DELTABERT_DEADLINE_S"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("DELTAS", "no/such/folder", "'no/such/folder' is not a folder"),
        ("DELTAS", "gs://bucket/a", "gs:// is not supported; write the path of a folder"),
        ("DELTAS", "s3://key:hidden@bucket", "an address must not hold credentials"),
        ("CORS_ORIGINS", "example.org", "write it like https://example.org"),
        ("MAX_ROWS_PER_REQUEST", "5000", "DELTABERT_MAX_QUEUE_ROWS (4096)"),
    ],
)
def test_a_bad_value_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    (problem,) = problems(monkeypatch, **{name: value})
    assert said in problem
    assert "\n" not in problem
    assert "hidden" not in problem


def test_a_mistyped_name_is_an_error_with_a_suggestion(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = problems(monkeypatch, MAX_BATCHTOKENS="9")
    assert problem == (
        "DELTABERT_MAX_BATCHTOKENS is not a setting. "
        "Did you mean DELTABERT_MAX_BATCH_TOKENS or DELTABERT_MAX_BATCH_ROWS?"
    )


def test_a_name_like_no_other_gets_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = problems(monkeypatch, XYZZY="9")
    assert problem.startswith("DELTABERT_XYZZY is not a setting. Allowed: DELTABERT_HOST, ")


def test_all_problems_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = problems(monkeypatch, PRT="1", PORT="x", DEVICE="y")
    assert len(found) == 3


def test_settings_can_not_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
