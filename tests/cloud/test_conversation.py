"""A recorded conversation is answered as it was, byte for byte: an old peer goes on working.

``python -m tests.cloud.test_conversation`` records it again. Only an addition to the contract is a
reason for that: a peer of today sends and expects these bytes.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import status_of, unpacked
from protos.messages import Priority
from tests.cloud.running import make_roi, make_stream, run_cloud

FILE = Path(__file__).with_name("conversation.json")
SERVICE = "/overread.v1.Overread"
RESPONSES: dict[str, type[Message]] = {
    "Read": pb.ReadResponse,
    "Describe": pb.DescribeResponse,
    "GetModel": pb.GetModelResponse,
}
DETAILS = (ErrorInfo, BadRequest, RetryInfo, pb.Load)


@dataclass(frozen=True)
class Call:
    """One call: its requests, and its end, each message as its bytes."""

    name: str
    method: str
    requests: list[bytes]
    responses: list[bytes] = field(default_factory=list)
    code: str = "OK"
    status: bytes = b""

    def to_json(self) -> dict[str, Any]:
        given = vars(self)
        texts = {name: [b64encode(one).decode() for one in given[name]] for name in LISTS}
        return {**given, **texts, "status": b64encode(self.status).decode()}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Self:
        lists = {name: [b64decode(one) for one in given[name]] for name in LISTS}
        return cls(**{**given, **lists, "status": b64decode(given["status"])})


LISTS = ("requests", "responses")


def scripted() -> list[Call]:
    """The calls of the conversation, without their ends."""
    rois = [make_roi(1, 51), make_roi(2, 102), make_roi(3, voxels=np.full((4, 8, 6), 10, np.uint8))]
    complete = make_stream(*rois, study_key="k1", model_version="2.1", priority=Priority.STAT)
    damaged = codec.encode_roi(make_roi(1))
    damaged.roi.voxels = bytes(512)
    wrong = [
        make_roi(2, window_hu=(-160.0, 240.0)),
        make_roi(3, voxels=np.zeros((16, 8, 8), np.uint8)),
        make_roi(4, 255),
        make_roi(5, 60),
    ]
    header, *others = make_stream(*wrong, study_key="k2", roi_count=5)
    later = make_stream(make_roi(1, 70), study_key="k3")
    later[0].header.priority = 99  # type: ignore[assignment] # of a later contract
    unknown = b"\xa2\x06\x03new"  # field 100 of a later contract, in the request itself
    streams = {
        "complete": complete,
        "cached": complete,
        "with refusals": [header, damaged, *others],
        "without ROIs": make_stream(study_key="k4"),
        "too many announced": make_stream(roi_count=65),
        "no budget": make_stream(budget_s=-1.0),
        "no time": make_stream(study_key="k5", budget_s=1e-6, roi_count=1),
        "another model": make_stream(model_version="1.0"),
        "more than announced": make_stream(make_roi(1), study_key="k6", roi_count=0),
        "no header": [],
    }
    kinds = (pb.MODEL_KIND_SCREENING, pb.MODEL_KIND_UNSPECIFIED)
    models = [pb.GetModelRequest(kind=kind) for kind in kinds]
    return [
        Call("description", "Describe", [b""]),
        *(
            Call(name, "Read", [one.SerializeToString() for one in requests])
            for name, requests in streams.items()
        ),
        Call("of a later contract", "Read", [one.SerializeToString() + unknown for one in later]),
        *(
            Call(f"model of kind {model.kind}", "GetModel", [model.SerializeToString()])
            for model in models
        ),
    ]


def replay(calls: Sequence[Call]) -> list[Call]:
    """Send the requests of ``calls`` to a service with a deterministic reader; return the calls."""
    with (
        run_cloud(max_batch=1, max_rois=64) as cloud,  # the limit of that time
        grpc.insecure_channel(cloud.address) as channel,
    ):
        return [_sent(channel, call) for call in calls]


def _sent(channel: Any, call: Call) -> Call:
    path = f"{SERVICE}/{call.method}"  # without serializers: bytes as they are
    if call.method == "Read":
        ended = channel.stream_stream(path)(iter(call.requests), timeout=30)
    else:
        ended = channel.unary_stream(path)(call.requests[0], timeout=30)
    responses: list[bytes] = []
    with suppress(grpc.RpcError):
        responses.extend(ended)
    status = status_of(ended.trailing_metadata())
    said = b"" if status is None else status.SerializeToString()
    return Call(call.name, call.method, call.requests, responses, ended.code().name, said)


def told(call: Call) -> dict[str, Any]:
    """What a call's end says, decoded, without times; verdicts and refusals by number."""
    decoded = [RESPONSES[call.method].FromString(one) for one in call.responses]
    first, last = decoded[:1], decoded[1:][-1:]
    middle = sorted(map(_timeless, decoded[1:-1]))
    texts = [*map(_timeless, first), *middle, *map(_timeless, last)]
    status = status_of((("grpc-status-details-bin", call.status),))
    parts = [unpacked(status, kind()) for kind in DETAILS]
    details = [_timeless(part) for part in parts if part is not None]
    count = len(status.details) if status is not None else 0
    return {"responses": texts, "code": call.code, "details": details, "count": count}


def _timeless(message: Message) -> str:
    """Return a message as text, with a dash for every time."""
    name = type(message).__name__
    text = re.sub(r"((?:queue|compute|total|bound)_s): \S+", r"\1: -", str(message))
    text = re.sub(r"-?\d+\.\d+ s\b", "- s", text)
    text = re.sub(r'(key: "bound_s"\s+value): \S+', r"\1: -", text)
    if isinstance(message, RetryInfo):
        text = "-"
    if isinstance(message, pb.Load) or (
        isinstance(message, pb.ReadResponse) and message.HasField("summary")
    ):  # a time of zero is not in the text
        text = re.sub(r"\s*(queue|compute)_s: -", "", text)
    return f"{name}: {text}"


def test_a_service_of_today_answers_what_was_recorded() -> None:
    before = [Call.from_json(one) for one in json.loads(FILE.read_text())]
    for was, now in zip(before, replay(before), strict=True):
        assert {"call": was.name, **told(now)} == {"call": was.name, **told(was)}
    assert FILE.stat().st_size < 50_000


if __name__ == "__main__":
    recorded = [call.to_json() for call in replay(scripted())]
    FILE.write_text(json.dumps(recorded, indent=1) + "\n")
