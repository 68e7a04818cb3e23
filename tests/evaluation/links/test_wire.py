"""What crosses between edge and cloud holds nothing of a patient; and the search would find it."""

import base64
import contextlib
from pathlib import Path

import grpc
import pytest

from edge.job import new_study_key
from evaluation.links import wire
from protos import overread_pb2 as pb
from protos.errors import InvalidRequest, OverreadError
from protos.messages import SITE_KEY
from protos.overread_pb2_grpc import OverreadStub
from tests.edge.fake_cloud import FakeCloud


def said(study_key: str, site: str, *faults: OverreadError) -> wire.Recording:
    """What a caller and a cloud say, with this key and this site."""
    with (
        FakeCloud(turns_away=list(faults)) as cloud,
        wire.recorded(cloud.address) as (address, recording),
        grpc.insecure_channel(address) as channel,
    ):
        header = pb.ReadRequest(header=pb.Header(study_key=study_key, budget_s=5.0))
        call = OverreadStub(channel).Read(iter([header]), metadata=((SITE_KEY, site),))
        with contextlib.suppress(grpc.RpcError):
            assert list(call)
        assert (call.code() is grpc.StatusCode.OK) == (not faults)
    return recording


def test_a_value_in_a_message_or_a_header_would_be_found() -> None:
    key = new_study_key()
    recording = said(key, "Quixwell Zephyrine")
    assert recording.keys == {key}
    assert recording.size(up=True) > len(key)
    assert recording.size(up=False) > 0
    assert wire.is_in(key, recording)
    assert wire.is_in("Zephyrine", recording)
    assert SITE_KEY in recording.headers
    assert not wire.is_in("Varnhagen", recording)


def test_a_value_in_the_details_of_a_status_would_be_found() -> None:
    """They are encoded in a header: class and field are read too."""
    recording = said(new_study_key(), "", InvalidRequest("Zephyrine?", field="header.study_key"))
    assert recording.messages["Status code"] == 1
    for value in ("Zephyrine", "header.study_key", "INVALID_REQUEST"):
        assert wire.is_in(value, recording)


@pytest.mark.parametrize(
    "form",
    [
        "MRN-7764201-K".encode("utf-16-le"),
        b"mrn-7764201-k",
        base64.b64encode(b"MRN-7764201-K"),
        base64.b64encode(b"a MRN-7764201-K b"),
        base64.b64encode(b"id MRN-7764201-K"),
        b"MRN-7764201-K".hex().encode(),
    ],
)
def test_a_value_is_found_in_other_encodings(form: bytes) -> None:
    recording = wire.Recording()
    recording.tap(1, True, b"\x00" + form[:5])
    recording.tap(1, True, form[5:] + b"\xff")
    assert wire.is_in("MRN-7764201-K", recording)
    assert not wire.is_in("ACC9920417", recording)


def test_a_date_of_birth_is_no_part_of_a_time_in_nanoseconds() -> None:
    time = wire.Recording(texts=['"startTimeUnixNano":"1796196103170521088"'])
    assert not wire.is_in("19610317", time)
    for text in ("born 19610317", "id_19610317x", "19610317"):
        assert wire.is_in("19610317", wire.Recording(texts=[text]))


def test_names_are_searched_for_by_their_parts_too() -> None:
    values = set(wire.searched(set(wire.PATIENT.values())))
    assert {"Quixwell^Zephyrine", "Quixwell", "Zephyrine", "19610317"} <= values


@pytest.mark.long
def test_nothing_of_a_patient_crosses_to_a_real_cloud(tmp_path: Path) -> None:
    """A real agent, model and cloud: health checks, an escalation, retries, and a new model."""
    result = wire.exchange(tmp_path / "work", tmp_path / "cache")
    assert result["found"] == []
    assert result["values"] > 250
    # the search has seen all that was said, and what it was looking for would have been there
    assert result["study_key_is_that_of_the_report"]
    assert result["site_seen"]
    assert result["trace_is_that_of_the_study"]
    assert result["versions"] >= 2
    messages = result["messages"]
    assert messages["DescribeRequest"] >= 1
    assert messages["ReadRequest header"] >= 2
    assert messages["ReadRequest roi"] > 6
    assert messages["ReadResponse verdict"] >= 1
    assert messages["GetModelRequest kind"] == messages["GetModelResponse offer"] == 1
    assert messages["GetModelResponse chunk"] > 2
    assert result["roi_bytes"] < result["bytes_up"] < 1.05 * result["roi_bytes"] + 100_000
    own = {name for name in result["headers"] if name.startswith("overread-")}
    assert own == {SITE_KEY}
    assert messages["ReadResponse accepted"] == messages["ReadResponse summary"] >= 2
