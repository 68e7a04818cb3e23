"""Errors between edge and cloud, sorted by who must act.

    OverreadError
    ├── CallerFault              the request is wrong
    │   ├── InvalidRequest       a field is missing, out of range or out of order
    │   ├── TooLarge             more ROIs, voxels or bytes than the service accepts
    │   ├── ChecksumMismatch     voxels changed on the way; the only caller fault that is retried
    │   ├── NothingOffered       a model is requested that the service does not offer
    │   └── VersionMismatch      the caller expects another model or contract
    ├── BusyFault                the service has too much to do now
    │   ├── DeadlineUnmeetable   the answer would be late; `bound_s` is how long it may take
    │   ├── Overloaded           the queue or a quota is full
    │   └── Draining             the service is being stopped
    ├── ServiceFault             the service is at fault
    │   └── ModelFailed          the model raised an error, or its answer is invalid
    └── LinkFault                the connection failed, or time ran out
        ├── Unreachable          there is no connection, or it was lost
        └── DeadlinePassed       the deadline passed before the answer arrived

The cloud raises and the edge receives the same class: `to_status` and `from_status` are the two
directions of `TABLE`. A status is a `google.rpc.Status`: its `ErrorInfo` names the class, as
`ErrorKind` of the contract does. A status without it comes from gRPC itself, or from a peer of
another make, and its code decides.
"""

import math
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

DOMAIN = "overread.v1"
"""The domain of the reasons in `ErrorInfo`."""

DETAILS_KEY = "grpc-status-details-bin"
"""gRPC's trailing metadata with the `google.rpc.Status`."""

MAX_REASON = 600
"""Characters of a reason that are sent: gRPC bounds all trailing metadata of a call at 8 KiB."""

Metadata = tuple[tuple[str, str | bytes], ...]
Given = Iterable[tuple[str, str | bytes]] | None
"""Metadata of a call, as gRPC gives it."""


