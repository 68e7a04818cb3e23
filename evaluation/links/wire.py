"""``overread-eval wire``: everything that edge and cloud say to each other, searched for a patient.

A phantom gets a header full of distinctive values, UIDs of its own, and a folder named after its
patient. A real agent reads it with a real cloud process, in plain gRPC through a proxy that keeps
all bytes: health checks, an escalation, retries that amend the report, and a new model for the
edge. None of the values may be in the bytes, in the decoded headers or in the decoded messages, in
either direction.
"""

import base64
import json
import re
import struct
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status
from hpack import Decoder
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, PushPromiseFrame

from evaluation.links.proxy import Conditions, proxied, steady
from evaluation.phantoms import STUDIES, prepare, whole_chest
from evaluation.run import Bar, command
from evaluation.world import running_agent, running_cloud
from models.runtime import MANIFEST
from models.runtime.artifacts import WEIGHTS
from models.runtime.signatures import make_keys, sign
from protos import overread_pb2 as pb
from protos.errors import DETAILS_KEY

SEED = 19
"""A phantom with many uncertain candidates, that of the demo."""
MAX_ROIS = 6
"""ROIs of one escalation: fewer than there are, so that the others are retried."""
LIMIT_S = 900.0
ROOT = "1.2.826.0.1.3680043.8.498.5550199"
"""Beginning of all UIDs of the study."""
SITE = "wire-test-site"
OFFERED = "screening-small-int8"
"""The model that the cloud offers: another one than the agent's."""

SERVICE = "/overread.v1.Overread"

METHODS: Mapping[str, tuple[type[Message], type[Message]]] = {
    f"{SERVICE}/Read": (pb.ReadRequest, pb.ReadResponse),
    f"{SERVICE}/Describe": (pb.DescribeRequest, pb.DescribeResponse),
    f"{SERVICE}/GetModel": (pb.GetModelRequest, pb.GetModelResponse),
}
"""What is asked and answered in each."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, section 3.4)."""

_TABLE_BYTES = 1 << 20
"""Larger than any table of headers that gRPC asks for."""

Headers = list[tuple[str, str]]

PATIENT: Mapping[str, str] = {
    "PatientName": "Quixwell^Zephyrine",
    "PatientID": "MRN-7764201-K",
    "PatientBirthDate": "19610317",
    "PatientAddress": "17 Larkspur Crescent",
    "AccessionNumber": "ACC9920417",
    "InstitutionName": "Hospital Santa Umbra",
    "ReferringPhysicianName": "Varnhagen^Ottokar",
    "StationName": "CTROOM7B",
    "StudyDate": "20260817",
    "StudyTime": "143311",
    "StudyID": "STUD55012",
    "StudyDescription": "Thorax Quellenweg",
    "SeriesDescription": "Lunge duenn 4711",
    "ProtocolName": "Prot-Xylem-88",
    "DeviceSerialNumber": "SER0099812",
}
"""What the header of the study states; each value is in no program and in no model."""


