"""The sources of settings, and values that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cloud.errors import BadSettings
from cloud.settings import load_settings


def test_argument_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text('address = "file:1"\nengine = "file"\nmodel = "file"\n')
    monkeypatch.setenv("OVERREAD_CLOUD_ENGINE", "environment")
    monkeypatch.setenv("OVERREAD_CLOUD_MODEL", "environment")
    settings = load_settings(config, model="argument", threads=None)
    assert settings.model == "argument"
    assert settings.engine == "environment"
    assert settings.address == "file:1"
    assert settings.threads == 0


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_batch = 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("max_bach = 3", "max_bach"),
        ("max_batch = 0", "max_batch"),
        ("max_batch_delay_s = -1", "max_batch_delay_s"),
        ("max_budget_s = inf", "max_budget_s: Input should be a finite number"),
        ('threads = "many"', "threads"),
        ('scheduling = "lifo"', "scheduling"),
        ("site_share = 0", "site_share"),
        ("site_weights = { north = 0 }", "north"),
        ("site_weights = { north = inf }", "north: Input should be a finite number"),
        ('stages = 2\nstage_engines = ["openvino"]', "stage_engines names 1 engines"),
        ('tls_cert = "a.pem"', "tls_key"),
        ('tls_ca = "a.pem"', "tls_cert"),
        ("max_batch = ", "cloud.toml"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path: Path, text: str, word: str) -> None:
    """A misspelt name, an impossible value, half a pair or broken TOML is named in the error."""
    config = tmp_path / "cloud.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=word):
        load_settings(config)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")
