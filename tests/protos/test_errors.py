"""The error table: the same class is raised in the cloud and met on the edge."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from protos import errors
from protos import overread_pb2 as pb
from protos.errors import (
    DETAILS_KEY,
    TABLE,
    CallerFault,
    ChecksumMismatch,
    DeadlinePassed,
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    ModelFailed,
    NothingOffered,
    Overloaded,
    OverreadError,
    ServiceFault,
    TooLarge,
    Unreachable,
    VersionMismatch,
    error_by_name,
    from_status,
    name_of,
    reason_of,
    to_status,
)

KINDS = sorted({kind for _, kinds in TABLE for kind in kinds}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS)
def test_every_class_survives_the_wire(kind: type[OverreadError]) -> None:
    met = from_status(*to_status(kind("why: 3 > 2")))
    assert type(met) is kind
    assert met.reason == "why: 3 > 2"
    assert met.retry_s == kind("").retry_s


def test_every_class_of_the_tree_is_in_the_table() -> None:
    tree = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, OverreadError)
    }
    assert tree - {OverreadError} == set(KINDS)


def test_every_kind_of_the_contract_is_a_class_and_has_the_code_of_its_comment() -> None:
    prefix = "ERROR_KIND_"
    words = {
        name.removeprefix(prefix)
        for name, number in pb.ErrorKind.items()
        if number != pb.ERROR_KIND_UNSPECIFIED
    }
    said: dict[str, str] = {}
    lines = Path(pb.__file__).with_name("overread.proto").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "gRPC code" in line)
    for line in lines[at + 1 :]:
        if not line.strip("/ "):
            break
        code, *_, last = line.strip("/ ").replace(",", " ").split()
        said |= dict.fromkeys([w for w in line.replace(",", " ").split() if w in words], code)
        assert last in words
    assert said.keys() == words
    for reason, code in said.items():
        assert reason_of(name_of(reason)) == reason
        assert to_status(error_by_name(name_of(reason), "why"))[0].name == code


def test_one_code_has_one_meaning() -> None:
    """Too large, overloaded and too late differ for a caller that reads only the code."""
    wrong = TooLarge, Overloaded, DeadlineUnmeetable, InvalidRequest, ChecksumMismatch
    others = NothingOffered, VersionMismatch, Draining, ModelFailed
    codes = [to_status(kind("why"))[0] for kind in (*wrong, *others)]
    assert len(set(codes)) == len(codes)
    assert len({code for code, _ in TABLE}) == len(TABLE)


def details_of(error: OverreadError, *parts: Any) -> None:
    """Fill the parts from the status that an error becomes, by the library that gRPC has for it."""
    code, text, metadata = to_status(error)
    call: Any = SimpleNamespace(
        code=lambda: code, details=lambda: text, trailing_metadata=lambda: metadata
    )
    details = rpc_status.from_call(call).details
    assert [one.Unpack(part) for one, part in zip(details, parts, strict=True)]


def test_any_grpc_client_reads_the_details() -> None:
    info, broken = ErrorInfo(), BadRequest()
    details_of(TooLarge("65 ROIs", field="header.roi_count", limit=64), info, broken)
    assert (info.domain, info.reason) == ("overread.v1", "TOO_LARGE")
    assert dict(info.metadata) == {"limit": "64"}
    (violation,) = broken.field_violations
    assert (violation.field, violation.description) == ("header.roi_count", "65 ROIs")
    info, retry = ErrorInfo(), RetryInfo()
    details_of(DeadlineUnmeetable("late", 1.25), info, retry)
    assert info.metadata["bound_s"] == "1.25"
    assert retry.retry_delay.ToMilliseconds() == 1250


def test_field_limit_bound_and_pause_travel() -> None:
    met = from_status(*to_status(InvalidRequest("no", field="roi.shape", limit=3)))
    assert (met.field, met.limit, met.retry_s) == ("roi.shape", 3.0, None)
    late = from_status(*to_status(DeadlineUnmeetable("too late", 1.25)))
    assert isinstance(late, DeadlineUnmeetable)
    assert (late.bound_s, late.retry_s) == (1.25, 1.25)


def test_a_long_reason_is_cut_and_an_endless_pause_left_out() -> None:
    """All that is sent fits into the trailing metadata of a call, with each character in UTF-8."""
    error = InvalidRequest("ü" * 10_000, field="roi.shape", limit=1_234_567)
    error.retry_s = float("inf")
    _, text, metadata = to_status(error)
    assert len(3 * text.encode()) + sum(len(key) + len(value) for key, value in metadata) < 8192
    met = from_status(grpc.StatusCode.INVALID_ARGUMENT, text, metadata)
    assert (met.limit, met.retry_s) == (1_234_567.0, None)
    assert error.reason.startswith(met.reason)


def status_with(info: ErrorInfo) -> tuple[tuple[str, bytes], ...]:
    status = Status(code=8, message="late")
    status.details.add().Pack(info)
    return ((DETAILS_KEY, status.SerializeToString()),)


@pytest.mark.parametrize("text", ["soon", "nan", "inf", "-1", ""])
def test_an_invalid_bound_is_none(text: str) -> None:
    info = ErrorInfo(domain="overread.v1", reason="DEADLINE_UNMEETABLE", metadata={"bound_s": text})
    met = from_status(grpc.StatusCode.DEADLINE_EXCEEDED, "late", status_with(info))
    assert isinstance(met, DeadlineUnmeetable)
    assert met.bound_s is None


def test_what_a_later_contract_or_another_make_sends_is_read_by_its_code() -> None:
    """A new class keeps its reason; details that are damaged, or of another domain, are ignored."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    new = ErrorInfo(domain="overread.v1", reason="QUEUE_ON_FIRE")
    met = from_status(code, "it burns", status_with(new))
    assert (type(met), met.reason) == (Overloaded, "it burns")
    other = ErrorInfo(domain="example.org", reason="TOO_LARGE")
    for metadata in (status_with(other), ((DETAILS_KEY, b"\xff"),), ((DETAILS_KEY, "text"),)):
        assert type(from_status(code, "why", metadata)) is Overloaded


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        ("UNAVAILABLE", None, Unreachable),
        ("CANCELLED", None, Unreachable),
        ("DEADLINE_EXCEEDED", None, DeadlinePassed),
        ("RESOURCE_EXHAUSTED", None, Overloaded),
        ("RESOURCE_EXHAUSTED", "SERVER: Received message larger than max (9 vs. 4)", TooLarge),
        ("OUT_OF_RANGE", None, TooLarge),
        ("INVALID_ARGUMENT", None, InvalidRequest),
        ("UNIMPLEMENTED", None, VersionMismatch),
        ("PERMISSION_DENIED", None, CallerFault),
        ("UNKNOWN", None, ServiceFault),
        ("INTERNAL", None, ServiceFault),
        ("ABORTED", None, ServiceFault),
    ],
)
def test_a_status_of_grpc_itself_is_read_by_its_code(
    code: str, words: str | None, kind: type[OverreadError]
) -> None:
    met = from_status(grpc.StatusCode[code], words, None)
    assert type(met) is kind
    assert met.reason


@pytest.mark.parametrize(
    ("code", "details", "words"),
    [
        ("UNAVAILABLE", "Failed to connect to remote host: Connection refused",
         "no service listens at the address"),
        ("UNAVAILABLE", "address lookup failed for nowhere:1: Domain name not found]",
         "the host name of the address is not known"),
        ("UNAVAILABLE", "Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1",
         "no encrypted connection could be made: check tls.ca, tls.cert and tls.key at both ends"),
        ("UNAVAILABLE", "Socket closed", "the connection was lost"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "there was no answer in time"),
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 4)",
         "a message is larger than the limit"),
        ("INTERNAL", "\x1b]0;x", "status INTERNAL"),
    ],
)  # fmt: skip
def test_no_words_of_grpc_reach_a_user(code: str, details: str, words: str) -> None:
    assert from_status(grpc.StatusCode[code], details, None).reason == words