class OverreadError(Exception):
    """An error between edge and cloud; ``reason`` explains it to people.

    Attributes:
        words: what failed, for the whole class.
        field: the field at fault, by its path in the request (``header.budget_s``); may be empty.
        limit: the limit that was exceeded; None for none.
        retry_s: the shortest time to wait before a later try; None where none may help.
    """

    words: ClassVar[str] = "the second reading failed"
    retry_s: float | None = None

    def __init__(self, reason: str, *, field: str = "", limit: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.field, self.limit = reason, field, limit

    @property
    def kind(self) -> str:
        """The class name, for logs and reports."""
        return type(self).__name__

    @property
    def outcome(self) -> str:
        """What metrics count: the class name, or `OVER_SHARE`."""
        return self.kind

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
    retry_s = 0.0


class VersionMismatch(CallerFault):
    """The caller expects another model or contract."""

    words = "the cloud has another model or version"


class NothingOffered(CallerFault):
    """The service offers no model of this kind."""


class BusyFault(OverreadError):
    """The service has too much to do now."""

    words = "the cloud is busy"


class DeadlineUnmeetable(BusyFault):
    """The answer would be late.

    ``bound_s`` is an upper bound of how long it would take, if known: see `Refusal` in the
    contract. What waits now will then have been read.
    """

    words = "the cloud has too much work to answer in time"

    def __init__(self, reason: str, bound_s: float | None = None) -> None:
        super().__init__(reason)
        self.bound_s = self.retry_s = bound_s


OVER_SHARE = "OverShare"
"""The `outcome` of what one site alone sends beyond its share: more capacity is no remedy."""


class Overloaded(BusyFault):
    """The queue or a quota is full; ``of_site`` says that it is the site's own share."""

    words = "the cloud has too much work"
    retry_s = 0.1

    def __init__(self, reason: str, *, limit: float | None = None, of_site: bool = False) -> None:
        super().__init__(reason, limit=limit)
        self._of_site = of_site

    @property
    def outcome(self) -> str:
        """What metrics count."""
        return OVER_SHARE if self._of_site else self.kind


class Draining(BusyFault):
    """The service is being stopped; another one may take the request at once."""

    words = "the cloud is being stopped"
    retry_s = 0.0


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


def reason_of(name: str) -> str:
    """Return the name of a class as `ErrorInfo` and `ErrorKind` have it: INVALID_REQUEST."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()


# One code has one meaning. A class is sent with the code of the first row that names it. A code
# without `ErrorInfo` is read as the first class of its row, others as `ServiceFault`.
TABLE: tuple[tuple[grpc.StatusCode, tuple[type[OverreadError], ...]], ...] = (
    (grpc.StatusCode.INVALID_ARGUMENT, (InvalidRequest,)),
    (grpc.StatusCode.OUT_OF_RANGE, (TooLarge,)),
    (grpc.StatusCode.DATA_LOSS, (ChecksumMismatch,)),
    (grpc.StatusCode.NOT_FOUND, (NothingOffered,)),
    (grpc.StatusCode.FAILED_PRECONDITION, (VersionMismatch,)),
    (grpc.StatusCode.UNIMPLEMENTED, (VersionMismatch,)),
    (grpc.StatusCode.PERMISSION_DENIED, (CallerFault,)),
    (grpc.StatusCode.UNAUTHENTICATED, (CallerFault,)),
    (grpc.StatusCode.RESOURCE_EXHAUSTED, (Overloaded, BusyFault)),
    (grpc.StatusCode.DEADLINE_EXCEEDED, (DeadlinePassed, DeadlineUnmeetable)),
    (grpc.StatusCode.UNAVAILABLE, (Unreachable, Draining, LinkFault)),
    (grpc.StatusCode.CANCELLED, (Unreachable,)),
    (grpc.StatusCode.INTERNAL, (ServiceFault, ModelFailed)),
    (grpc.StatusCode.UNKNOWN, (ServiceFault,)),
)
_BY_NAME = {kind.__name__: kind for _, kinds in TABLE for kind in kinds}
_BY_REASON = {reason_of(name): kind for name, kind in _BY_NAME.items()}
_TOO_LONG = "larger than"
"""In what gRPC says of a message beyond its limit: RESOURCE_EXHAUSTED, but no overload."""

_NO_TLS = "no encrypted connection could be made: check tls.ca, tls.cert and tls.key at both ends"
_ENDED = (
    "the service ended the connection at once: check tls.ca, tls.cert and tls.key at both ends; or"
    " it has too many connections, or the port is not that of gRPC"
)

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
    (grpc.StatusCode.RESOURCE_EXHAUSTED, _TOO_LONG, "a message is larger than the limit"),
    (grpc.StatusCode.UNIMPLEMENTED, "", "the service is no Overread service of this version"),
)


def to_status(error: OverreadError, *details: Message) -> tuple[grpc.StatusCode, str, Metadata]:
    """Return the status code, text and trailing metadata of ``error``, with more ``details``."""
    rows = (code for code, kinds in TABLE if type(error) in kinds)
    code, reason = next(rows, grpc.StatusCode.INTERNAL), error.reason[:MAX_REASON]
    said = {"limit": error.limit, "bound_s": getattr(error, "bound_s", None)}
    info = ErrorInfo(
        reason=reason_of(type(error).__name__),
        domain=DOMAIN,
        metadata={name: f"{value}" for name, value in said.items() if value is not None},
    )
    parts: list[Message] = [info]
    if error.field:
        broken = BadRequest.FieldViolation(field=error.field, description=reason)
        parts.append(BadRequest(field_violations=[broken]))
    if error.retry_s is not None and math.isfinite(error.retry_s):
        parts.append(RetryInfo())
        parts[-1].retry_delay.FromNanoseconds(round(1e9 * error.retry_s))  # type: ignore[attr-defined]
    status = Status(code=code.value[0], message=reason)
    for part in (*parts, *details):
        status.details.add().Pack(part)
    sent = rpc_status.to_status(status)
    return code, reason, tuple(sent.trailing_metadata or ())


def from_status(code: grpc.StatusCode, text: str | None, metadata: Given) -> OverreadError:
    """Return the error of a status: by the class in its details, otherwise by its code."""
    status = status_of(metadata)
    info = unpacked(status, ErrorInfo())
    by_code = next((kinds[0] for row, kinds in TABLE if row is code), ServiceFault)
    if info is None or info.domain != DOMAIN:
        is_long = code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LONG in (text or "")
        words = (said for row, part, said in _WORDS if row is code and part in (text or ""))
        error = (TooLarge if is_long else by_code)(next(words, f"status {code.name}"))
    else:  # a class of a later contract is read by its code
        named = _BY_REASON.get(info.reason, by_code)
        error = named(text or "no reason was given")
        error.limit = _number(info.metadata.get("limit"))
        if isinstance(error, DeadlineUnmeetable):
            error.bound_s = _number(info.metadata.get("bound_s"))
    if (broken := unpacked(status, BadRequest())) is not None and broken.field_violations:
        error.field = broken.field_violations[0].field
    retry = unpacked(status, RetryInfo())
    if status is not None:  # without details, what is usual for its class
        error.retry_s = None if retry is None else max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    return error


def status_of(metadata: Given) -> Status | None:
    """Return the `google.rpc.Status` in trailing metadata; None if there is none, or no valid one.

    Its code and text are not compared with those of the call: the details alone are used.
    """
    for key, value in metadata or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                return None
    return None


def unpacked(status: Status | None, part: Message) -> Any:
    """Fill ``part`` from the first detail of its type; None if there is none, or no valid one."""
    for detail in status.details if status is not None else ():
        try:
            if detail.Unpack(part):
                return part
        except DecodeError:
            return None
    return None


def name_of(reason: str) -> str:
    """Return the class name of a reason in `ErrorInfo`; that of `ServiceFault` if unknown."""
    return _BY_REASON.get(reason, ServiceFault).__name__


def error_by_name(name: str, reason: str) -> OverreadError:
    """Return the error of class ``name``, as in a refusal; `ServiceFault` if it is unknown."""
    return _BY_NAME.get(name, ServiceFault)(reason)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0.0 else None
