"""The tables ``[[targets]]``: what is wrong is named by the target's number and its field."""

import json
from pathlib import Path

import pytest

from edge.errors import BadSettings
from edge.settings.core import load_settings

NAME = '[[targets]]\nname = "pacs"\n'
DICOM = f'{NAME}kind = "dicom"\naddress = "127.0.0.1:104"\ncalled_ae = "PACS"\n'
WEB = f'{NAME}kind = "dicomweb"\n'


def test_targets_of_both_kinds(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    other = WEB.replace("pacs", "web") + 'url = "https://web.example/dicom-web"\nobjects = ["sr"]\n'
    config.write_text(DICOM.replace("127.0.0.1", "pacs.example") + "insecure = true\n" + other)
    pacs, web = load_settings(config).targets
    assert (pacs.name, pacs.kind, pacs.address, pacs.encryption, pacs.objects) == (
        "pacs", "dicom", "pacs.example:104", "none", (),
    )  # fmt: skip
    assert (web.name, web.kind, web.encryption, web.objects) == ("web", "dicomweb", "TLS", ("sr",))


def test_targets_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    target = {"name": "pacs", "kind": "dicom", "address": "[::1]:104", "called_ae": "PACS"}
    monkeypatch.setenv("OVERREAD_EDGE_TARGETS", json.dumps([target]))
    assert [one.name for one in load_settings().targets] == ["pacs"]
    monkeypatch.setenv("OVERREAD_EDGE_TARGETS", json.dumps([target | {"address": "[::1]:0"}]))
    with pytest.raises(
        BadSettings, match=r"^OVERREAD_EDGE_TARGETS\.0\.dicom\.address: .*HOST:PORT"
    ):
        load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NAME, r"targets\.0: Unable to extract tag using discriminator 'kind'$"),
        (f'{NAME}kind = "ftp"', r"targets\.0: .*'ftp'.*'dicom', 'dicomweb'"),
        (f'{NAME}kind = "dicom"', r"0\.dicom\.address: Field required\n.*called_ae: Field"),
        (f"{DICOM}adress = 1", r"targets\.0\.dicom\.adress: Extra inputs are not permitted$"),
        (f'{DICOM}objects = ["key-images"]', r"objects\.0: .*'pdf', got 'key-images'"),
        (DICOM.replace("104", "99999"), r"0\.dicom\.address: .*HOST:PORT, got .*:99999'"),
        (DICOM.replace('"PACS"', '"A\\\\B"'), r"targets\.0\.dicom\.called_ae: .*, got 'A"),
        (DICOM.replace('"pacs"', '"a b"'), r"targets\.0\.dicom\.name: .*, got 'a b'"),
        (DICOM.replace("127.0.0.1", "pacs"), r"0\.dicom: pacs:104 is another machine, .*true"),
        (f'{DICOM}tls.cert = "a"\ntls.key = "b"', r"targets\.0\.dicom: tls.cert requires tls.ca"),
        (DICOM + DICOM, "^targets: two have the name pacs"),
        (f'{WEB}url = "ftp://x"', r"targets\.0\.dicomweb\.url: .*, got 'ftp://x'"),
        (
            f'{WEB}url = "https://u@x"',
            r"targets\.0\.dicomweb: url = .*expected an address with.* without user",
        ),
        (
            f'{WEB}url = "https://a..b"',
            r"targets\.0\.dicomweb: url = .*expected an address with a v",
        ),
        (DICOM.replace("127.0.0.1", "a..b"), r"targets\.0\.dicom\.address: .*expected HOST:PORT"),
        (f'{WEB}url = "http://x/"', r"targets\.0\.dicomweb: x:80 is another machine, .* not https"),
        (
            f'{WEB}url = "http://[::1]/"\ntls.ca = "a"',
            r"targets\.0\.dicomweb: tls.ca .* need an https://",
        ),
        ("targets = 3", r"targets: expected a list of tables.*, got 3"),
        ("targets = [3]", r"targets\.0: Input should be a valid dictionary.*, got 3"),
    ],
)
def test_a_wrong_target_is_refused_with_its_number_and_field(
    tmp_path: Path, text: str, says: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=says):
        load_settings(config)
