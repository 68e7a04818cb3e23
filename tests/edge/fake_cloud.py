"""A cloud for tests: the real contract on loopback, with scripted answers, and its clients."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import grpc

from edge.budget import Budget
from edge.escalation.client import Escalator
from edge.escalation.rois import EscalationResult
from edge.link.channel import CHANNEL_OPTIONS
from edge.link.link import Link
from edge.settings.core import load_settings
from protos.codec import decode_header, decode_roi, encode_description, encode_response
from protos.deadline import Deadline
from protos.errors import OverreadError, to_status
from protos.messages import Accepted, Description, Header, Load, Refusal, Roi, Summary, Verdict
from protos.overread_pb2_grpc import OverreadServicer, add_OverreadServicer_to_server
from tests.edge.builders import box, plan_of


def sure(roi: Roi) -> Verdict:
    """A verdict of 0.99 and 9 mm for every region."""
    return Verdict(roi.roi_id, 0.99, 9.0, "fake 1", queue_s=0.0, compute_s=0.001)


@dataclass
class FakeCloud(OverreadServicer):
    """Serves while its ``with`` lasts.

    ``faults`` end one stream each, after ``fault_after`` verdicts; after ``dies_after`` verdicts
    the whole service stops. What it was sent is kept in ``headers`` and in ``asked`` (region
    identifiers, a list a stream), who sent it in ``sites``. ``on_end`` is called when a stream
    has ended, however it did. ``turns_away`` end one stream each at its header; of the others each
    hears that ``accepts`` ROIs are accepted, None for all, once ``admits`` has returned.
    """

    answer: Callable[[Roi], Verdict | Refusal] = sure
    faults: list[OverreadError] = field(default_factory=list)
    fault_after: int = 0
    dies_after: int | None = None
    turns_away: list[OverreadError] = field(default_factory=list)
    accepts: int | None = None
    admits: Callable[[], object] = lambda: None
    queue_s: float = 0.25
    headers: list[Header] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    sites: list[str | None] = field(default_factory=list)
    on_end: Callable[[], None] = lambda: None
    credentials: grpc.ServerCredentials | None = None
    address: str = ""

    def __enter__(self) -> Self:
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_OverreadServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._listen('127.0.0.1:0')}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def _listen(self, address: str) -> int:
        if self.credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self.credentials)

    def Read(self, request_iterator: Any, context: Any) -> Iterator[Any]:  # noqa: N802 - gRPC's name
        """Answers every region in its order, unless a fault is scripted."""
        self.sites.append(dict(context.invocation_metadata()).get("overread-site"))
        header = decode_header(next(request_iterator))
        self.headers.append(header)
        self.asked.append([])
        context.add_callback(self.on_end)
        if self.turns_away:
            self._abort(context, self.turns_away.pop(0))
        self.admits()
        count = header.roi_count if self.accepts is None else self.accepts
        context.send_initial_metadata(())
        yield encode_response(Accepted(count))
        for done, request in enumerate(request_iterator):
            if self.faults and done == self.fault_after:
                self._abort(context, self.faults.pop(0))
            if done == self.dies_after:
                Thread(target=self._server.stop, args=(None,)).start()
                while context.is_active():
                    time.sleep(0.005)
            roi = decode_roi(request.roi)
            self.asked[-1].append(roi.roi_id)
            yield encode_response(self.answer(roi))
        yield encode_response(Summary(len(self.asked[-1]), 0, 0.01, Load(self.queue_s, 0.01)))

    def _abort(self, context: Any, error: OverreadError) -> None:
        code, details, metadata = to_status(error)
        context.set_trailing_metadata(metadata)
        context.abort(code, details)

    def Describe(self, _request: Any, _context: Any) -> Any:  # noqa: N802 - gRPC's name
        """That it is there, and nothing else."""
        return encode_description(Description("fake", {}, "none", 64, 64**3, 1 << 22, (48, 48, 48)))


@contextmanager
def stalled_cloud(after: int = 0) -> Iterator[FakeCloud]:
    """A cloud that answers the first ``after`` ROIs of a plan, then nothing until the end."""
    over = Event()

    def answer(roi: Roi) -> Verdict | Refusal:
        if roi.roi_id >= after:
            over.wait(60)
        return sure(roi)

    with FakeCloud(answer=answer) as cloud:
        try:
            yield cloud
        finally:
            over.set()


def mutual_tls(pki: Path) -> grpc.ServerCredentials:
    """Those of ``service`` in a folder of `make_pki`, for clients with a certificate."""
    pair = ((pki / "service.key").read_bytes(), (pki / "service.pem").read_bytes())
    ca = (pki / "ca.pem").read_bytes()
    return grpc.ssl_server_credentials([pair], root_certificates=ca, require_client_auth=True)


RESERVE_S = 0.2


@contextmanager
def escalator(
    address: str,
    link: Link | None = None,
    *,
    fallback: tuple[str, Link] | None = None,
    jitter: Callable[[float, float], float] = lambda *_: 0.01,
    reserve_s: float = RESERVE_S,
    **settings: Any,
) -> Iterator[Escalator]:
    """An escalator with a separate channel; its pauses are 10 ms at most."""
    how = load_settings(reserve_s=reserve_s, priority="stat", **settings)
    with ExitStack() as held:

        def channel(to: str) -> grpc.Channel:
            return held.enter_context(grpc.insecure_channel(to, options=CHANNEL_OPTIONS))

        other = (channel(fallback[0]), fallback[1]) if fallback else None
        yield Escalator(channel(address), link or Link(), how, fallback=other, jitter=jitter)


def read(second: Escalator, *scores: float, budget_s: float = 60.0) -> EscalationResult:
    """What comes back for candidates of these scores, with time enough for a slow machine."""
    return second.read(plan_of(*scores), box(), Budget(Deadline.after(budget_s)), "key-1")


def ask(
    address: str, *scores: float, budget_s: float = 60.0, link: Link | None = None
) -> EscalationResult:
    """The same with a new escalator."""
    with escalator(address, link) as second:
        return read(second, *scores, budget_s=budget_s)


def free_port() -> int:
    """A port of loopback without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
