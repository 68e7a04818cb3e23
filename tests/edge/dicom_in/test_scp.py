"""What is the DICOM node's own: associations, transfer syntaxes and the protocol's messages."""

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
)
from pynetdicom.association import Association
from pynetdicom.pdu_primitives import P_DATA
from structlog.testing import capture_logs

from edge.settings.receive import Peer
from tests.edge.dicom_in.senders import (
    DICOM,
    IMAGES,
    Port,
    associate,
    changed,
    data_set_of,
    file_of,
    names,
    new_images,
    on_their_way,
    received,
    store_raw,
)
from tests.edge.running_agent import wait_until
from tests.imaging.small_ct import SmallCt, encoded

COMPRESSED = [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless]
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian,
          DeflatedExplicitVRLittleEndian]  # fmt: skip


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """One for all tests, each of which sends a series of its own."""
    with DICOM.open(
        tmp_path_factory.mktemp("dicom"), receive__max_instance_mb=1, receive__timeout_s=2
    ) as opened:
        yield opened


def image_in(syntax: str) -> Dataset:
    (image,) = new_images(1)
    if syntax in COMPRESSED:
        encoded(image, "4.90" if syntax == JPEG2000 else syntax.removeprefix("1.2.840.10008.1.2."))
        image.file_meta.TransferSyntaxUID = UID(syntax)
        return image
    content = BytesIO()
    if syntax == ExplicitVRBigEndian:
        image.PixelData = bytes(image.PixelData)
    image.file_meta.TransferSyntaxUID = UID(syntax)
    implicit, little = UID(syntax).is_implicit_VR, UID(syntax).is_little_endian
    image.save_as(content, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    content.seek(0)
    return dcmread(content)


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda uid: UID(uid).name)
def test_an_image_is_stored_in_the_transfer_syntax_in_which_it_came(
    port: Port, syntax: str
) -> None:
    image = image_in(syntax)
    assert DICOM.send(port, image, syntax=syntax) == [0x0000]
    (file,) = port.files([image]).values()
    stored = dcmread(file)
    assert stored.file_meta.TransferSyntaxUID == syntax
    assert stored.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
    assert stored.PixelData == image.PixelData


@pytest.mark.parametrize("how", [{"syntax": JPEGBaseline8Bit}, {"sop_class": MRImageStorage}])
def test_what_the_reader_does_not_read_is_not_accepted_but_an_echo_is_answered(
    port: Port, how: dict[str, str]
) -> None:
    association = associate(port, **how)
    rejected = [one.abstract_syntax for one in association.rejected_contexts]
    assert rejected == [how.get("sop_class", CTImageStorage)]
    assert association.send_c_echo().Status == 0x0000
    association.release()


def rejection(association: Association) -> tuple[int, int, int]:
    """Result, source and reason of a rejected association."""
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert answer is not None
    return answer.result, answer.result_source, answer.diagnostic


