"""What can go wrong between edge and cloud, sorted by who must act.

    OverreadError
    ├── CallerFault              the request is wrong; sending it again will not help
    │   ├── InvalidRequest       a field is missing, out of range or out of order
    │   ├── TooLarge             more ROIs, voxels or bytes than the service takes
    │   ├── ChecksumMismatch     voxels changed on their way; sending them again may help
    │   └── VersionMismatch      the caller expects another model or contract
    ├── BusyFault                nothing is wrong but the load; later, or elsewhere, may do
    │   ├── DeadlineUnmeetable   the answer would come too late; `estimate_s` says how long
    │   ├── Overloaded           the queue is full
    │   └── Draining             the service is about to stop
    ├── ServiceFault             the service is at fault
    │   └── ModelFailed          the model raised, or answered nonsense
    └── LinkFault                met on the edge, or found out too late
        ├── Unreachable          no connection, or it was lost
        └── DeadlinePassed       time ran out before the answer came

The same class is raised in the cloud and met on the edge: `to_status` and `from_status` are the
two directions of one table. The class travels by name in trailing metadata; a status without it
comes from gRPC itself and is read by its code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import grpc

ERROR_KEY = "overread-error"
ESTIMATE_KEY = "overread-estimate-s"

Metadata = tuple[tuple[str, str], ...]


class OverreadError(Exception):
    """Something went wrong between edge and cloud; ``reason`` says what, for people."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    @property
    def kind(self) -> str:
        """The class name, as it travels and as it stands in reports."""
        return type(self).__name__


class CallerFault(OverreadError):
    """The request is wrong; sending it again will not help."""


class InvalidRequest(CallerFault):
    """A field is missing, out of range or out of order."""


class TooLarge(CallerFault):
    """More ROIs, voxels or bytes than the service takes."""


class ChecksumMismatch(CallerFault):
    """Voxels changed on their way; sending them again may help."""


class VersionMismatch(CallerFault):
    """The caller expects another model or contract than is served."""


class BusyFault(OverreadError):
    """Nothing is wrong but the load; later, or elsewhere, may do."""


class DeadlineUnmeetable(BusyFault):
    """The answer would come too late; ``estimate_s`` is how long it would take, if known."""

    def __init__(self, reason: str, estimate_s: float | None = None) -> None:
        super().__init__(reason)
        self.estimate_s = estimate_s


class Overloaded(BusyFault):
    """The queue is full."""


class Draining(BusyFault):
    """The service is about to stop and takes nothing new."""


class ServiceFault(OverreadError):
    """The service is at fault."""


class ModelFailed(ServiceFault):
    """The model raised, or answered nonsense; other batches are not touched by it."""


class LinkFault(OverreadError):
    """Met on the edge, or found out too late."""


class Unreachable(LinkFault):
    """No connection, or it was lost."""


class DeadlinePassed(LinkFault):
    """Time ran out before the answer came."""


# The one table. A class goes out under the first row that names it; a code that came without a
# class, from gRPC itself, is read as the first row that has it.
TABLE: tuple[tuple[type[OverreadError], grpc.StatusCode], ...] = (
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (TooLarge, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineUnmeetable, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (ChecksumMismatch, grpc.StatusCode.DATA_LOSS),
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


def to_status(error: OverreadError) -> tuple[grpc.StatusCode, str, Metadata]:
    """The status code, details and trailing metadata under which ``error`` travels."""
    code = next((code for kind, code in TABLE if kind is type(error)), grpc.StatusCode.UNKNOWN)
    metadata: Metadata = ((ERROR_KEY, error.kind),)
    if isinstance(error, DeadlineUnmeetable) and error.estimate_s is not None:
        metadata += ((ESTIMATE_KEY, f"{error.estimate_s:.6f}"),)
    return code, error.reason, metadata


def from_status(
    code: grpc.StatusCode, details: str | None, metadata: Iterable[tuple[str, str | bytes]] | None
) -> OverreadError:
    """The error that a status stands for: by the name in its metadata, else by its code."""
    said = {key: value for key, value in metadata or () if isinstance(value, str)}
    reason = details or code.name
    if (name := said.get(ERROR_KEY)) in _BY_NAME:
        return named(name, reason, estimate_s=_seconds(said.get(ESTIMATE_KEY)))
    kind = next((kind for kind, row in TABLE if row is code), ServiceFault)
    return kind(reason)


def named(name: str, reason: str, *, estimate_s: float | None = None) -> OverreadError:
    """The error of class ``name``, as a refusal carries it; an unknown one is a `ServiceFault`."""
    kind = _BY_NAME.get(name, ServiceFault)
    if kind is DeadlineUnmeetable:
        return DeadlineUnmeetable(reason, estimate_s)
    return kind(reason)


def _seconds(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
