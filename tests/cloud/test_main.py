"""The command line: what an operator reads when something is wrong, and `describe`."""

import json
import os
import re
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud import instances
from cloud.__main__ import app
from tests.cloud.running import MeanReader, run_cloud
from tests.pki import make_pki


def command(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of ``overread-cloud`` with ``arguments``."""
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr.replace("\n", " ")


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a short reader instead of the network."""
    monkeypatch.setattr(instances, "open_second_reader", lambda *_, **__: MeanReader())


def fails_in_one_line(*arguments: str) -> str:
    """The last line of stderr of ``overread-cloud serve``, which must end with status 1."""
    result = CliRunner().invoke(app, ["serve", "--address", "127.0.0.1:0", *arguments])
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def test_describe_prints_json_or_a_table_and_fails_without_a_service() -> None:
    with run_cloud() as cloud:
        status, out, _ = command("describe", cloud.address, "--json")
        table_status, table, _ = command("describe", cloud.address)
    assert status == table_status == 0
    said = json.loads(out)
    assert said["models"] == {"mean": "2.1"}
    assert said["roi_shape"] == [8, 8, 8]
    assert "max_rois" in table
    assert "mean 2.1" in table
    assert "8 x 8 x 8" in table
    assert "100" in table
    status, out, err = command("describe", cloud.address)
    assert (status, out) == (1, "")
    assert "Unreachable" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("127.0.0.1",), "'127.0.0.1': expected HOST:PORT"),
        (("",), "'': expected HOST:PORT"),
        (("127.0.0.1:1", "--timeout-s", "inf"), "--timeout-s inf: expected seconds, above 0"),
        (("127.0.0.1:1", "--timeout-s", "nan"), "--timeout-s nan: expected seconds, above 0"),
        (("127.0.0.1:1", "--tls-cert", "edge.pem"), "must be given together"),
        (("127.0.0.1:1", "--tls-key", "edge.key"), "must be given together"),
        (("unix:/nope",), "Unreachable"),
    ],
)
def test_describe_names_what_cannot_be(given: tuple[str, ...], said: str) -> None:
    status, out, err = command("describe", *given)
    assert status in (1, 2)
    assert out == ""
    assert said in " ".join(err.replace("│", "").split())


def test_describe_names_the_mistake_with_tls(tmp_path: Path) -> None:
    """GRPC says "Socket closed" in each case."""
    names = dict.fromkeys(("cloud", "edge"), ("CN=x", "subjectAltName=IP:127.0.0.1"))
    pki = make_pki(tmp_path, **names)
    files = {"ca": pki / "ca.pem", "cert": pki / "cloud.pem", "key": pki / "cloud.key"}
    ca = ("--tls-ca", str(pki / "ca.pem"))
    edge = ("--tls-cert", str(pki / "edge.pem"), "--tls-key")
    with run_cloud(tls=files) as cloud:
        assert command("describe", cloud.address, *ca, *edge, str(pki / "edge.key"))[0] == 0
        for options, said in (
            (ca, "requires a client certificate: set --tls-cert and --tls-key"),
            ((*ca, *edge, str(pki / "cloud.key")), "cannot be used together"),
        ):
            status, out, err = command("describe", cloud.address, *options)
            assert (status, out) == (1, "")
            assert said in err
            assert "Socket" not in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_batch = 0", "BadSettings: .*max_batch"),
        ("adress = 'x:1'", "BadSettings: .*adress"),
        ("model = 'none'", "UnknownArtifact: no artifact 'none' in "),
        ("model = 'screening-int8'", "UnfitArtifact: screening-int8 is of kind 'screening'"),
        ("devices = ['cuda:7']", "EngineUnavailable: devices names 'cuda:7': onnxruntime:CUDA"),
    ],
)
def test_serve_names_a_setting_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(text)
    assert re.match(says, fails_in_one_line("--config", str(config)))


@pytest.mark.usefixtures("small_model")
def test_serve_names_an_unwritable_ready_file(tmp_path: Path) -> None:
    line = fails_in_one_line("--ready-file", str(tmp_path / "absent" / "ready"))
    assert re.match(rf"FileNotFoundError: .*{tmp_path}/absent/ready", line)


@pytest.mark.usefixtures("small_model")
def test_serve_names_a_taken_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert fails_in_one_line("--address", address).startswith(f"AddressUnusable: {address} ")
        for setting in ("metrics_address", "http_address"):
            line = fails_in_one_line(f"--{setting.replace('_', '-')}", address)
            assert line == f"CannotListen: {setting} = {address}: {os.strerror(98)}"