@dataclass
class Tap:
    """All bytes that a proxy carried, by connection and direction (``True``: to the cloud)."""

    data: dict[tuple[int, bool], bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    def __call__(self, connection: int, up: bool, data: bytes) -> None:
        """Keep bytes of one connection."""
        self.data[connection, up] += data


@dataclass
class Heard:
    """What was said: headers, and messages by their type; and all texts to search in.

    The texts are those that crossed, and the traces that edge and cloud have written.
    """

    headers: set[str] = field(default_factory=set)
    messages: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    traces: set[str] = field(default_factory=set)
    roi_bytes: int = 0
    rest: int = 0


def exchange(work: Path, cache: Path) -> dict[str, Any]:
    """Read the study with agent and cloud, and search what was said."""
    patient = "Quixwell_Zephyrine_19610317"
    study = work / "inbox" / patient
    values = {*make_study(study, cache), *PATIENT.values(), patient, str(work)}
    tap = Tap()
    traces = [work / "cloud.jsonl", work / "edge.jsonl"]
    models, key = sign_models(work / "models")
    offer = {
        "traces": str(traces[0]), "offered_model": OFFERED, "offered_folder": str(models)
    }  # fmt: skip
    with (
        running_cloud(**offer) as cloud,
        proxied(cloud.address, steady(Conditions()), tap=tap) as proxy,
    ):
        report = read_by_agent(work, proxy.address, patient, models, key)
    heard = decode(tap)
    heard.texts += [text for path in traces for text in path.read_text().splitlines()]
    found = sorted(value for value in searched(values) if is_in(value, tap, heard))
    return {
        "values": len(values),
        "found": found,
        "connections": len({connection for connection, _ in tap.data}),
        "bytes_up": sum(len(data) for (_, up), data in tap.data.items() if up),
        "bytes_down": sum(len(data) for (_, up), data in tap.data.items() if not up),
        "undecoded_bytes": heard.rest,
        "messages": dict(sorted(heard.messages.items())),
        "headers": sorted(heard.headers),
        "roi_bytes": heard.roi_bytes,
        "study_keys": len(heard.keys),
        "study_key_is_that_of_the_report": heard.keys == {report["study_key"]},
        "site_seen": any(SITE in text for text in heard.texts),
        "versions": report["version"],
        "trace_is_that_of_the_study": heard.traces == {report["study_key"]},
    }


def make_study(folder: Path, cache: Path) -> set[str]:
    """Write the phantom with the header of `PATIENT`; return its UIDs and file names."""
    (prepared,) = prepare([whole_chest(SEED)], cache)
    folder.mkdir(parents=True)
    said = {f"{ROOT}.1", f"{ROOT}.2", f"{ROOT}.4"}
    for number, file in enumerate(sorted(prepared.folder.glob("*.dcm")), 1):
        image = pydicom.dcmread(file)
        for keyword, value in PATIENT.items():
            setattr(image, keyword, value)
        image.StudyInstanceUID, image.SeriesInstanceUID = f"{ROOT}.1", f"{ROOT}.2"
        image.FrameOfReferenceUID = f"{ROOT}.4"
        image.SOPInstanceUID = f"{ROOT}.3.{number}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        name = f"Quixwell-{number:05d}.dcm"
        image.save_as(folder / name)
        said |= {image.SOPInstanceUID, name}
    (folder / ".done").touch()
    return said


def sign_models(folder: Path) -> tuple[Path, Path]:
    """Sign the shipped models with a new key; return a folder with them, and the public key."""
    private, public = make_keys(folder.parent, "wire")
    folder.mkdir()
    for file in (*WEIGHTS.glob("screening*.onnx"), WEIGHTS / MANIFEST):
        (folder / file.name).symlink_to(file)
    sign(folder, private)
    return folder, public


def read_by_agent(work: Path, cloud: str, name: str, models: Path, key: Path) -> dict[str, Any]:
    """Run an agent until the report of the study is final and a model is fetched; return it."""
    settings: dict[str, Any] = {
        "cloud__address": cloud,
        "deadline_s": LIMIT_S / 3,
        "cloud__max_rois": MAX_ROIS,
        "site": SITE,
        "traces": str(work / "edge.jsonl"),
        "cloud__health_check_s": 0.5,
        "models__folder": str(models),
        "models__keys": [str(key)],
        "models__fetch": True,
    }
    path = work / "outbox" / name / "report.json"

    def is_done() -> bool:
        final = path.is_file() and json.loads(path.read_bytes())["status"] == "final"
        return final and any((work / "state" / "models").glob(f"*/{OFFERED}.onnx"))

    with running_agent(work, work / "edge.log", **settings) as agent:
        agent.process.wait_until(is_done, "come to a final report", LIMIT_S)
    return dict(json.loads(path.read_bytes()))


@dataclass
class Carried:
    """What one direction of an HTTP/2 connection carried, by stream, and what was cut off."""

    headers: dict[int, Headers] = field(default_factory=lambda: defaultdict(list))
    messages: dict[int, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    rest: int = 0


def carried_by(data: bytes) -> Carried:
    """Decode all bytes of one direction of a connection, from its beginning.

    Headers may be compressed (HPACK): a search through raw bytes alone could miss them.
    """
    found, decoder = Carried(), Decoder()
    decoder.max_allowed_table_size = _TABLE_BYTES
    bodies: dict[int, bytes] = defaultdict(bytes)
    block = b""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at + 9 <= len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[at : at + 9]))
        if at + 9 + length > len(data):
            break
        frame.parse_body(memoryview(data[at + 9 : at + 9 + length]))
        at += 9 + length
        if isinstance(frame, DataFrame):
            bodies[frame.stream_id] += frame.data
        elif isinstance(frame, HeadersFrame | ContinuationFrame | PushPromiseFrame):
            block += frame.data
            if "END_HEADERS" in frame.flags:
                found.headers[frame.stream_id] += [
                    _header(bytes(name), bytes(value))
                    for name, value in decoder.decode(block, raw=True)
                ]
                block = b""
    for stream, body in bodies.items():
        found.messages[stream] = _messages(body)
    found.rest = len(data) - at
    return found


