"""The DICOM node, as senders of any kind meet it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

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
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from structlog.testing import capture_logs

from edge.dicom_in.incoming import Limits
from edge.dicom_in.part import ReceiveMetrics
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.receiving import receiving
from edge.errors import BadSettings
from edge.settings.receive import Peer
from edge.telemetry import Telemetry
from tests.edge.dicom_in.senders import (
    IMAGES,
    Port,
    associate,
    dicom_port,
    names,
    on_their_way,
    received,
    send,
    settings_in,
)
from tests.edge.running_agent import wait_until
from tests.imaging.small_ct import SmallCt, encoded
from tests.pki import make_pki

COMPRESSED = [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, JPEG2000, RLELossless]
NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Port]:
    with dicom_port(tmp_path) as opened:
        yield opened


def image_in(syntax: str) -> Dataset:
    """The first image in this transfer syntax."""
    image = SmallCt().images()[0]
    if syntax in COMPRESSED and syntax != JPEG2000:
        encoded(image, syntax.removeprefix("1.2.840.10008.1.2."))
        return image
    if syntax == JPEG2000:
        encoded(image, "4.90")
        image.file_meta.TransferSyntaxUID = JPEG2000
        return image
    content = BytesIO()
    if syntax == ExplicitVRBigEndian:
        image.PixelData = bytes(image.PixelData)
    image.file_meta.TransferSyntaxUID = UID(syntax)
    implicit, little = UID(syntax).is_implicit_VR, UID(syntax).is_little_endian
    image.save_as(content, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    content.seek(0)
    return dcmread(content)


def test_the_node_answers_an_echo(port: Port) -> None:
    association = associate(port.endpoint)
    assert association.send_c_echo().Status == 0x0000
    association.release()


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda uid: UID(uid).name)
def test_an_image_is_stored_in_the_transfer_syntax_in_which_it_came(
    port: Port, syntax: str
) -> None:
    image = image_in(syntax)
    assert send(port.endpoint, [image], syntax=syntax) == [0x0000]
    (file,) = port.inbox.glob("*/*.dcm")
    stored = dcmread(file)
    assert stored.file_meta.TransferSyntaxUID == syntax
    assert stored.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
    assert stored.PixelData == image.PixelData
    assert port.counted("received_instances_total", way="dicom") == 1


def test_a_transfer_syntax_that_the_reader_does_not_decode_is_not_accepted(port: Port) -> None:
    association = associate(port.endpoint, syntax=JPEGBaseline8Bit)
    assert [one.abstract_syntax for one in association.rejected_contexts] == [CTImageStorage]
    association.release()


def test_another_sop_class_is_not_accepted(port: Port) -> None:
    association = associate(port.endpoint, sop_class=MRImageStorage)
    assert [one.abstract_syntax for one in association.rejected_contexts] == [MRImageStorage]
    association.release()


def rejection(association: Association) -> tuple[int, int, int]:
    """Result, source and reason of a rejected association."""
    assert association.is_rejected
    answer = association.acceptor.primitive
    assert answer is not None
    return answer.result, answer.result_source, answer.diagnostic


def test_an_unknown_calling_ae_title_is_rejected(tmp_path: Path) -> None:
    with dicom_port(
        tmp_path, receive__dicom__peers=("SCANNER@127.0.0.1", "PACS@10.1.0.0/16")
    ) as port:
        with capture_logs() as logs:
            assert rejection(associate(port.endpoint, caller="STRANGER")) == (1, 1, 3)
            assert rejection(associate(port.endpoint, caller="PACS")) == (1, 1, 3)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]
        assert port.counted("refused_associations_total", reason="calling AE title") == 2
    assert [line["caller"] for line in logs if "rejected" in line["event"]] == ["STRANGER", "PACS"]


def test_a_fault_while_a_sender_is_checked_admits_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(Peer, "admits", fail)
    with dicom_port(tmp_path, receive__dicom__peers=("SCANNER",)) as port:
        assert rejection(associate(port.endpoint)) == (1, 1, 3)


def test_a_wrong_called_ae_title_is_rejected(port: Port) -> None:
    assert rejection(associate(port.endpoint, called="OTHER")) == (1, 1, 7)
    assert port.counted("refused_associations_total", reason="called AE title") == 1


def test_one_association_too_many_is_rejected_and_the_next_is_not(tmp_path: Path) -> None:
    with dicom_port(tmp_path, receive__dicom__max_associations=2) as port:
        open_ones = [associate(port.endpoint) for _ in range(2)]
        assert port.counted("open_associations") == 2
        assert rejection(associate(port.endpoint)) == (2, 3, 2)
        open_ones[0].release()
        wait_until(lambda: port.counted("open_associations") == 1)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]
        open_ones[1].release()


def store_raw(association: Association, image: Dataset, **request: object) -> int:
    """Send a request whose fields are not those of the image."""
    content = BytesIO()
    image.save_as(content, implicit_vr=False, little_endian=True)
    message = C_STORE()
    message.MessageID, message.Priority = 1, 2
    message.AffectedSOPClassUID = image.SOPClassUID
    message.AffectedSOPInstanceUID = image.SOPInstanceUID
    message.DataSet = content
    for keyword, value in request.items():
        setattr(message, keyword, value)
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == CTImageStorage)
    assert context.context_id is not None
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(message, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    return int(getattr(answer, "Status", None) or -1)


def changed(**attributes: object) -> Dataset:
    image = SmallCt().images()[0]
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


@pytest.mark.parametrize(
    ("image", "request_fields", "status"),
    [
        (changed(), {"AffectedSOPInstanceUID": "1.2.3"}, 0xA900),
        (changed(SOPClassUID=MRImageStorage), {"AffectedSOPClassUID": MRImageStorage}, 0x0122),
        (changed(SOPClassUID=MRImageStorage), {"AffectedSOPClassUID": CTImageStorage}, 0xA900),
        (Dataset(), {"AffectedSOPClassUID": CTImageStorage, "AffectedSOPInstanceUID": "1.2"},
         0xC001),
    ],
)  # fmt: skip
def test_an_instance_that_is_not_what_the_request_says_is_refused(
    port: Port, image: Dataset, request_fields: dict[str, str], status: int
) -> None:
    if "SOPClassUID" not in image:
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, "1.2"
    association = associate(port.endpoint)
    assert store_raw(association, image, **request_fields) == status
    association.release()
    assert received(port.inbox) == {}
    assert on_their_way(port.inbox) == []


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID"])
def test_a_uid_with_path_tricks_is_refused(tmp_path: Path, port: Port, keyword: str) -> None:
    association = associate(port.endpoint)
    image = changed(**{keyword: "../../../evil"})
    with capture_logs() as logs:
        assert store_raw(association, image) == 0xC001
    association.release()
    assert list(tmp_path.rglob("*evil*")) == []
    assert received(port.inbox) == {}
    (line,) = [line for line in logs if line["event"] == "instance refused"]
    assert line["reason"] == "UID"
    assert "evil" not in str(line)
    assert port.counted("refused_instances_total", way="dicom", reason="UID") == 1


def test_a_duplicate_is_success_and_another_data_set_is_not(port: Port) -> None:
    images = [IMAGES[0], IMAGES[0], changed(PatientID="P2"), IMAGES[1]]
    assert send(port.endpoint, images) == [0x0000, 0x0000, 0x0111, 0x0000]
    assert list(received(port.inbox).values()) == [names(IMAGES[:2])]


def test_an_instance_that_is_too_large_is_refused_and_the_next_is_not(tmp_path: Path) -> None:
    large = changed(PixelData=bytes(1_500_000))
    with dicom_port(tmp_path, receive__max_instance_mb=1) as port:
        assert send(port.endpoint, [large, IMAGES[1]]) == [0xA701, 0x0000]
        assert on_their_way(port.inbox) == []
        assert list(received(port.inbox).values()) == [names(IMAGES[1:2])]


def test_a_data_set_without_end_is_aborted(tmp_path: Path) -> None:
    with dicom_port(tmp_path, receive__max_instance_mb=1) as port:
        association = associate(port.endpoint)
        association.send_c_store(changed(PixelData=bytes(3_000_000)))
        wait_until(lambda: not association.is_established)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]


def test_a_full_disk_is_out_of_resources_until_there_is_room(tmp_path: Path) -> None:
    free = [500_000]
    settings = settings_in(tmp_path)
    settings.inbox.mkdir()
    store = ReceivedStore(settings.inbox, Limits.of(settings), free_bytes=lambda _: free[0])
    with dicom_port(tmp_path, store) as port:
        assert send(port.endpoint, IMAGES[:2]) == [0xA700, 0xA700]
        free[0] = 10**10
        assert send(port.endpoint, IMAGES[:2]) == [0x0000, 0x0000]
        assert port.counted("refused_instances_total", way="dicom", reason="no room") == 2


def half_sent(association: Association, image: Dataset) -> None:
    """Send a command, and the first part of its data set."""
    content = BytesIO()
    image.save_as(content, implicit_vr=False, little_endian=True)
    message = C_STORE()
    message.MessageID, message.Priority = 1, 2
    message.AffectedSOPClassUID = image.SOPClassUID
    message.AffectedSOPInstanceUID = image.SOPInstanceUID
    message.DataSet = content
    context = association.accepted_contexts[0].context_id
    assert context is not None
    from pynetdicom.dimse_messages import C_STORE_RQ

    dimse = C_STORE_RQ()
    dimse.primitive_to_message(message)
    parts = list(dimse.encode_msg(context, 1000))
    for part in parts[:-1]:
        association.dul.send_pdu(part)


@pytest.mark.parametrize("how", ["abort", "close"])
def test_of_a_data_set_that_breaks_off_nothing_is_left(port: Port, how: str) -> None:
    association = associate(port.endpoint)
    half_sent(association, IMAGES[0])
    wait_until(lambda: len(on_their_way(port.inbox)) == 1)
    if how == "abort":
        association.abort()
    else:
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
    wait_until(lambda: on_their_way(port.inbox) == [])
    wait_until(lambda: port.counted("open_associations") == 0)
    assert received(port.inbox) == {}
    assert send(port.endpoint, IMAGES[:1]) == [0x0000]
    wait_until(lambda: not association.is_alive())


def test_a_sender_that_pauses_within_a_data_set_is_given_up(tmp_path: Path) -> None:
    with dicom_port(tmp_path, receive__dicom__timeout_s=1.0) as port:
        association = associate(port.endpoint)
        half_sent(association, IMAGES[0])
        wait_until(lambda: len(on_their_way(port.inbox)) == 1)
        wait_until(lambda: on_their_way(port.inbox) == [])
        wait_until(lambda: not association.is_established)


def raw(port: Port, content: bytes, *, shut: bool = False) -> bytes:
    """Send bytes; the answer until the connection ends."""
    with socket.create_connection(port.endpoint, 30) as connection:
        connection.sendall(content)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := connection.recv(4096):
                answer += part
        except ConnectionError:
            pass
        return answer


HOSTILE = {
    "nothing": b"",
    "noise": bytes(range(256)) * 8,
    "HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a request of 4 GB": struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(1000),
    "an empty request": struct.pack(">BBL", 1, 0, 0),
    "a damaged request": struct.pack(">BBL", 1, 0, 200) + bytes(200),
    "data before a request": struct.pack(">BBL", 4, 0, 10) + bytes(10),
    "a release before a request": struct.pack(">BBL", 5, 0, 4) + bytes(4),
    "half a request": struct.pack(">BBL", 1, 0, 200) + bytes(50),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_connection_ends_and_the_next_sender_is_served(
    tmp_path: Path, content: bytes
) -> None:
    with dicom_port(
        tmp_path, receive__dicom__timeout_s=1.0, receive__dicom__acse_timeout_s=1.0
    ) as port:
        raw(port, content)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]
        wait_until(lambda: not any("Acceptor" in t.name for t in threading.enumerate()[1:]
                                   if t.name.startswith("AcceptorThread")))  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [b"", b"\x03", b"\x03" + bytes(20), b"\x02" + bytes(100), b"\x00" * 10],
    ids=["empty", "no command", "damaged command", "data without command", "half data"],
)
def test_a_damaged_message_ends_its_association_only(tmp_path: Path, value: bytes) -> None:
    with dicom_port(tmp_path, receive__dicom__timeout_s=1.0) as port:
        association = associate(port.endpoint)
        context = association.accepted_contexts[0].context_id
        data = P_DATA()
        data.presentation_data_value_list = [[context, value]]  # type: ignore[list-item]
        association.dul.send_pdu(data)
        wait_until(lambda: not association.is_established)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]


def test_a_pdu_larger_than_agreed_on_ends_its_association(tmp_path: Path) -> None:
    with dicom_port(tmp_path, receive__dicom__max_pdu=4096) as port:
        association = associate(port.endpoint)
        connection = association.dul.socket
        assert connection is not None
        connection.send(struct.pack(">BBL", 4, 0, 1 << 30) + bytes(10_000))
        wait_until(lambda: not association.is_established)
        assert send(port.endpoint, IMAGES[:1]) == [0x0000]


def test_many_silent_connections_do_not_keep_a_sender_out(tmp_path: Path) -> None:
    """Those that are too many are closed at once; the others when they ask for nothing."""
    with dicom_port(
        tmp_path, receive__dicom__max_associations=1, receive__dicom__acse_timeout_s=5.0
    ) as port:
        silent = [socket.create_connection(port.endpoint, 30) for _ in range(40)]
        wait_until(lambda: port.counted("refused_associations_total",
                                        reason="too many connections") > 0)  # fmt: skip

        def is_served() -> bool:
            association = associate(port.endpoint)
            served = bool(association.is_established)
            association.release()
            return served

        wait_until(is_served)
        for one in silent:
            one.close()


def test_a_taken_port_is_named(tmp_path: Path, port: Port) -> None:
    with (
        pytest.raises(BadSettings, match=r"^receive\.dicom\.address = .*: Address already in use"),
        dicom_port(tmp_path, receive__dicom__address=port.address),
    ):
        pass


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(
        tmp_path_factory.mktemp("pki"),
        server=("CN=server", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        client=("CN=scanner-1", "extendedKeyUsage=clientAuth"),
    )


def test_with_tls_only_senders_with_a_certificate_are_served(tmp_path: Path, pki: Path) -> None:
    files = {"ca": pki / "ca.pem", "cert": pki / "server.pem", "key": pki / "server.key"}
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "client.pem", pki / "client.key")
    without = ssl.create_default_context(cafile=pki / "ca.pem")
    with dicom_port(
        tmp_path, receive__dicom__acse_timeout_s=2.0, receive__dicom__tls=files
    ) as port:
        stalled = socket.create_connection(port.endpoint, 30)  # never makes its handshake
        association = associate(port.endpoint, tls=(context, "localhost"))
        assert association.is_established
        assert association.send_c_store(IMAGES[0]).Status == 0x0000
        association.release()
        assert not associate(port.endpoint, tls=(without, "localhost")).is_established
        assert not associate(port.endpoint).is_established
        stalled.close()
    assert list(received(port.inbox).values()) == [names(IMAGES[:1])]


def test_files_of_tls_that_do_not_fit_stop_the_start(tmp_path: Path, pki: Path) -> None:
    files = {"cert": pki / "server.pem", "key": pki / "client.key"}
    expected = "receive.dicom.tls.key = .* is not the private key of receive.dicom.tls.cert"
    settings = settings_in(
        tmp_path, receive__dicom__address="127.0.0.1:0", receive__dicom__tls=files
    )
    with (
        pytest.raises(BadSettings, match=expected),
        receiving(settings, tmp_path, ReceiveMetrics(Telemetry())),
    ):
        pass


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
    SmallCt().write(tmp_path / "series")
    host, number = port.endpoint
    to = ["-aet", "SCANNER", "-aec", "OVERREAD", host, str(number)]
    subprocess.run([echoscu, *to], check=True, capture_output=True, timeout=60)
    command = [storescu, "-v", "+sd", option, *to, tmp_path / "series"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert list(received(port.inbox).values()) == [names(IMAGES)]


def test_dcmtk_names_the_reason_of_a_rejection(port: Port) -> None:
    host, number = port.endpoint
    command = [dcmtk("echoscu"), "-aec", "OTHER", host, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "called ae title not recogni" in done.stderr.lower()


SERVER = """
import os, signal, sys
from pathlib import Path
from edge.dicom_in import received, scp
from edge.dicom_in.incoming import Limits
from edge.dicom_in.received import ReceivedStore
from edge.dicom_in.part import ReceiveMetrics
from edge.telemetry import Telemetry
from tests.edge.dicom_in.senders import settings_in

