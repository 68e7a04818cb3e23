"""``overread-eval wire``: all that crosses between edge and cloud, searched for a patient.

A phantom gets a header full of distinctive values, UIDs of its own, and a folder named after its
patient. A real agent reads it with a real cloud process, in plain gRPC: health checks, an
escalation, retries that amend the report, and a new model for the edge. A proxy on the way keeps
all bytes, and a relay of gRPC notes the metadata and the messages of each call. None of the values
may be in them, in either direction. Headers of gRPC itself hold its version, addresses and times.
"""

import base64
import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pydicom
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status

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
"""Request and response of each method."""

CALLS = 16
"""Calls at the same time that are passed on."""

Metadata = Iterable[tuple[str, str | bytes]]

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
class Recording:
    """All bytes between edge and cloud, what was in them, and all texts to search in.

    The bytes are those of each connection and direction (``True``: to the cloud). The texts are
    those of calls, and the traces that edge and cloud have written, in lower case.
    """

    data: dict[tuple[int, bool], bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    headers: set[str] = field(default_factory=set)
    messages: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    traces: set[str] = field(default_factory=set)
    roi_bytes: int = 0

    def tap(self, connection: int, up: bool, data: bytes) -> None:
        """Keep bytes of one connection."""
        self.data[connection, up] += data

    def size(self, *, up: bool) -> int:
        """Return the bytes of one direction."""
        return sum(len(data) for (_, way), data in self.data.items() if way == up)

    def note_metadata(self, metadata: Metadata) -> None:
        """Note the headers or trailers of a call."""
        for name, value in metadata:
            self.headers.add(name)
            as_text = value.decode("latin-1") if isinstance(value, bytes) else value
            self.texts.append(f"{name}: {as_text}".lower())
            if name == DETAILS_KEY and isinstance(value, bytes):
                self.note_message(Status.FromString(value))
            if name == "traceparent":
                self.traces.add(as_text.split("-")[1])

    def note_message(self, message: Message) -> None:
        """Note a message."""
        self.texts.append(str(message).lower())
        which = next((known.name for known, _ in message.ListFields()), "")
        self.messages[f"{type(message).__name__} {which}".strip()] += 1
        if isinstance(message, pb.ReadRequest) and message.HasField("header"):
            self.keys.add(message.header.study_key)
        if isinstance(message, pb.ReadRequest) and message.HasField("roi"):
            self.roi_bytes += len(message.roi.voxels)


class Relay(grpc.GenericRpcHandler):  # type: ignore[type-arg] # only its stubs are generic
    """Passes each call on to a service, and notes what both sides say."""

    def __init__(self, service: grpc.Channel, recording: Recording) -> None:
        self._service, self._recording = service, recording

    def service(self, details: Any) -> Any:
        """Return the handler of a call; messages pass as bytes, one or a stream alike."""
        return grpc.stream_stream_rpc_method_handler(partial(self._carry, details.method))

    def _carry(self, method: str, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        asked, answered = METHODS[method]
        metadata = context.invocation_metadata()
        self._recording.note_metadata(metadata)
        call = self._service.stream_stream(method, bytes, bytes)(
            self._noted(requests, asked),
            timeout=min(context.time_remaining(), LIMIT_S),
            metadata=tuple(pair for pair in metadata if pair[0] != "user-agent"),
        )
        context.add_callback(call.cancel)
        with suppress(grpc.RpcError):  # its status is passed on below
            yield from self._noted(call, answered)
        for said in (call.initial_metadata(), call.trailing_metadata()):
            self._recording.note_metadata(said)
        self._recording.texts.append(call.details().lower())
        context.set_trailing_metadata(call.trailing_metadata())
        context.set_code(call.code())
        context.set_details(call.details())

    def _noted(self, messages: Iterable[bytes], kind: type[Message]) -> Iterator[bytes]:
        for message in messages:
            self._recording.note_message(kind.FromString(message))
            yield message


@contextmanager
def recorded(service: str) -> Iterator[tuple[str, Recording]]:
    """Yield an address at which the service is reached, and the record of what crosses there."""
    recording = Recording()
    with grpc.insecure_channel(service) as channel, ThreadPoolExecutor(CALLS) as pool:
        server = grpc.server(pool, [Relay(channel, recording)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with proxied(f"127.0.0.1:{port}", steady(Conditions()), tap=recording.tap) as proxy:
                yield proxy.address, recording
        finally:
            server.stop(None).wait()


def exchange(work: Path, cache: Path) -> dict[str, Any]:
    """Read the study with agent and cloud, and search what was said."""
    patient = "Quixwell_Zephyrine_19610317"
    study = work / "inbox" / patient
    values = {*make_study(study, cache), *PATIENT.values(), patient, str(work)}
    traces = [work / "cloud.jsonl", work / "edge.jsonl"]
    models, key = sign_models(work / "models")
    offer = {"traces": str(traces[0]), "offered_model": OFFERED, "offered_folder": str(models)}
    with running_cloud(**offer) as cloud, recorded(cloud.address) as (address, recording):
        report = read_by_agent(work, address, patient, models, key)
    recording.texts += [path.read_text().lower() for path in traces]
    return {
        "values": len(values),
        "found": [value for value in searched(values) if is_in(value, recording)],
        "connections": len({connection for connection, _ in recording.data}),
        "bytes_up": recording.size(up=True),
        "bytes_down": recording.size(up=False),
        "messages": dict(sorted(recording.messages.items())),
        "headers": sorted(recording.headers),
        "roi_bytes": recording.roi_bytes,
        "study_keys": len(recording.keys),
        "study_key_is_that_of_the_report": recording.keys == {report["study_key"]},
        "site_seen": any(SITE in text for text in recording.texts),
        "versions": report["version"],
        "trace_is_that_of_the_study": recording.traces == {report["study_key"]},
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


def searched(values: set[str]) -> list[str]:
    """Return the values to search for: also the parts of names."""
    return sorted(values | {part for value in values for part in value.split("^")})


def is_in(value: str, recording: Recording) -> bool:
    """Return whether a value is in the raw bytes, in some encodings, or in a decoded text.

    There a value of digits alone is no part of a longer number: times have nineteen digits.
    """
    forms = [value.encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    forms += [value.lower().encode(), value.upper().encode(), value.encode().hex().encode()]
    for before, mixed in enumerate((0, 2, 3)):  # in base64 what stands before and after mixes in
        encoded = base64.b64encode(bytes(before) + value.encode()).rstrip(b"=")
        forms.append(encoded[mixed:-1])
    if any(form in data for data in recording.data.values() for form in forms):
        return True
    value = value.lower()
    whole = rf"(?<!\d){value}(?!\d)" if value.isdecimal() else re.escape(value)
    return any(value in text and re.search(whole, text) for text in recording.texts)


@command(
    bars=lambda result: [Bar("values of a patient that crossed", len(result["found"]), 0)],
    strict=True,
)
def wire() -> dict[str, Any]:
    """Search all that crosses to the cloud and back for the data of a patient."""
    with tempfile.TemporaryDirectory(prefix="overread-wire-") as folder:
        return exchange(Path(folder), STUDIES)
