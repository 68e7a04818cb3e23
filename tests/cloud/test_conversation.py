"""A recorded conversation is answered as it was: a peer that is not updated goes on working."""

import json

import grpc
import pytest

from protos import codec
from protos import overread_pb2 as pb
from protos.errors import from_status, status_of
from protos.messages import Accepted, Refusal, Summary, Verdict
from tests.cloud.conversation import FILE, Call, replay, told

RECORDED = [Call.from_json(one) for one in json.loads(FILE.read_text())]
BY_NAME = {call.name: call for call in RECORDED}


def test_a_service_of_today_answers_what_was_recorded() -> None:
    """All messages and all details of all errors, except times."""
    for was, now in zip(RECORDED, replay(RECORDED), strict=True):
        assert {"call": was.name, **told(now)} == {"call": was.name, **told(was)}
    assert FILE.stat().st_size < 50_000


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("complete", [Accepted, Verdict, Verdict, Verdict, Summary]),
        ("cached", [Accepted, Verdict, Verdict, Verdict, Summary]),
        ("with refusals", [Accepted, Refusal, Refusal, Refusal, Refusal, Verdict, Summary]),
        ("without ROIs", [Accepted, Summary]),
        ("of a later contract", [Accepted, Verdict, Summary]),
        ("more than announced", [Accepted]),
        ("too many announced", []),
    ],
)
def test_an_edge_of_today_reads_the_answers_that_were_recorded(
    name: str, kinds: list[type[object]]
) -> None:
    responses = [pb.ReadResponse.FromString(one) for one in BY_NAME[name].responses]
    messages = [codec.decode_response(one) for one in responses]
    assert sorted(map(type, messages), key=str) == sorted(kinds, key=str)
    assert [type(one) for one in messages[:1]] == kinds[:1]
    if name == "with refusals":
        refusals = {m.roi_id: m.error for m in messages if isinstance(m, Refusal)}
        assert refusals == {
            1: "ChecksumMismatch",
            2: "InvalidRequest",
            3: "TooLarge",
            4: "ModelFailed",
        }


@pytest.mark.parametrize(
    ("name", "kind", "field"),
    [
        ("too many announced", "TooLarge", "header.roi_count"),
        ("no budget", "InvalidRequest", "header.budget_s"),
        ("no time", "DeadlineUnmeetable", ""),
        ("another model", "VersionMismatch", "header.model_version"),
        ("more than announced", "InvalidRequest", "roi.roi_id"),
        ("no header", "InvalidRequest", "header"),
        ("model of kind 1", "NothingOffered", ""),
        ("model of kind 0", "InvalidRequest", "kind"),
    ],
)
def test_an_edge_of_today_reads_the_errors_that_were_recorded(
    name: str, kind: str, field: str
) -> None:
    call = BY_NAME[name]
    metadata = (("grpc-status-details-bin", call.status),)
    status = status_of(metadata)
    assert status is not None
    error = from_status(grpc.StatusCode[call.code], status.message, metadata)
    assert (error.kind, error.field) == (kind, field)