root, at, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings = settings_in(root, receive__dicom__address="127.0.0.1:0")
store = ReceivedStore(settings.inbox, Limits.of(settings))
calls = [0]

def dying(real):
    def call(*args, **named):
        result = real(*args, **named)
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if at == "renamed":
    received._rename_into = dying(received._rename_into)
elif at == "kept":
    store.keep = dying(store.keep)
else:
    received.identify = dying(received.identify)
with scp.receiving_by_dicom(settings, store, ReceiveMetrics(Telemetry())) as listening:
    (root / "port.part").write_text(listening.address)
    (root / "port.part").rename(root / "port")
    signal.pause()
"""


@pytest.mark.parametrize("at", ["written", "renamed", "kept"])
def test_a_kill_before_the_acknowledgement_loses_nothing_that_was_acknowledged(
    tmp_path: Path, at: str
) -> None:
    (tmp_path / "inbox").mkdir()
    with subprocess.Popen([sys.executable, "-c", SERVER, tmp_path, at, "5"]) as process:
        wait_until(lambda: (tmp_path / "port").exists() or process.poll() is not None)
        host, number = (tmp_path / "port").read_text().rsplit(":", 1)
        association = associate((host, int(number)))
        statuses = [association.send_c_store(image).get("Status") for image in IMAGES[:5]]
        association.abort()
        assert process.wait(60) == -signal.SIGKILL
    acknowledged = [image for image, s in zip(IMAGES, statuses, strict=False) if s == 0x0000]
    assert len(acknowledged) == 4
    stored = [dcmread(file) for file in (tmp_path / "inbox").glob("*/*.dcm")]
    found = {str(image.SOPInstanceUID): image for image in stored}
    for image in acknowledged:
        assert found[str(image.SOPInstanceUID)].PixelData == image.PixelData
    # the next agent: the sender repeats what was not acknowledged
    with dicom_port(tmp_path) as port:
        assert set(send(port.endpoint, IMAGES)) == {0x0000}
        assert list(received(port.inbox).values()) == [names(IMAGES)]
        assert on_their_way(port.inbox) == []


def test_an_association_at_the_end_is_aborted_and_what_was_stored_stays(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port:
        association = associate(port.endpoint)
        assert association.send_c_store(IMAGES[0]).Status == 0x0000
    wait_until(lambda: not association.is_established)
    assert list(received(port.inbox).values()) == [names(IMAGES[:1])]
    assert os.listdir(port.inbox / ".receiving") == []
