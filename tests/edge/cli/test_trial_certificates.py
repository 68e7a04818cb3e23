"""The certificates of ``overread-edge certs``: edge and cloud start with them at once."""

import ssl
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud.settings import load_settings as load_cloud_settings
from edge.cli.main import app
from edge.cli.trial_certificates import FILES, CertificatesFailed, make_certificates
from edge.link.channel import open_channel
from edge.settings.core import load_settings
from process.tls import diagnose
from protos import overread_pb2 as pb
from protos.overread_pb2_grpc import OverreadStub
from tests.cloud.running import run_cloud


def printed_settings(folder: Path, *arguments: str) -> tuple[dict[str, str], dict[str, str]]:
    """What ``overread-edge certs`` prints for the two files of settings."""
    result = CliRunner().invoke(app, ["certs", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    assert "For a trial" in result.stdout
    cloud, edge = result.stdout.split("# cloud.toml")[1].split("# edge.toml")
    return tomllib.loads(cloud), tomllib.loads(edge)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_edge_and_cloud_start_with_them_at_once(tmp_path: Path, host: str) -> None:
    """Mutual TLS with the settings as they are printed, under each name of this machine."""
    for_cloud, for_edge = printed_settings(tmp_path / "trial")
    settings = load_settings(**for_edge)
    tls = load_cloud_settings(**for_cloud).tls
    with run_cloud(tls=tls) as cloud:
        address = cloud.address.replace("127.0.0.1", host)
        with open_channel(address, settings) as channel:
            answer = OverreadStub(channel).Describe(pb.DescribeRequest(), timeout=20)
        assert answer.models == {"mean": "2.1"}
        assert diagnose(address, settings.cloud.tls, 20.0) == ""


def test_keys_are_for_their_owner_alone_and_the_authority_s_is_not_kept(tmp_path: Path) -> None:
    make_certificates(tmp_path / "trial", (), 60)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "trial").iterdir()}
    assert sorted(modes) == sorted(FILES)
    assert {modes["cloud.key"], modes["edge.key"]} == {0o600}


def test_they_expire_soon_and_name_the_hosts(tmp_path: Path) -> None:
    for_cloud, _ = printed_settings(tmp_path / "trial", "--host", "reader.example", "--days", "31")
    tls = load_cloud_settings(**for_cloud).tls
    assert tls.problems() == []
    assert tls.warnings() == []  # none within the first 30 days
    assert b"reader.example" in _der(tmp_path / "trial" / "cloud.pem")


def test_nothing_is_replaced(tmp_path: Path) -> None:
    make_certificates(tmp_path, (), 60)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = CliRunner().invoke(app, ["certs", str(tmp_path)])
    assert result.exit_code == 1
    assert "ca.pem exists: choose another folder" in result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("host", ["reader.example:50051", "a, IP:0.0.0.0", "", "-x", "a\nb"])
def test_a_host_that_is_none_is_refused(host: str, tmp_path: Path) -> None:
    with pytest.raises(CertificatesFailed, match="expected a host name or an IP address"):
        make_certificates(tmp_path, (host,), 60)
    assert list(tmp_path.iterdir()) == []


def _der(pem: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.read_text())
