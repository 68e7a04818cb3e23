"""The tables ``[[targets]]``: what is wrong is named by the target's name and its field."""

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
    with pytest.raises(BadSettings, match=r"^OVERREAD_EDGE_TARGETS\.0\.address = .*HOST:PORT"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (NAME, r'targets\.pacs\.kind is missing, expected "dicom" or "dicomweb"$'),
        (f'{NAME}kind = "ftp"', r"targets\.pacs\.kind = 'ftp': expected \"dicom\" or \"dicomweb\""),
        (
            f'{NAME}kind = "dicom"',
            r"targets\.pacs\.address is missing, expected HOST:PORT; .*called_ae",
        ),
        (
            f"{DICOM}adress = 1",
            r"targets\.pacs\.adress: there is no such setting; did you mean address\?",
        ),
        (f'{DICOM}objects = ["key-images"]', r"objects = 'key-images': expected a list of some of"),
        (DICOM.replace("104", "99999"), r"targets\.pacs\.address = .*:99999': expected HOST:PORT"),
        (DICOM.replace('"PACS"', '"A\\\\B"'), r"targets\.pacs\.called_ae = .*: expected 1 to 16"),
        (DICOM.replace('"pacs"', '"a b"'), r"targets\.a b\.name = 'a b': expected 1 to 32 letters"),
        (DICOM.replace("127.0.0.1", "pacs"), r"targets\.pacs: pacs:104 is another machine, .*true"),
        (f'{DICOM}tls.cert = "a"', r"targets\.pacs.*: cert and key must be set together"),
        (f'{DICOM}tls.cert = "a"\ntls.key = "b"', r"targets\.pacs: tls.cert requires tls.ca"),
        (f'{DICOM}tls.ca = "a\\u0000"', "expected text without zero bytes"),
        (DICOM + DICOM, "^targets: two have the name pacs"),
        (f'{WEB}url = "ftp://x"', r"targets\.pacs\.url = 'ftp://x': expected an address with http"),
        (
            f'{WEB}url = "https://u@x"',
            r"targets\.pacs: url = .*expected an address with.* without user",
        ),
        (f'{WEB}url = "https://a..b"', r"targets\.pacs: url = .*expected an address with a valid"),
        (DICOM.replace("127.0.0.1", "a..b"), r"targets\.pacs\.address = .*: expected HOST:PORT"),
        (f'{WEB}url = "http://x/"', r"targets\.pacs: x:80 is another machine, .* not https"),
        (f'{WEB}url = "http://[::1]/"\ntls.ca = "a"', r"targets\.pacs: tls.ca .* need an https://"),
        ("targets = 3", r"targets = 3: expected a list of tables"),
        ("targets = [3]", r"targets\.0: expected a table|targets\.0\.kind"),
    ],
)
def test_a_wrong_target_is_refused_with_its_name_and_field(
    tmp_path: Path, text: str, says: str
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(text)
    with pytest.raises(BadSettings, match=says):
        load_settings(config)
