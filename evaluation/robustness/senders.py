"""Hostile senders: what a real one sends, recorded and damaged, over DICOM and over HTTP."""

import socket
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.association import Association

from imaging.dicom.writer import write_series
from imaging.volume import Geometry, StudyHeader, Volume

IMAGES = 12
PATIENCE_S = 20.0
"""Longest wait for an answer; a sender that waits longer ends."""
PAUSE_S = 0.05
AE_TITLE = "OVERREAD"
BOUNDARY = "overread-hostile"
TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'

Endpoint = tuple[str, int]


def small_series(folder: Path, seed: int) -> list[Dataset]:
    """Write a series of small slices, and return its images."""
    hu = np.random.default_rng(seed).integers(-1000, 400, (IMAGES, 32, 32)).astype(np.int16)
    header = StudyHeader(patient_id=f"P{seed}")
    files = write_series(Volume(hu, Geometry()), folder, header=header, seed=seed)
    return [dcmread(file) for file in files]


def associate(endpoint: Endpoint, recorded: list[bytes] | None = None) -> Association:
    """Open an association for CT images; ``recorded`` gets what is sent over it."""
    ae = AE("SCANNER")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    handlers: list[evt.EventHandlerType] = []
    if recorded is not None:
        handlers.append((evt.EVT_DATA_SENT, lambda event: recorded.append(event.data)))
    return ae.associate(*endpoint, ae_title=AE_TITLE, evt_handlers=handlers)


def store(endpoint: Endpoint, images: Sequence[Dataset]) -> int:
    """Send images by C-STORE; return how many were acknowledged."""
    association = associate(endpoint)
    if not association.is_established:
        return 0
    done = [association.send_c_store(image).get("Status") == 0x0000 for image in images]
    association.release()
    return sum(done)


def post(endpoint: Endpoint, images: Sequence[Dataset]) -> int:
    """Send images by STOW-RS; return 1 for each if all were stored, else 0."""
    connection = HTTPConnection(*endpoint, timeout=PATIENCE_S)
    with suppress(OSError, HTTPException):
        headers = {"Content-Type": TYPE}
        connection.request("POST", "/dicom-web/studies", _body(images), headers)
        return len(images) if connection.getresponse().status == 200 else 0
    return 0


def _body(images: Sequence[Dataset]) -> bytes:
    body = BytesIO()
    for image in images:
        body.write(f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode())
        image.save_as(body, enforce_file_format=True)
        body.seek(0, 2)
        body.write(b"\r\n")
    body.write(f"--{BOUNDARY}--\r\n".encode())
    return body.getvalue()


@dataclass(frozen=True)
class Recording:
    """What a real sender sends for two images: the PDUs of an association, and a request."""

    pdus: tuple[bytes, ...]
    request: bytes

    @classmethod
    def of(cls, endpoint: Endpoint, images: Sequence[Dataset]) -> "Recording":
        """Send two images by C-STORE, and record it."""
        pdus = list[bytes]()
        association = associate(endpoint, pdus)
        for image in images[:2]:
            association.send_c_store(image)
        association.release()
        body = _body(images[:2])
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Type: {TYPE}\r\n"
        return cls(tuple(pdus), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _flipped(content: bytes, chance: Random) -> bytes:
    """Change some bytes; rarely many."""
    damaged = bytearray(content)
    for _ in range(min(len(damaged), int(chance.expovariate(0.3)) + 1)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def _of_length(pdu: bytes, length: int) -> bytes:
    """State another length of a PDU."""
    return pdu[:2] + struct.pack(">L", length) + pdu[6:]


def _noise(recording: Recording, chance: Random) -> list[bytes]:
    del recording
    return [chance.randbytes(chance.randrange(1, 4000))]


def _damaged_request(recording: Recording, chance: Random) -> list[bytes]:
    return [_flipped(recording.pdus[0], chance), *recording.pdus[1:]]


def _damaged_command(recording: Recording, chance: Random) -> list[bytes]:
    return [recording.pdus[0], _flipped(recording.pdus[1], chance), *recording.pdus[2:]]


def _damaged_pdus(recording: Recording, chance: Random) -> list[bytes]:
    first, *others = recording.pdus
    return [first, *(_flipped(p, chance) if chance.random() < 0.5 else p for p in others)]


def _false_lengths(recording: Recording, chance: Random) -> list[bytes]:
    pdus = list(recording.pdus)
    at = chance.randrange(len(pdus))
    length = chance.choice((0, 1, 5, len(pdus[at]) * 2, 1 << 20, 1 << 31, 0xFFFFFFFF))
    pdus[at] = _of_length(pdus[at], length)
    return pdus


def _in_disorder(recording: Recording, chance: Random) -> list[bytes]:
    first, *others = recording.pdus
    chance.shuffle(others)
    return [first, *others] if chance.random() < 0.8 else [*others, first]


def _repeated(recording: Recording, chance: Random) -> list[bytes]:
    first, *others = recording.pdus
    return [first, *others[:-1] * chance.randrange(2, 20)]


def _cut_off(recording: Recording, chance: Random) -> list[bytes]:
    whole = b"".join(recording.pdus)
    return [recording.pdus[0], whole[len(recording.pdus[0]) : chance.randrange(len(whole))]]


def _damaged_http(recording: Recording, chance: Random) -> list[bytes]:
    return [_flipped(recording.request, chance)]


def _damaged_head(recording: Recording, chance: Random) -> list[bytes]:
    head, _, body = recording.request.partition(b"\r\n\r\n")
    return [_flipped(head, chance) + b"\r\n\r\n" + body]


def _cut_http(recording: Recording, chance: Random) -> list[bytes]:
    return [recording.request[: chance.randrange(len(recording.request))]]


Attack = Callable[[Recording, Random], list[bytes]]
BY_DICOM: Mapping[str, Attack] = {
    "noise": _noise,
    "damaged association request": _damaged_request,
    "damaged command": _damaged_command,
    "damaged PDUs": _damaged_pdus,
    "false lengths": _false_lengths,
    "PDUs in disorder": _in_disorder,
    "repeated requests": _repeated,
    "association cut off": _cut_off,
}
BY_HTTP: Mapping[str, Attack] = {
    "HTTP noise": _noise,
    "damaged HTTP request": _damaged_http,
    "damaged HTTP headers": _damaged_head,
    "HTTP request cut off": _cut_http,
}


def attack(endpoint: Endpoint, parts: Sequence[bytes], chance: Random) -> bool:
    """Send the parts, and end in one of several ways; return whether anything was answered."""
    answered = False
    with suppress(OSError), socket.create_connection(endpoint, PATIENCE_S) as connection:
        connection.settimeout(PAUSE_S)
        for part in parts:
            connection.sendall(part)
            with suppress(TimeoutError):
                answered |= bool(connection.recv(1 << 16))
        if chance.random() < 0.3:  # a reset instead of an end
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif chance.random() < 0.5:
            connection.shutdown(socket.SHUT_WR)
            with suppress(TimeoutError):
                answered |= bool(connection.recv(1 << 16))
    return answered
