"""Hostile senders for the installed agent, at its DICOM and its HTTP door.

They send what a real sender sends, recorded and damaged. After every few of them a sound series is
sent, which must be acknowledged and read. The memory of the agent is measured.
"""

import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import Random
from typing import Any

from edge.dicom_in.received import RECEIVING
from evaluation.process_memory import resident_mb
from evaluation.receiving.sender import Endpoint, Series, copied, send
from evaluation.run import each
from evaluation.world import free_ports, running_agent

PATIENCE_S = 20.0
"""Longest wait for an answer; a sender that waits longer ends."""
PAUSE_S = 0.05
BOUNDARY = "overread-hostile"
SOUND_EVERY = 20
"""Hostile senders between two sound ones."""
READ_S = 600.0
"""Longest wait for the sound series."""

BOUNDS: dict[str, Any] = {
    "receive__min_free_mb": 1, "receive__max_instance_mb": 2, "quiet_s": 1.0,
    "receive__timeout_s": 5.0,
}  # fmt: skip

TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def post(endpoint: Endpoint, files: Sequence[Path]) -> bool:
    """Send files by STOW-RS; return whether all were stored."""
    connection = HTTPConnection(*endpoint, timeout=PATIENCE_S)
    with suppress(OSError, HTTPException):
        headers = {"Content-Type": TYPE}
        connection.request("POST", "/dicom-web/studies", _body(files), headers)
        return connection.getresponse().status == 200
    return False


def _body(files: Sequence[Path]) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    parts = [head + file.read_bytes() + b"\r\n" for file in files]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


@dataclass(frozen=True)
class Recording:
    """What a real sender sends for some images: the PDUs of an association, and a request."""

    pdus: tuple[bytes, ...]
    request: bytes

    @classmethod
    def of(cls, endpoint: Endpoint, files: Sequence[Path]) -> "Recording":
        """Send files by C-STORE, and record it."""
        pdus = list[bytes]()
        send(endpoint, files, record=pdus.append)
        body = _body(files)
        head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: a\r\nContent-Type: {TYPE}\r\n"
        return cls(tuple(pdus), f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _flipped(content: bytes, chance: Random) -> bytes:
    """Change some bytes; rarely many."""
    damaged = bytearray(content)
    for _ in range(min(len(damaged), int(chance.expovariate(0.3)) + 1)):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def _false_lengths(recording: Recording, chance: Random) -> list[bytes]:
    pdus = list(recording.pdus)
    at = chance.randrange(len(pdus))
    length = chance.choice((0, 1, 5, len(pdus[at]) * 2, 1 << 20, 1 << 31, 0xFFFFFFFF))
    pdus[at] = pdus[at][:2] + struct.pack(">L", length) + pdus[at][6:]
    return pdus


def _in_disorder(recording: Recording, chance: Random) -> list[bytes]:
    first, *others = recording.pdus
    chance.shuffle(others)
    return [first, *others] if chance.random() < 0.8 else [*others, first]


def _cut_off(recording: Recording, chance: Random) -> list[bytes]:
    first, whole = recording.pdus[0], b"".join(recording.pdus)
    return [first, whole[len(first) : chance.randrange(len(whole))]]


def _damaged_head(recording: Recording, chance: Random) -> list[bytes]:
    head, _, body = recording.request.partition(b"\r\n\r\n")
    return [_flipped(head, chance) + b"\r\n\r\n" + body]


Make = Callable[[Recording, Random], list[bytes]]
"""Makes what is sent, of what a real sender sends."""

DICOM, HTTP = "dicom", "http"
ATTACKS: Mapping[str, tuple[str, Make]] = {
    "noise": (DICOM, lambda _, chance: [chance.randbytes(chance.randrange(1, 4000))]),
    "damaged association request": (
        DICOM, lambda r, chance: [_flipped(r.pdus[0], chance), *r.pdus[1:]]
    ),
    "damaged command": (
        DICOM, lambda r, chance: [r.pdus[0], _flipped(r.pdus[1], chance), *r.pdus[2:]]
    ),
    "damaged PDUs": (DICOM, lambda r, chance: [
        r.pdus[0], *(_flipped(p, chance) if chance.random() < 0.5 else p for p in r.pdus[1:])
    ]),
    "false lengths": (DICOM, _false_lengths),
    "PDUs in disorder": (DICOM, _in_disorder),
    "repeated requests": (
        DICOM, lambda r, chance: [r.pdus[0], *r.pdus[1:-1] * chance.randrange(2, 20)]
    ),
    "association cut off": (DICOM, _cut_off),
    "HTTP noise": (HTTP, lambda _, chance: [chance.randbytes(chance.randrange(1, 4000))]),
    "damaged HTTP request": (HTTP, lambda r, chance: [_flipped(r.request, chance)]),
    "damaged HTTP headers": (HTTP, _damaged_head),
    "HTTP request cut off": (
        HTTP, lambda r, chance: [r.request[: chance.randrange(len(r.request))]]
    ),
}  # fmt: skip
"""The door of each attack, and what makes it."""


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


def senders(root: Path, sound: Sequence[Path], count: int, seed: int) -> dict[str, Any]:
    """Send hostile and sound data in turn to an agent below ``root``; return what became of it.

    ``sound`` are the files of a series that can be read; it goes to both doors in turn.
    """
    chance, kinds, answered = Random(seed), Counter[str](), Counter[str]()
    (stow_port,) = free_ports(1)
    stow = {"receive__stow__address": f"127.0.0.1:{stow_port}"}
    sent, acknowledged, sizes_mb = list[Series](), 0, list[float]()
    root.mkdir(parents=True, exist_ok=True)
    with running_agent(root, root / "log", **stow, **BOUNDS) as agent:
        doors: dict[str, Endpoint] = {DICOM: agent.endpoint, HTTP: ("127.0.0.1", stow_port)}
        recording = Recording.of(agent.endpoint, copied(sound[:2], root / "recorded").files)
        for number in each(range(1, count + 1), "senders"):
            kind = chance.choice([*ATTACKS])
            door, make = ATTACKS[kind]
            kinds[kind] += 1
            answered[kind] += attack(doors[door], make(recording, chance), chance)
            if number % SOUND_EVERY == 0 or number == count:
                agent.process.require_alive()
                series = copied(sound, root / "sent" / str(number))
                if len(sent) % 2:
                    acknowledged += post(doors[HTTP], series.files)
                else:
                    taken = send(doors[DICOM], series.files).acknowledged
                    acknowledged += len(taken) == len(series.files)
                sent.append(series)
                sizes_mb.append(resident_mb(agent.process.pid))
        reports = [agent.out(one.study_uid, one.patient_id) / "report.json" for one in sent]
        agent.process.wait_until(lambda: all(map(Path.is_file, reports)), "answer", READ_S)
        sizes_mb.append(resident_mb(agent.process.pid))
        rejections = [json.loads(report.read_bytes())["rejection"] for report in reports]
        return {
            "senders": count,
            "hostile": dict(sorted(kinds.items())),
            "answered": dict(sorted(answered.items())),
            "sound_series": len(sent),
            "acknowledged": acknowledged,
            "reported": rejections.count(None),
            "left_on_their_way": len(os.listdir(agent.inbox / RECEIVING)),
            "growth_mb": sizes_mb[-1] - sizes_mb[0],
        }