def test_an_unknown_calling_ae_title_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a wrong called one; a fault while a sender is checked admits nobody."""
    with DICOM.open(tmp_path, peers=("SCANNER@127.0.0.1", "PACS@10.1.0.0/16")) as port:
        with capture_logs() as logs:
            assert rejection(associate(port, caller="STRANGER")) == (1, 1, 3)
            assert rejection(associate(port, caller="PACS")) == (1, 1, 3)
        assert DICOM.send(port, IMAGES[0]) == [0x0000]
        assert rejection(associate(port, called="OTHER")) == (1, 1, 7)
        assert port.counted("refused_associations_total", reason="calling AE title") == 2
        assert port.counted("refused_associations_total", reason="called AE title") == 1
        monkeypatch.setattr(Peer, "admits", Mock(side_effect=RuntimeError("of the program")))
        assert rejection(associate(port)) == (1, 1, 3)
    assert [line["caller"] for line in logs if "rejected" in line["event"]] == ["STRANGER", "PACS"]


def test_one_association_too_many_is_rejected_and_the_next_is_not(tmp_path: Path) -> None:
    with DICOM.open(tmp_path, max_open=2) as port:
        open_ones = [associate(port) for _ in range(2)]
        assert port.counted("open_associations") == 2
        assert rejection(associate(port)) == (2, 3, 2)
        open_ones[0].release()
        wait_until(lambda: port.counted("open_associations") == 1)
        assert DICOM.send(port, IMAGES[0]) == [0x0000]
        open_ones[1].release()


MR = changed(IMAGES[0], SOPClassUID=MRImageStorage)


@pytest.mark.parametrize(
    ("data_set", "request_fields", "status"),
    [
        (data_set_of(file_of(IMAGES[0])), {"AffectedSOPInstanceUID": "1.2.3"}, 0xA900),
        (data_set_of(file_of(MR)), {"AffectedSOPClassUID": MRImageStorage,
                                    "AffectedSOPInstanceUID": MR.SOPInstanceUID}, 0x0122),
        (data_set_of(file_of(MR)), {"AffectedSOPInstanceUID": MR.SOPInstanceUID}, 0xA900),
        (b"\x08\x00\x05\x00CS\x00\x00", {}, 0xC001),
    ],
)  # fmt: skip
def test_an_instance_that_is_not_what_the_request_says_is_refused(
    port: Port, data_set: bytes, request_fields: dict[str, str], status: int
) -> None:
    before = received(port.inbox)
    association = associate(port)
    assert store_raw(association, data_set, **request_fields) == status
    association.release()
    assert received(port.inbox) == before
    assert on_their_way(port.inbox) == []


def no_end(association: Association) -> None:
    association.send_c_store(changed(new_images(1)[0], PixelData=bytes(3_000_000)))


def too_large(association: Association) -> None:
    connection = association.dul.socket
    assert connection is not None
    connection.send(struct.pack(">BBL", 4, 0, 1 << 30) + bytes(10_000))


def message(value: bytes) -> Callable[[Association], None]:
    def sends(association: Association) -> None:
        data = P_DATA()
        context = association.accepted_contexts[0].context_id
        data.presentation_data_value_list = [[context, value]]  # type: ignore[list-item]
        association.dul.send_pdu(data)

    return sends


@pytest.mark.parametrize(
    "sends",
    [no_end, too_large, message(b""), message(b"\x03"), message(b"\x03" + bytes(20)),
     message(b"\x02" + bytes(100)), message(b"\x00" * 10)],
    ids=["data without end", "large PDU", "empty", "no command", "damaged command",
         "data without command", "half data and silence"],
)  # fmt: skip
def test_a_damaged_message_ends_its_association_only(
    port: Port, sends: Callable[[Association], None]
) -> None:
    association = associate(port)
    sends(association)
    wait_until(lambda: not association.is_established)
    assert DICOM.send(port, *new_images()) == [0, 0]


def dcmtk(name: str) -> str:
    """The program of dcmtk; pynetdicom has others of the same names."""
    own = Path(sys.executable).parent
    path = [one for one in os.environ["PATH"].split(":") if Path(one) != own]
    found = shutil.which(name, path=":".join(path))
    if found is None:
        pytest.skip(f"needs {name}: apt install dcmtk")
    return found


@pytest.mark.parametrize("option", ["--propose-uncompr", "--propose-little", "--propose-implicit"])
def test_dcmtk_sends_a_series(tmp_path: Path, port: Port, option: str) -> None:
    echoscu, storescu = dcmtk("echoscu"), dcmtk("storescu")
    images = new_images(12)
    SmallCt().write(tmp_path / "series", images)
    host, number = port.endpoint
    to = ["-aet", "SCANNER", "-aec", "OVERREAD", host, str(number)]
    subprocess.run([echoscu, *to], check=True, capture_output=True, timeout=60)
    command = [storescu, "-v", "+sd", option, *to, tmp_path / "series"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(port.files(images)) == names(images)
    command = [echoscu, "-aec", "OTHER", host, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "called ae title not recogni" in done.stderr.lower()
