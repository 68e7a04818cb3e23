"""Values of settings that are refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cloud.settings import BadSettings, load_settings


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().max_batch = 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (
            'inference_address = "unix:1"',
            "inference_address: invalid address, expected HOST:PORT, got 'unix:1'",
        ),
        ("max_batch = 0", "max_batch: Input should be greater than or equal to 1, got 0"),
        ("max_connection_age_s = 3e6", "max_connection_age_s: .* equal to 2000000, got 3000000.0"),
        ("grace_s = inf", "grace_s: Input should be a finite number, got inf"),
        ("site_weights = { north = 0 }", "site_weights.north: .* greater than 0, got 0"),
        ("site_weights = { north = inf }", "site_weights.north: .* finite number, got inf"),
        ("stage_engines = 3", "stage_engines: expected a list with the name of each .*, got 3"),
        ('stages = 2\nstage_engines = ["openvino"]', "stage_engines names 1 engines"),
        ('devices = ["cuda:0"]\nengine = "openvino:GPU.0"', "names devices too"),
        ('devices = ["cpu"]\nstages = 2\nstage_engines = ["a", "b"]', "names devices too"),
        ('ray = "auto"\nstages = 2', "set stages = 1"),
        ('ray = "auto"\ndevices = ["cuda:0", "cuda:1"]', "may name one kind"),
        ("instances = 0", "instances"),
        ('tls.cert = "a.pem"', "tls: cert and key must be set together"),
        ('tls.ca = "a.pem"', "tls: ca requires cert and key"),
    ],
)
def test_an_invalid_setting_is_named(tmp_path: Path, text: str, word: str) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=word):
        load_settings(config)


@pytest.mark.parametrize("setting", ["address", "http_address"])
def test_other_machines_are_not_served_in_the_clear(setting: str) -> None:
    far = {setting: "0.0.0.0:50051"}
    with pytest.raises(BadSettings, match=rf"{setting} = 0\.0\.0\.0:50051 can be .*insecure"):
        load_settings(**far)
    assert load_settings(**far, insecure=True).tls.encryption == "none"
    assert load_settings(**far, tls={"cert": "a.pem", "key": "a.key"}).tls.encryption == "TLS"
    for address in ("localhost:1", "127.0.0.1:0", "[::1]:1"):
        assert load_settings(**{setting: address}).reachable == {}
    assert load_settings(address="unix:/run/overread.sock").reachable == {}
