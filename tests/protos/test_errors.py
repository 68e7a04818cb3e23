"""The error table: the same class is raised in the cloud and met on the edge."""

from __future__ import annotations

import grpc
import pytest

from protos import errors
from protos.errors import (
    ERROR_KEY,
    ESTIMATE_KEY,
    TABLE,
    BusyFault,
    CallerFault,
    DeadlinePassed,
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    LinkFault,
    ModelFailed,
    Overloaded,
    OverreadError,
    ServiceFault,
    TooLarge,
    Unreachable,
    VersionMismatch,
    error_by_name,
    from_status,
    to_status,
)


@pytest.mark.parametrize("kind", dict(TABLE))
def test_every_class_survives_the_wire(kind: type[OverreadError]) -> None:
    met = from_status(*to_status(kind("why: 3 > 2")))
    assert type(met) is kind
    assert met.reason == "why: 3 > 2"


def test_every_class_of_the_tree_is_in_the_table() -> None:
    tree = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, OverreadError)
    }
    assert tree - {OverreadError} == {kind for kind, _ in TABLE}


def test_an_estimate_travels_with_deadline_unmeetable() -> None:
    """The edge learns how long an answer would have taken."""
    code, details, metadata = to_status(DeadlineUnmeetable("too late", 1.25))
    met = from_status(code, details, metadata)
    assert isinstance(met, DeadlineUnmeetable)
    assert met.estimate_s == 1.25


@pytest.mark.parametrize("text", ["soon", "nan", "inf", ""])
def test_an_invalid_estimate_in_metadata_is_none(text: str) -> None:
    metadata = ((ERROR_KEY, "DeadlineUnmeetable"), (ESTIMATE_KEY, text))
    met = from_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "late", metadata)
    assert isinstance(met, DeadlineUnmeetable)
    assert met.estimate_s is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unreachable),
        (grpc.StatusCode.CANCELLED, Unreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlinePassed),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TooLarge),
        (grpc.StatusCode.UNIMPLEMENTED, VersionMismatch),
        (grpc.StatusCode.UNKNOWN, ServiceFault),
        (grpc.StatusCode.INTERNAL, ServiceFault),
        (grpc.StatusCode.ABORTED, ServiceFault),
    ],
)
def test_a_status_of_grpc_itself_is_read_by_its_code(
    code: grpc.StatusCode, kind: type[OverreadError]
) -> None:
    met = from_status(code, None, None)
    assert type(met) is kind
    assert met.reason


@pytest.mark.parametrize(
    ("code", "details", "words"),
    [
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to"
            " connect to remote host: Connection refused",
            "no service listens at the address",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "errors resolving nowhere:1: [field:hostname lookup error:address lookup failed for"
            " nowhere:1: Domain name not found]",
            "the host name of the address is not known",
        ),
        (
            grpc.StatusCode.UNAVAILABLE,
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Tls"
            " handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:100000f7:SSL routines",
            "no encrypted connection could be made: check tls_ca, tls_cert and tls_key at both"
            " ends",
        ),
        (grpc.StatusCode.UNAVAILABLE, "Socket closed", "the connection was lost"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", "there was no answer in time"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Received message larger than max (9 vs. 4)",
            "a message is larger than the limit",
        ),
        (grpc.StatusCode.INTERNAL, "\x1b]0;x", "status INTERNAL"),
    ],
)
def test_no_words_of_grpc_reach_a_user(code: grpc.StatusCode, details: str, words: str) -> None:
    assert from_status(code, details, None).reason == words


def test_errors_are_sorted_by_who_must_act() -> None:
    assert issubclass(InvalidRequest, CallerFault)
    assert issubclass(Overloaded, BusyFault)
    assert issubclass(Draining, BusyFault)
    assert issubclass(ModelFailed, ServiceFault)
    assert issubclass(Unreachable, LinkFault)


def test_a_refusal_names_its_class() -> None:
    """An unknown name is a `ServiceFault`."""
    assert isinstance(error_by_name("ModelFailed", "why"), ModelFailed)
    assert type(error_by_name("SomethingNew", "why")) is ServiceFault