def _messages(body: bytes) -> list[bytes]:
    """Take messages out of their frames: a byte for compression, four for the length."""
    found = []
    while len(body) >= 5:
        compressed, length = struct.unpack(">BI", body[:5])
        if compressed:
            raise ValueError("a message is compressed, which this cannot read")
        found.append(body[5 : 5 + length])
        body = body[5 + length :]
    return found


def _header(name: bytes, value: bytes) -> tuple[str, str]:
    """Return name and value as text; bytes of a binary header (``-bin``) as Latin-1."""
    if name.endswith(b"-bin"):
        # after a zero byte as they are, otherwise in base64 without padding
        data = value[1:] if value.startswith(b"\0") else base64.b64decode(value + b"==")
        return name.decode(), data.decode("latin-1")
    return name.decode("utf-8", "replace"), value.decode("utf-8", "replace")


def decode(tap: Tap) -> Heard:
    """Decode all connections of a tap."""
    heard = Heard()
    for connection in sorted({connection for connection, _ in tap.data}):
        asked = carried_by(bytes(tap.data[connection, True]))
        answered = carried_by(bytes(tap.data[connection, False]))
        heard.rest += asked.rest + answered.rest
        paths = {stream: dict(headers)[":path"] for stream, headers in asked.headers.items()}
        for is_answer, direction in enumerate((asked, answered)):
            for headers in direction.headers.values():
                heard.headers |= {name for name, _ in headers}
                heard.texts += [f"{name}: {value}" for name, value in headers]
                for value in (value for name, value in headers if name == DETAILS_KEY):
                    _hear(Status.FromString(value.encode("latin-1")), heard)
                named = dict(headers).get("traceparent", "").split("-")
                heard.traces |= set(named[1:2])
            for stream, messages in direction.messages.items():
                for data in messages:
                    message = METHODS[paths[stream]][is_answer].FromString(data)
                    _hear(message, heard)
    return heard


def _hear(message: Message, heard: Heard) -> None:
    heard.texts.append(str(message))
    which = next((one.name for one, _ in message.ListFields()), "")
    heard.messages[f"{type(message).__name__} {which}".strip()] += 1
    if isinstance(message, pb.ReadRequest) and message.HasField("header"):
        heard.keys.add(message.header.study_key)
    if isinstance(message, pb.ReadRequest) and message.HasField("roi"):
        heard.roi_bytes += len(message.roi.voxels)


def searched(values: set[str]) -> Iterator[str]:
    """Yield the values to search for: also the parts of names, without regard to order."""
    parts = {part for value in values if "^" in value for part in value.split("^")}
    yield from sorted(values | parts)


def is_in(value: str, tap: Tap, heard: Heard) -> bool:
    """Tell whether a value is in the raw bytes, in some encodings, or in a decoded text.

    There a value of digits alone is no part of a longer number: times have nineteen digits.
    """
    forms = [value.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    forms += [value.lower().encode(), value.upper().encode(), value.encode().hex().encode()]
    for before, mixed in enumerate((0, 2, 3)):  # in base64 what stands before and after mixes in
        encoded = base64.b64encode(bytes(before) + value.encode()).rstrip(b"=")
        forms.append(encoded[mixed:-1])
    raw = any(form in data for data in tap.data.values() for form in forms)
    whole = rf"(?<!\d){value}(?!\d)" if value.isdecimal() else re.escape(value)
    return raw or any(re.search(whole, text, re.IGNORECASE) for text in heard.texts)


@command(
    bars=lambda result: [Bar("values of a patient that crossed", len(result["found"]), 0)],
    strict=True,
)
def wire() -> dict[str, Any]:
    """Search all that crosses to the cloud and back for the data of a patient."""
    with tempfile.TemporaryDirectory(prefix="overread-wire-") as folder:
        return exchange(Path(folder), STUDIES)
