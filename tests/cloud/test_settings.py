"""The sources of settings, and values that are refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cloud.errors import BadSettings
from cloud.settings import load_settings


def test_argument_beats_environment_beats_file_beats_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text('address = "localhost:1"\nengine = "file"\nmodel = "file"\n')
    monkeypatch.setenv("OVERREAD_CLOUD_ENGINE", "environment")
    monkeypatch.setenv("OVERREAD_CLOUD_MODEL", "environment")
    settings = load_settings(config, model="argument", threads=None)
    assert settings.model == "argument"
    assert settings.engine == "environment"
    assert settings.address == "localhost:1"
    assert settings.threads == 0


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_batch = 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('address = "nonsense"', "address = 'nonsense': invalid address, expected HOST:PORT"),
        ('address = ":"', "address = ':': invalid address, expected HOST:PORT"),
        ('address = "localhost:99999"', "invalid address, expected HOST:PORT"),
        ("max_batch = 0", "max_batch = 0: expected a whole number of at least 1"),
        ("grace_s = inf", "grace_s = inf: expected a number of at least 0"),
        ('threads = "many"', "threads = 'many': expected a whole number of at least 0"),
        ("site_weights = { north = 0 }", "site_weights.north = 0: expected a table with a number"),
        ("site_weights = { north = inf }", "site_weights.north = inf: expected a table with a nu"),
        ("stage_engines = 3", "stage_engines = 3: expected a list with the name of each engine"),
        ('stages = 2\nstage_engines = ["openvino"]', "stage_engines names 1 engines"),
        ('tls.cert = "a.pem"', "tls: cert and key must be set together"),
        ('tls.ca = "a.pem"', "tls: ca requires cert and key"),
        ('tls_ca = "a.pem"', r"tls_ca is now tls\.ca"),
        ("site_share = 0.5", "site_share is no setting any more"),
        ("tls = true", "tls: expected a table"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path: Path, text: str, word: str) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=word):
        load_settings(config)


def test_other_machines_are_not_served_in_the_clear() -> None:
    """Unless the settings say so."""
    with pytest.raises(BadSettings, match=r"address = 0\.0\.0\.0:50051 can be reached .*insecure"):
        load_settings(address="0.0.0.0:50051")
    assert load_settings(address="0.0.0.0:50051", insecure=True).tls.encryption == "none"
    pair = {"cert": "cloud.pem", "key": "cloud.key"}
    assert load_settings(address="0.0.0.0:50051", tls=pair).tls.encryption == "TLS"
    for address in ("localhost:1", "127.0.0.1:0", "[::1]:1", "unix:/run/overread.sock"):
        assert load_settings(address=address).address == address


def test_the_same_holds_for_http() -> None:
    """Where it is served at all."""
    with pytest.raises(
        BadSettings, match=r"http_address = 0\.0\.0\.0:8000 can be reached .*insecure"
    ):
        load_settings(http_address="0.0.0.0:8000")
    assert load_settings(http_address="0.0.0.0:8000", insecure=True).reachable
    assert load_settings(http_address="[::1]:8000").reachable == {}
