import threading
from pathlib import Path

import pytest

from edge.errors import BadSettings
from edge.settings.core import load_settings
from edge.site import PAUSE_POLLS
from process.settings import MAX_S


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text('cloud.address = "127.0.0.1:50051"\ndeadline_s = 7.0\n')
    return path


def test_override_beats_environment_beats_file_beats_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An override that is None is no override; ``off`` switches off the cloud of the file."""
    settings = load_settings(config)
    assert (settings.cloud.address, settings.deadline_s) == ("127.0.0.1:50051", 7.0)
    assert settings.cloud.max_rois == 100
    monkeypatch.setenv("OVERREAD_EDGE_DEADLINE_S", "3.5")
    assert load_settings(config, deadline_s=3.0).deadline_s == 3.0
    assert load_settings(config, deadline_s=None).deadline_s == 3.5
    assert load_settings(config, cloud__address="off").cloud.address is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("deadline_s = -1", "deadline_s: Input should be greater than 0, got -1"),
        *(
            (f"{name} = 1e300", rf"{name}: Input should be less than or equal to {most}, got 1e")
            for name, most in [
                *((one, 31536000) for one in ("quiet_s", "poll_s", "deadline_s")),
                ("cloud.health_check_s", 31536000),
                ("pending.max_days", 36500),
            ]
        ),
        ('inbox = "a"\noutbox = "b/../a"', "outbox must lie outside inbox"),
        ('inbox = "a"\noutbox = "a/out"', "outbox must lie outside inbox"),
        ('inbox = "a"\nstate_dir = "a/b/state"', "state_dir must lie outside inbox"),
        ('state_dir = "a"\ninbox = "a/in"', "^inbox must lie outside state_dir"),
        (
            'cloud.address = "localhost:1"\ndeadline_s = 2',
            r"^deadline_s = 2 leaves no time .* = 2;",
        ),
        *(
            (f'cloud.{name} = "{bad}"', f"cloud.{name}: .*HOST:PORT or off, got '{bad}'")
            for name in ("address", "fallback")
            for bad in ("nowhere", "host:99999", "host:00", "127.0.0.1:5,host")
        ),
        (
            'cloud.address = "localhost:1"\ncloud.fallback = "localhost:1"',
            "cloud: fallback must differ from address",
        ),
        ('[cloud.tls]\ncert = "a.pem"\nkey = "b.pem"', r"cloud: tls\.cert requires tls\.ca"),
    ],
)
def test_bad_file_is_refused_with_the_offending_value(config: Path, text: str, says: str) -> None:
    config.write_text(text)
    with pytest.raises(BadSettings, match=says):
        load_settings(config)


def test_a_reserve_above_the_deadline_is_no_matter_without_a_cloud() -> None:
    assert load_settings(deadline_s=1.0, reserve_s=2.0, cloud__address="off").cloud.address is None


def test_the_longest_time_can_be_waited_for() -> None:
    """A pause of ten of the longest polls is still one that a thread can make."""
    assert PAUSE_POLLS * MAX_S < threading.TIMEOUT_MAX


def test_an_inbox_below_the_outbox_or_by_another_name_is_seen_through(tmp_path: Path) -> None:
    """Folders above or beside the inbox are allowed; a link to it is the inbox."""
    inbox, link = tmp_path / "in", tmp_path / "link"
    inbox.mkdir()
    link.symlink_to(inbox)
    assert load_settings(inbox=inbox, outbox=tmp_path, state_dir=tmp_path / "in-state")
    with pytest.raises(BadSettings, match="outbox must lie outside inbox"):
        load_settings(inbox=inbox, outbox=link / "out")


@pytest.mark.parametrize("name", ["address", "fallback"])
def test_nothing_is_sent_to_another_machine_in_the_clear(name: str) -> None:
    """Unless the settings say so; within this machine it never leaves it."""
    clouds = {"cloud": {"address": "localhost:1", name: "reader.example:50051"}}
    with pytest.raises(
        BadSettings, match=r"^cloud: reader\.example:50051 is another machine.* insecure"
    ):
        load_settings(**clouds)
    assert load_settings(**clouds, cloud__insecure=True).cloud.tls.encryption == "none"
    assert load_settings(**clouds, cloud__tls__ca="ca.pem").cloud.tls.encryption == "TLS"
    for address in ("localhost:1", "127.0.0.9:1", "[::1]:1"):
        assert load_settings(cloud__address=address).cloud.address == address
