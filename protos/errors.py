"""Errors between edge and cloud, sorted by who must act.

    OverreadError
    ├── CallerFault              the request is wrong
    │   ├── InvalidRequest       a field is missing, out of range or out of order
    │   ├── TooLarge             more ROIs, voxels or bytes than the service accepts
    │   ├── ChecksumMismatch     voxels changed on the way; the only caller fault that is retried
    │   ├── NothingOffered       a model is requested that the service does not offer
    │   └── VersionMismatch      the caller expects another model or contract
    ├── BusyFault                the service has too much to do now
    │   ├── DeadlineUnmeetable   the answer would be late; `estimate_s` is how long it would take
    │   ├── Overloaded           the queue or a quota is full
    │   └── Draining             the service is being stopped
    ├── ServiceFault             the service is at fault
    │   └── ModelFailed          the model raised an error, or its answer is invalid
    └── LinkFault                the connection failed, or time ran out
        ├── Unreachable          there is no connection, or it was lost
        └── DeadlinePassed       the deadline passed before the answer arrived

The cloud raises and the edge receives the same class: `to_status` and `from_status` are the two
directions of one table. The class travels by name in trailing metadata. A status without a name
comes from gRPC itself, and its code decides.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import grpc

ERROR_KEY = "overread-error"
ESTIMATE_KEY = "overread-estimate-s"

Metadata = tuple[tuple[str, str], ...]


class OverreadError(Exception):
    """An error between edge and cloud; ``reason`` explains it to people.

    ``words`` says for the whole class what failed.
    """

    words: ClassVar[str] = "the second reading failed"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def kind(self) -> str:
        """The class name, as on the wire."""
        return type(self).__name__

    @property
    def text(self) -> str:
        """What failed and why, for reports."""
        return f"{self.words} ({self.reason})"


class CallerFault(OverreadError):
    """The request is wrong: sending it again does not help, except after `ChecksumMismatch`."""

    words = "the cloud refuses the request"


class InvalidRequest(CallerFault):
    """A field is missing, out of range or out of order."""


class TooLarge(CallerFault):
    """More ROIs, voxels or bytes than the service accepts."""

    words = "the cloud refuses the request as too large"


class ChecksumMismatch(CallerFault):
    """Voxels changed on the way; sending them again may help."""

    words = "ROIs changed on their way to the cloud"


class VersionMismatch(CallerFault):
    """The caller expects another model or contract."""

    words = "the cloud has another model or version"


class NothingOffered(CallerFault):
    """The service offers no model of this kind."""


class BusyFault(OverreadError):
    """The service has too much to do now."""

    words = "the cloud is busy"


class DeadlineUnmeetable(BusyFault):
    """The answer would be late; ``estimate_s`` is how long it would take, if known."""

    words = "the cloud has too much work to answer in time"

    def __init__(self, reason: str, estimate_s: float | None = None) -> None:
        super().__init__(reason)
        self.estimate_s = estimate_s


class Overloaded(BusyFault):
    """The queue or a quota is full."""

    words = "the cloud has too much work"


class Draining(BusyFault):
    """The service is being stopped."""

    words = "the cloud is being stopped"


class ServiceFault(OverreadError):
    """The service is at fault."""

    words = "the cloud failed"


class ModelFailed(ServiceFault):
    """The model raised an error, or its answer is invalid; other batches are not affected."""

    words = "the cloud's model failed"


class LinkFault(OverreadError):
    """The connection failed, or time ran out."""

    words = "the connection to the cloud failed"


class Unreachable(LinkFault):
    """There is no connection, or it was lost."""

    words = "the cloud cannot be reached"


class DeadlinePassed(LinkFault):
    """The deadline passed before the answer arrived."""

    words = "the time ran out"


# A class is sent with the code of its first row; a code without a class, from gRPC itself, is read
# as the class of its first row.
TABLE: tuple[tuple[type[OverreadError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineUnmeetable, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ChecksumMismatch, grpc.StatusCode.DATA_LOSS),
    (NothingOffered, grpc.StatusCode.NOT_FOUND),
    (VersionMismatch, grpc.StatusCode.FAILED_PRECONDITION),
    (VersionMismatch, grpc.StatusCode.UNIMPLEMENTED),
    (Unreachable, grpc.StatusCode.UNAVAILABLE),
    (Unreachable, grpc.StatusCode.CANCELLED),
    (Draining, grpc.StatusCode.UNAVAILABLE),
    (DeadlinePassed, grpc.StatusCode.DEADLINE_EXCEEDED),
    (ServiceFault, grpc.StatusCode.UNKNOWN),
    (ServiceFault, grpc.StatusCode.INTERNAL),
    (ModelFailed, grpc.StatusCode.INTERNAL),
    (CallerFault, grpc.StatusCode.PERMISSION_DENIED),
    (CallerFault, grpc.StatusCode.UNAUTHENTICATED),
    (BusyFault, grpc.StatusCode.UNAVAILABLE),
    (LinkFault, grpc.StatusCode.UNAVAILABLE),
)
_BY_NAME = {error.__name__: error for error, _ in TABLE}

_NO_TLS = "no encrypted connection could be made: check tls_ca, tls_cert and tls_key at both ends"
_ENDED = "the service ended the connection at once: check tls_ca, tls_cert and tls_key at both ends"

# What gRPC says of a connection is for programmers. The first row whose code is that of the status,
# and whose words are in its details, says it to people.
_WORDS: tuple[tuple[grpc.StatusCode, str, str], ...] = (
    (grpc.StatusCode.UNAVAILABLE, "Connection refused", "no service listens at the address"),
    (grpc.StatusCode.UNAVAILABLE, "resolv", "the host name of the address is not known"),
    (grpc.StatusCode.UNAVAILABLE, "lookup", "the host name of the address is not known"),
    (grpc.StatusCode.UNAVAILABLE, "nreachable", "no network leads to the address"),
    (grpc.StatusCode.UNAVAILABLE, "No route", "no network leads to the address"),
    (grpc.StatusCode.UNAVAILABLE, "handshake", _NO_TLS),
    (grpc.StatusCode.UNAVAILABLE, "erification", "the service's certificate is not accepted"),
    (grpc.StatusCode.UNAVAILABLE, "timed out", "no connection could be made in time"),
    (grpc.StatusCode.UNAVAILABLE, "failed to connect", _ENDED),
    (grpc.StatusCode.UNAVAILABLE, "", "the connection was lost"),
    (grpc.StatusCode.CANCELLED, "", "the call was cancelled"),
    (grpc.StatusCode.DEADLINE_EXCEEDED, "", "there was no answer in time"),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than", "a message is larger than the limit"),
    (grpc.StatusCode.UNIMPLEMENTED, "", "the service is no Overread service of this version"),
)


def to_status(error: OverreadError) -> tuple[grpc.StatusCode, str, Metadata]:
    """Return the status code, details and trailing metadata of ``error``."""
    code = next((code for kind, code in TABLE if kind is type(error)), grpc.StatusCode.UNKNOWN)
    metadata: Metadata = ((ERROR_KEY, error.kind),)
    if isinstance(error, DeadlineUnmeetable) and error.estimate_s is not None:
        metadata += ((ESTIMATE_KEY, f"{error.estimate_s:.6f}"),)
    return code, error.reason, metadata


def from_status(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> OverreadError:
    """Return the error of a status: by the name in its metadata, otherwise by its code."""
    texts = {key: value for key, value in metadata or () if isinstance(value, str)}
    if (name := texts.get(ERROR_KEY)) in _BY_NAME:
        reason = details or "no reason was given"
        return error_by_name(name, reason, estimate_s=_seconds(texts.get(ESTIMATE_KEY)))
    kind = next((kind for kind, row in TABLE if row is code), ServiceFault)
    return kind(_in_words(code, details or ""))


def error_by_name(name: str, reason: str, *, estimate_s: float | None = None) -> OverreadError:
    """Return the error of class ``name``, as in a refusal; `ServiceFault` if it is unknown."""
    kind = _BY_NAME.get(name, ServiceFault)
    if kind is DeadlineUnmeetable:
        return DeadlineUnmeetable(reason, estimate_s)
    return kind(reason)


def _in_words(code: grpc.StatusCode, details: str) -> str:
    words = (said for row, part, said in _WORDS if row is code and part in details)
    return next(words, f"status {code.name}")


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
